# SPDX-License-Identifier: Apache-2.0
"""Which of the backend's addresses to use, and a socket to it."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rover_plugin.backend.security import connect
from rover_plugin.errors import BackendError, CallError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.backend.security import Security

_KEEPALIVE_IDLE_S: Final = 60
_UNACKNOWLEDGED_MS: Final = 30_000


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connection ready for HTTP/2."""

    socket: socket.socket
    address: str
    scheme: str


class AddressList:
    """The addresses, and which one is in favour; thread-safe and shared by all callers.

    Raises:
        BackendError: there is none.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        if not addresses:
            message = "no backend address"
            raise BackendError(message, hint="set core.backend.addr (ROVER_BACKEND_ADDR) to host:port")
        self._addresses = tuple(addresses)
        self._lock = threading.Lock()
        self._favourite = 0

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def favourite(self) -> str:
        """The one to use."""
        return self._addresses[self._favourite]

    def failed(self, address: str) -> None:
        """The next one becomes the favourite, unless another thread has moved on already."""
        with self._lock:
            if address == self._addresses[self._favourite]:
                self._favourite = (self._favourite + 1) % len(self._addresses)


class Dialer:
    """Makes connections to the first address that answers, never through a proxy."""

    def __init__(self, addresses: AddressList, security: Security) -> None:
        self._addresses = addresses
        self.security = security

    @property
    def address(self) -> str:
        """The address that would be tried first."""
        return self._addresses.favourite

    def dial(self, timeout_s: float) -> Dialed:
        """Tries each address once, `timeout_s` seconds each.

        Raises:
            CallError: no address took the connection; the last one's failure.
        """
        failure: CallError | None = None
        for _ in range(len(self._addresses)):
            address = self._addresses.favourite
            try:
                return self._dial(address, timeout_s)
            except CallError as error:
                failure = error
                self._addresses.failed(address)
        assert failure is not None  # noqa: S101 an address list is never empty
        raise failure

    def failed(self, address: str) -> None:
        """A connection to `address` was lost, or refused to serve."""
        self._addresses.failed(address)

    def _dial(self, address: str, timeout_s: float) -> Dialed:
        plain = connect(address, timeout_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A dead peer is noticed by TCP: gRPC servers punish frequent HTTP/2 pings (oap-contract E).
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        if not self.security.tls:
            return Dialed(plain, address, "http")
        return Dialed(self.security.wrap(plain, address), address, "https")
