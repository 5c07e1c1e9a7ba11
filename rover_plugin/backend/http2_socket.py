# SPDX-License-Identifier: Apache-2.0
"""A connected, non-blocking socket with the HTTP/2 state of its connection."""

from __future__ import annotations

import select
import ssl
from typing import TYPE_CHECKING, Final

from rover_plugin.backend.grpc_over_h2 import ClientConnection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.backend.dialer import Dialed

_RECEIVE_BYTES: Final = 65536
# A peer that sends without end must not keep the caller from looking at its deadline.
_MOST_READS: Final = 4
# Answers to PING and SETTINGS pile up where a peer asks and does not read.
_MOST_UNREAD: Final = 2 << 20


class Http2Socket:
    """Moves bytes between a socket and its `ClientConnection`.

    Attributes:
        address: host:port, as in the settings.
        protocol: the HTTP/2 state.
    """

    def __init__(self, dialed: Dialed, metadata: Sequence[tuple[str, str]]) -> None:
        self.address = dialed.address
        self.protocol = ClientConnection(dialed.address, dialed.scheme, metadata)
        self._socket = dialed.socket
        self._socket.settimeout(0)
        self._unsent = bytearray()

    @property
    def backlog(self) -> int:
        """Bytes framed and not yet taken by the socket."""
        return len(self._unsent)

    def exchange(self, wait_s: float) -> None:
        """Writes what is due and reads what has come, a bounded part of it; waits for either if there is none."""
        self._write()
        if not self.protocol.usable and not self._unsent and self.protocol.end is not None:
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if poll.poll(max(0.0, wait_s) * 1000):
            self._read()
            self._write()

    def close(self) -> None:
        """Closes at once."""
        self._socket.close()

    def _write(self) -> None:
        self._unsent += self.protocol.take_outgoing()
        if len(self._unsent) > _MOST_UNREAD:
            self.protocol.lost("the backend asks without reading the answers")
            self._unsent.clear()
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._read()  # the backend's last words say more than the broken pipe
                self._lost(error)
                self._unsent.clear()
                return
            del self._unsent[:sent]

    def _read(self) -> None:
        for _ in range(_MOST_READS):
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._lost(error)
                return
            if not data:
                self.protocol.lost("the backend closed the connection")
                return
            self.protocol.receive(data)

    def _lost(self, error: OSError) -> None:
        # With TLS 1.3 a backend that does not like our certificate says so only after the handshake.
        reason = (error.reason if isinstance(error, ssl.SSLError) else "") or ""
        refused = "CERTIFICATE" in reason or "UNKNOWN_CA" in reason
        words = f"TLS: {reason}" if reason else error.strerror or str(error)
        self.protocol.lost(words, "UNAUTHENTICATED" if refused else "UNAVAILABLE")
