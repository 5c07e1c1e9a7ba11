# SPDX-License-Identifier: Apache-2.0
"""Bulk streams: client-streaming calls of many small messages over one kept HTTP/2 connection.

`ClientConnection` (grpc_over_h2) speaks the protocol; this drives it with a non-blocking socket.
"""

from __future__ import annotations

import math
import select
import ssl
import time
from typing import TYPE_CHECKING, Final

from rover_plugin.backend.grpc_over_h2 import CallEnd, ClientConnection
from rover_plugin.errors import CallError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rover_plugin.backend.dialer import Dialed, Dialer
    from rover_plugin.backend.health import HealthBoard

_CONNECT_S: Final = 5.0
_POLL_S: Final = 0.2  # how soon a lowered `not_after` is noticed
_RECEIVE_BYTES: Final = 65536
_MOST_UNSENT: Final = 256 * 1024  # bytes framed ahead of the socket
_REFUSAL_S: Final = 0.25
# The OAP decides these before it looks at the first message.
_BEFORE_THE_CALL: Final = frozenset({"PERMISSION_DENIED", "UNIMPLEMENTED", "UNAUTHENTICATED"})
_TRANSPORT: Final = "bulk"


class _Connection:
    """One connected socket with its HTTP/2 state."""

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
        """Writes what is due and reads what has come; waits for either if there is nothing to do."""
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
        while True:
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


class BulkStream:
    """Client-streaming calls of one method, one after another. One thread uses it; `not_after` may be set by any.

    Attributes:
        not_after: time.monotonic() value at which every call in progress gives up.
    """

    def __init__(self, dialer: Dialer, health: HealthBoard, method: str) -> None:
        self._dialer = dialer
        self._health = health
        self._method = method
        self._connection: _Connection | None = None
        self._refused = False
        self.not_after = math.inf

    def send(self, body: Sequence[bytes | bytearray | memoryview], timeout_s: float, *, cautious: bool = False) -> None:
        """Makes one call with the concatenated `body` and waits for the reply, which is thrown away.

        Args:
            body: parts of framed messages (`grpc_over_h2.frame_message`), cut anywhere.
            timeout_s: seconds for the whole call.
            cautious: after a failure; give the backend a moment to refuse the call before anything is sent.

        Raises:
            CallError: with the gRPC status, and how much of the body may have been applied.
        """
        deadline = time.monotonic() + timeout_s
        connection = self._connected(deadline)
        protocol = connection.protocol
        protocol.open(self._method, timeout_s)
        if cautious:
            refused_by = time.monotonic() + _REFUSAL_S
            self._run(connection, deadline, lambda: time.monotonic() >= refused_by)
        self._send_body(connection, body, deadline)
        protocol.finish()
        self._run(connection, deadline, lambda: False)
        self._settle(connection)

    def watch(self) -> None:
        """Between calls: takes what the backend says meanwhile, and connects if there is no connection.

        Raises:
            CallError: it cannot.
        """
        if self._connection is not None:
            self._connection.exchange(0)
        self._connected(time.monotonic() + _CONNECT_S)

    def close(self) -> None:
        """Closes the connection; a later `send` would open another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self, deadline: float) -> _Connection:
        if self._connection is not None:
            self._connection.exchange(0)
            if self._connection.protocol.usable:
                return self._connection
            self.close()
        left = min(deadline, self.not_after) - time.monotonic()
        self._health.connecting(_TRANSPORT, self._dialer.address)
        try:
            connection = self._dial(min(_CONNECT_S, max(0.1, left)))
        except CallError as error:
            self._health.disconnected(_TRANSPORT, self._dialer.address, error.status, str(error))
            raise
        if not self._refused:  # a backend that takes connections and refuses calls is not back
            self._health.connected(_TRANSPORT, connection.address)
        self._connection = connection
        return connection

    def _dial(self, timeout_s: float) -> _Connection:
        """Connects, and waits until the backend has spoken HTTP/2: what fails before that has touched nothing."""
        dialed = self._dialer.dial(timeout_s)
        connection = _Connection(dialed, self._dialer.security.metadata)
        protocol = connection.protocol
        deadline = time.monotonic() + timeout_s
        while not protocol.ready and protocol.usable and time.monotonic() < deadline:
            connection.exchange(min(timeout_s, _POLL_S))
        if protocol.ready:
            return connection
        connection.close()
        self._dialer.failed(dialed.address)
        end = protocol.end or CallEnd("UNAVAILABLE", "no HTTP/2 from the backend in time")
        message = f"{dialed.address}: {end.detail}"
        if dialed.scheme == "https" and end.status == "UNAVAILABLE":
            # Some servers say nothing when they miss our certificate, they just hang up.
            hint = "it may want a client certificate: core.backend.client_pem_path and client_key_path"
            raise CallError(message, status="UNAUTHENTICATED", hint=hint)
        raise CallError(message, status=end.status)

    def _send_body(
        self, connection: _Connection, body: Sequence[bytes | bytearray | memoryview], deadline: float
    ) -> None:
        protocol = connection.protocol
        for part in body:
            with memoryview(part) as view:
                at = 0
                while at < len(view) and protocol.end is None:
                    with view[at : at + _MOST_UNSENT] as piece:
                        at += protocol.send(piece)
                    connection.exchange(0)
                    self._run(connection, deadline, lambda: protocol.room() > 0 and connection.backlog < _MOST_UNSENT)

    def _run(self, connection: _Connection, deadline: float, done: Callable[[], bool]) -> None:
        """Moves bytes until the call has ended or `done()`; ends the call when its time is up."""
        protocol = connection.protocol
        while protocol.end is None and not done():
            left = min(deadline, self.not_after) - time.monotonic()
            if left <= 0:
                protocol.abandon("DEADLINE_EXCEEDED", "no answer in time")
                return
            connection.exchange(min(left, _POLL_S))

    def _settle(self, connection: _Connection) -> None:
        protocol = connection.protocol
        end = protocol.end
        assert end is not None  # noqa: S101 _run ends no earlier
        if end.status == "OK":
            self._refused = False
            self._health.connected(_TRANSPORT, connection.address)
            return
        self._refused = True
        self._health.disconnected(_TRANSPORT, connection.address, end.status, end.detail)
        self._dialer.failed(connection.address)
        connection.exchange(0)  # a last word: the stream is reset
        self.close()  # what spoilt this call may spoil the next, and the next address may be better
        sent = 0 if end.untouched or end.status in _BEFORE_THE_CALL else protocol.body_sent
        message = f"{connection.address}: {end.detail or end.status}"
        raise CallError(message, status=end.status, body_bytes_sent=sent)
