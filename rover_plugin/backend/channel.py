# SPDX-License-Identifier: Apache-2.0
"""grpcio channels to the backend, for unary calls (process reports): token added, address list followed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc

from rover_plugin.errors import BackendError, CallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.backend.dialer import AddressList
    from rover_plugin.backend.health import HealthBoard
    from rover_plugin.backend.security import Security

_TRANSPORT: Final = "channel"
_OPTIONS: Final[list[tuple[str, int | str]]] = [
    # OAPs answer faster pings, and pings without calls, with GOAWAY too_many_pings (oap-contract E).
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 30_000),
]


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _WithMetadata(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Adds fixed metadata to every unary call."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        """Called by grpcio."""
        metadata = (*(details.metadata or ()), *self._metadata)
        added = _CallDetails(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )
        return continuation(added, request)


class ChannelPool:
    """One channel an address, made when first asked for; thread-safe."""

    def __init__(self, addresses: AddressList, security: Security, health: HealthBoard) -> None:
        self._addresses = addresses
        self._security = security
        self._health = health
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._closed = False
        self._dead = grpc.insecure_channel("unix:/nonexistent/backend")  # every call on it is UNAVAILABLE

    def channel(self) -> grpc.Channel:
        """The channel to the address in favour; ask for it anew for each call. Never raises for a backend's fault.

        Raises:
            BackendError: the pool is closed.
        """
        address = self._addresses.favourite
        with self._lock:
            if self._closed:
                message = "the backend's channels are closed"
                raise BackendError(message)
            known = self._channels.get(address)
            if known is None:
                try:
                    known = self._channels[address] = self._make(address)
                except CallError as error:
                    # Only with skip_verify, which has to see the certificate first: tried again next time.
                    self._health.disconnected(_TRANSPORT, address, error.status, str(error))
                    self._addresses.failed(address)
                    return self._dead
            return known

    def close(self) -> None:
        """Closes all; calls in progress end with CANCELLED."""
        with self._lock:
            self._closed = True
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()
            self._dead.close()

    def _make(self, address: str) -> grpc.Channel:
        self._health.connecting(_TRANSPORT, address)
        plain = self._security.channel(address, _OPTIONS)
        plain.subscribe(lambda state: self._changed(address, state))
        return grpc.intercept_channel(plain, _WithMetadata(self._security.metadata))

    def _changed(self, address: str, state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            self._health.connected(_TRANSPORT, address)
        elif state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self._health.disconnected(_TRANSPORT, address, "UNAVAILABLE", "no connection")
            self._addresses.failed(address)
