# SPDX-License-Identifier: Apache-2.0
"""Calls to the backend over one kept HTTP/2 connection: client-streaming ones of many small messages, and unary ones.

`ClientConnection` (grpc_over_h2) speaks the protocol; this drives it over a non-blocking socket. The backend is reached
by this way only. grpcio costs 25-42 µs for each message of a stream, follows `http_proxy`, reads `::1:11800` its own
way, and grew to gigabytes where a backend answered each call with GOAWAY; two transports read one setting differently.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rover_plugin.backend.grpc_over_h2 import CallEnd, first_message, frame_message
from rover_plugin.backend.http2_socket import Http2Socket
from rover_plugin.errors import CallError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rover_plugin.backend.dialer import Dialer
    from rover_plugin.backend.health import HealthBoard

_CONNECT_S: Final = 5.0
_POLL_S: Final = 0.2  # how soon a lowered `not_after` is noticed
_MOST_UNSENT: Final = 256 * 1024  # bytes framed ahead of the socket
_REFUSAL_S: Final = 0.25
# The OAP decides these before it looks at the first message.
_BEFORE_THE_CALL: Final = frozenset({"PERMISSION_DENIED", "UNIMPLEMENTED", "UNAUTHENTICATED"})
_PLAINTEXT_HINT: Final = "is this the backend's gRPC port? If it speaks TLS, set core.backend.enable_TLS to true"
# Some servers say nothing when they miss our certificate, they just hang up.
_CERTIFICATE_HINT: Final = "it may want a client certificate: core.backend.client_pem_path and client_key_path"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take, in seconds.

    Attributes:
        quiet: without any progress: no byte taken by a flow-control window, no window moved, nothing of a reply.
        total: for everything; the backend is told as `grpc-timeout`.
        body: after this no further part of the body is begun: what was sent is closed and answered.
    """

    quiet: float
    total: float
    body: float = math.inf


class Caller:
    """Calls one after another. One thread uses it; `not_after` may be set by any.

    Args:
        transport: its name in health and events.

    Attributes:
        not_after: time.monotonic() value at which every call in progress gives up.
    """

    def __init__(self, dialer: Dialer, health: HealthBoard, transport: str) -> None:
        self._dialer = dialer
        self._health = health
        self._transport = transport
        self._connection: Http2Socket | None = None
        self._refused = False
        self.not_after = math.inf

    def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Makes a unary call with a serialised message; returns the serialised reply.

        Raises:
            CallError: with the gRPC status.
        """
        connection, _ = self._call(method, [frame_message(request)], Patience(timeout_s, timeout_s))
        reply = first_message(connection.protocol.reply)
        if reply is None:
            raise CallError(f"{connection.address}: the reply is no gRPC message", status="INTERNAL")
        return reply

    def stream(
        self,
        method: str,
        parts: Sequence[bytes | bytearray | memoryview],
        patience: Patience,
        *,
        cautious: bool = False,
    ) -> int:
        """Makes a client-streaming call and waits for the reply, which is thrown away.

        Args:
            method: a path such as /package.Service/method.
            parts: framed messages (`grpc_over_h2.frame_message`), each part some whole ones.
            patience: see there.
            cautious: after a failure; give the backend a moment to refuse the call before anything is sent.

        Returns:
            How many parts were sent, and so answered for; fewer than given where the patience for the body ended.

        Raises:
            CallError: with the gRPC status, and how much of the body may have been applied.
        """
        return self._call(method, parts, patience, cautious=cautious)[1]

    def watch(self) -> None:
        """Between calls: takes what the backend says meanwhile, and connects if there is no connection.

        Raises:
            CallError: it cannot.
        """
        if self._connection is not None:
            self._connection.protocol.rest()
            self._connection.exchange(0)
        self._connected(time.monotonic() + _CONNECT_S)

    def close(self) -> None:
        """Closes the connection; a later call would open another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- one call --

    def _call(
        self,
        method: str,
        parts: Sequence[bytes | bytearray | memoryview],
        patience: Patience,
        *,
        cautious: bool = False,
    ) -> tuple[Http2Socket, int]:
        began = time.monotonic()
        connection = self._connected(began + patience.total)
        protocol = connection.protocol
        protocol.open(method, patience.total)
        wait = _Wait(patience, began + patience.total)
        if cautious:
            refused_by = time.monotonic() + _REFUSAL_S
            self._run(connection, wait, lambda: time.monotonic() >= refused_by)
        sent = 0
        for number, part in enumerate(parts, 1):
            if protocol.end is not None or (sent and time.monotonic() - began > patience.body):
                break
            self._send_part(connection, part, wait, last=number == len(parts))
            sent = number
        protocol.finish()
        self._run(connection, wait, lambda: False)
        self._settle(connection)
        return connection, sent

    def _send_part(
        self, connection: Http2Socket, part: bytes | bytearray | memoryview, wait: _Wait, *, last: bool
    ) -> None:
        protocol = connection.protocol
        with memoryview(part) as view:
            at = 0
            while at < len(view) and protocol.end is None:
                with view[at : at + _MOST_UNSENT] as piece:
                    at += protocol.send(piece, last=last and at + _MOST_UNSENT >= len(view))
                connection.exchange(0)
                if last and at == len(view):
                    return
                self._run(connection, wait, lambda: protocol.room() > 0 and connection.backlog < _MOST_UNSENT)

    def _run(self, connection: Http2Socket, wait: _Wait, done: Callable[[], bool]) -> None:
        """Moves bytes until the call has ended or `done()`; ends the call when its time is up."""
        protocol = connection.protocol
        while protocol.end is None and not done():
            left = min(wait.until(protocol.progress), self.not_after) - time.monotonic()
            if left <= 0:
                protocol.abandon("DEADLINE_EXCEEDED", "no answer in time")
                return
            connection.exchange(min(left, _POLL_S))

    def _settle(self, connection: Http2Socket) -> None:
        protocol = connection.protocol
        end = protocol.end
        assert end is not None  # noqa: S101 _run ends no earlier
        if end.status == "OK":
            self._refused = False
            self._health.connected(self._transport, connection.address)
            return
        self._refused = True
        self._health.disconnected(self._transport, connection.address, end.status, end.detail)
        self._dialer.failed(connection.address)
        connection.exchange(0)  # a last word: the stream is reset
        self.close()  # what spoilt this call may spoil the next, and the next address may be better
        sent = 0 if end.untouched or end.status in _BEFORE_THE_CALL else protocol.body_sent
        message = f"{connection.address}: {end.detail or end.status}"
        raise CallError(message, status=end.status, body_bytes_sent=sent, address=connection.address)

    # -- the connection --

    def _connected(self, deadline: float) -> Http2Socket:
        if self._connection is not None:
            self._connection.exchange(0)
            if self._connection.protocol.usable:
                return self._connection
            self.close()
        left = min(deadline, self.not_after) - time.monotonic()
        self._health.connecting(self._transport, self._dialer.address)
        try:
            connection = self._dial(min(_CONNECT_S, max(0.1, left)))
        except CallError as error:
            reason = error.message.removeprefix(f"{error.address}: ")
            self._health.disconnected(self._transport, error.address, error.status, reason, error.hint)
            raise
        if not self._refused:  # a backend that takes connections and refuses calls is not back
            self._health.connected(self._transport, connection.address)
        self._connection = connection
        return connection

    def _dial(self, timeout_s: float) -> Http2Socket:
        """Connects, and waits until the backend has spoken HTTP/2: what fails before that has touched nothing."""
        dialed = self._dialer.dial(timeout_s)
        connection = Http2Socket(dialed, self._dialer.security.metadata)
        protocol = connection.protocol
        deadline = time.monotonic() + timeout_s
        while not protocol.ready and protocol.usable and time.monotonic() < min(deadline, self.not_after):
            connection.exchange(min(timeout_s, _POLL_S))
        if protocol.ready and protocol.usable:
            return connection
        connection.close()
        self._dialer.failed(dialed.address)
        if protocol.ready:
            end = protocol.end or CallEnd("UNAVAILABLE", "the backend is going away")
            raise CallError(f"{dialed.address}: {end.detail}", status=end.status, address=dialed.address)
        end = protocol.end or CallEnd("UNAVAILABLE", "no HTTP/2 from the backend in time")
        secure = dialed.scheme == "https"
        raise CallError(
            f"{dialed.address}: {end.detail}",
            status="UNAUTHENTICATED" if secure and end.status == "UNAVAILABLE" else end.status,
            hint=_CERTIFICATE_HINT if secure else _PLAINTEXT_HINT,
            address=dialed.address,
        )


class _Wait:
    """Until when a call waits, put off by each sign of progress."""

    def __init__(self, patience: Patience, total: float) -> None:
        self._quiet = patience.quiet
        self._total = total
        self._progress = 0
        self._since = time.monotonic()

    def until(self, progress: int) -> float:
        if progress != self._progress:
            self._progress = progress
            self._since = time.monotonic()
        return min(self._total, self._since + self._quiet)
