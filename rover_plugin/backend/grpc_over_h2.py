# SPDX-License-Identifier: Apache-2.0
"""gRPC calls on one HTTP/2 connection, client-streaming and unary, sans I/O.

grpcio sends every message by itself, at 25-42 µs each. Here the caller hands over a body of many messages already
framed (`frame_message`), and it leaves in DATA frames as large as the peer takes: below 1 µs a message.

Follows gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md) and RFC 9113; calls run one after another.
"""

from __future__ import annotations

import contextlib
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MESSAGE_HEAD: Final = struct.Struct(">BI")  # compressed flag, length
MESSAGE_HEAD_BYTES: Final = _MESSAGE_HEAD.size
_FRAME_HEAD_BYTES: Final = 9  # RFC 9113 §4.1
_GOAWAY: Final = 0x07
_TLS_ALERT: Final = b"\x15\x03"  # RFC 8446 §5.1: record type alert, legacy version 3.x
# Frames that the peer may send in a call: some, and eight for each KB it takes (two WINDOW_UPDATEs are what a window of
# 1 KB needs). Each costs us 20-40 µs, and a flood of PINGs brings 3 800 in 64 KB.
_MOST_FRAMES: Final = 2000
_BODY_BYTES_A_FRAME: Final = 128
_MOST_REPLY_BYTES: Final = 4 << 20  # what grpc/doc has as the default of every implementation
_MOST_WORDS: Final = 300  # characters of the peer's own words in a message

STATUS_NAMES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_STATUS_CODE: Final = re.compile(r"[1-9][0-9]{2}", re.ASCII)  # RFC 9110 §15
_SMALL_NUMBER: Final = re.compile(r"[0-9]{1,2}", re.ASCII)
# grpc/doc/http-grpc-status-mapping.md
_HTTP_TO_STATUS: Final = {
    400: "INTERNAL",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    429: "UNAVAILABLE",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
# grpc/doc/PROTOCOL-HTTP2.md, "Errors"; all others are INTERNAL.
_RESET_TO_STATUS: Final = {
    ErrorCodes.REFUSED_STREAM: "UNAVAILABLE",
    ErrorCodes.CANCEL: "CANCELLED",
    ErrorCodes.ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED",
    ErrorCodes.INADEQUATE_SECURITY: "PERMISSION_DENIED",
}


def frame_message(message: bytes) -> bytes:
    """One serialised message as it stands in a gRPC body: not compressed, length, bytes."""
    return _MESSAGE_HEAD.pack(0, len(message)) + message


def message_length(body: bytes | bytearray) -> int:
    """Length of the first message in a body."""
    return int(_MESSAGE_HEAD.unpack_from(body)[1])


def first_message(body: bytes | bytearray) -> bytes | None:
    """The first message of a body, None if the body does not hold it whole or it is compressed."""
    if len(body) < MESSAGE_HEAD_BYTES:
        return None
    compressed, length = _MESSAGE_HEAD.unpack_from(body)
    if compressed or len(body) < MESSAGE_HEAD_BYTES + length:
        return None
    return bytes(body[MESSAGE_HEAD_BYTES : MESSAGE_HEAD_BYTES + length])


@dataclass(slots=True)
class CallEnd:
    """How a call ended.

    Attributes:
        status: gRPC status name.
        detail: the backend's or our words for it.
        untouched: the backend has surely not begun with the call (RFC 9113 §6.8, §8.7), whatever was sent.
    """

    status: str
    detail: str = ""
    untouched: bool = False


class ClientConnection:
    """The client's end. Feed `receive`, send what `take_outgoing` returns.

    Args:
        authority: host:port, for `:authority`.
        scheme: http or https.
        metadata: sent with every call.

    Attributes:
        end: how the current call ended, None while it runs.
        ready: whether the peer has sent its SETTINGS, and so speaks HTTP/2 (RFC 9113 §3.4).
        usable: whether another call may be opened; a GOAWAY ends that without ending the running call.
        body_sent: bytes of the current call's body already put into frames.
        progress: grows whenever the peer takes or gives something that belongs to the current call.
        reply: body of the current call's reply so far.
    """

    def __init__(self, authority: str, scheme: str, metadata: Iterable[tuple[str, str]] = ()) -> None:
        self._fixed_headers = [
            (":method", "POST"),
            (":scheme", scheme),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "rover-plugin"),
            *metadata,
        ]
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._h2 = h2.connection.H2Connection(config)
        self._inbound = bytearray()
        self._frames = 0
        self._broken = False
        self._stream = 0
        self._http_status = 0
        self._local_open = False
        self.end: CallEnd | None = None
        self.ready = False
        self.usable = True
        self.body_sent = 0
        self.progress = 0
        self.reply = bytearray()
        self._h2.initiate_connection()

    def open(self, method: str, timeout_s: float) -> None:
        """Begins a call; `method` is a path such as /package.Service/method. The former call must have ended.

        A peer that allows no stream now, or none any more, ends the call as one it has not begun with.
        """
        self._http_status = 0
        self.end = None
        self.body_sent = 0
        self.progress = 0
        self.reply = bytearray()
        self.rest()
        if not self.usable:
            self.end = CallEnd("UNAVAILABLE", "the backend takes no call any more", untouched=True)
            return
        timeout = ("grpc-timeout", f"{max(1, int(timeout_s * 1000))}m")
        try:
            self._stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(self._stream, [(":path", method), *self._fixed_headers, timeout])
        except h2.exceptions.ProtocolError as error:
            # No stream number left, MAX_CONCURRENT_STREAMS of 0, a connection that the peer has just broken.
            self.usable = False
            self.end = CallEnd("UNAVAILABLE", f"the backend takes no call ({error})", untouched=True)
            return
        self._local_open = True

    def rest(self) -> None:
        """Begins a new count of the frames that the peer may send; for times without a call."""
        self._frames = 0

    def room(self) -> int:
        """How many body bytes the peer's windows take now."""
        if not self._local_open:
            return 0
        return max(0, self._h2.local_flow_control_window(self._stream))

    def send(self, part: memoryview, *, last: bool = False) -> int:
        """Puts the beginning of `part` into DATA frames; returns how many bytes the windows took.

        `last`: the body ends with this part. A server may answer a unary call as soon as it has the message, so its
        end travels in the same frame.
        """
        taken = min(len(part), self.room())
        frame = self._h2.max_outbound_frame_size
        for start in range(0, taken, frame):
            ends = last and start + frame >= len(part) == taken
            self._local_open = not ends
            self._h2.send_data(self._stream, part[start : min(start + frame, taken)], end_stream=ends)
        self.body_sent += taken
        self.progress += taken
        return taken

    def finish(self) -> None:
        """Says that the body is complete, if that is not said yet."""
        if self._local_open:
            self._local_open = False
            self._h2.end_stream(self._stream)

    def abandon(self, status: str, detail: str) -> None:
        """Ends the running call from this side."""
        if self.end is None:
            self._end(CallEnd(status, detail))

    def lost(self, detail: str, status: str = "UNAVAILABLE") -> None:
        """The transport is gone."""
        self.usable = False
        self._broken = True
        self._local_open = False
        if self.end is None:
            self.end = CallEnd(status, detail)

    def take_outgoing(self) -> bytes:
        """Bytes for the socket, each once."""
        return self._h2.data_to_send()

    def receive(self, data: bytes) -> None:
        """Takes bytes from the socket; a broken peer ends the call and makes the connection unusable."""
        if self._broken:
            return
        if not self.ready and not self._inbound and data.startswith(_TLS_ALERT):
            self.lost("the backend answers with a TLS alert")
            return
        try:
            self._handle(self._h2.receive_data(self._without_goaway(data)))
        except h2.exceptions.ProtocolError as error:
            self.lost(f"the backend breaks the HTTP/2 protocol ({error})")
        if self._frames > _MOST_FRAMES + self.body_sent // _BODY_BYTES_A_FRAME:
            self.lost(f"the backend sent {self._frames} frames in one call")

    def _without_goaway(self, data: bytes) -> bytes:
        # h2 takes a GOAWAY for the end of the connection; but streams up to the one it names go on (RFC 9113 §6.8).
        self._inbound += data
        passed = bytearray()
        at = 0
        while len(self._inbound) - at >= _FRAME_HEAD_BYTES:
            length = int.from_bytes(self._inbound[at : at + 3], "big")
            if length > self._h2.max_inbound_frame_size:
                message = "not HTTP/2"
                raise h2.exceptions.FrameTooLargeError(message)
            end = at + _FRAME_HEAD_BYTES + length
            if end > len(self._inbound):
                break
            self._frames += 1
            if self._inbound[at + 3] == _GOAWAY:
                self._going_away(bytes(self._inbound[at + _FRAME_HEAD_BYTES : end]))
            else:
                passed += self._inbound[at:end]
            at = end
        del self._inbound[:at]
        return bytes(passed)

    def _going_away(self, payload: bytes) -> None:
        last_stream, code = struct.unpack_from(">II", payload.ljust(8, b"\0"))
        self.usable = False
        if self.end is None and self._stream and self._stream > last_stream & 0x7FFFFFFF:
            words = _cut(payload[8:].decode("utf-8", "replace"))
            self._local_open = False
            self.end = CallEnd(
                "UNAVAILABLE", f"the backend is going away (code {code}) {words}".rstrip(), untouched=True
            )

    def _handle(self, events: Sequence[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self._data(event)
                continue
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self.ready = True
            elif isinstance(event, h2.events.WindowUpdated):
                self.progress += event.stream_id in {0, self._stream}
            if getattr(event, "stream_id", None) != self._stream or self.end is not None:
                continue
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                self.progress += 1
                self._headers({_text(name): _text(value) for name, value in event.headers or ()})
            elif isinstance(event, h2.events.StreamReset):
                self._reset(event.error_code)
            elif isinstance(event, h2.events.StreamEnded):
                self._end(CallEnd("UNKNOWN", f"the reply has no grpc-status (HTTP status {self._http_status})"))

    def _data(self, event: h2.events.DataReceived) -> None:
        if event.flow_controlled_length:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if event.stream_id == self._stream and self.end is None:
            self.progress += 1
            self.reply += event.data or b""
            if len(self.reply) > _MOST_REPLY_BYTES:
                self.abandon("RESOURCE_EXHAUSTED", "the reply is too large")

    def _headers(self, headers: dict[str, str]) -> None:
        http_status = headers.get(":status", "")
        if http_status:
            self._http_status = int(http_status) if _STATUS_CODE.fullmatch(http_status) else 0
        status = headers.get("grpc-status")
        if status is not None:
            known = _SMALL_NUMBER.fullmatch(status) and int(status) < len(STATUS_NAMES)
            words = _cut(unquote(headers.get("grpc-message", "")))
            self._end(CallEnd(STATUS_NAMES[int(status)] if known else "UNKNOWN", words))
        elif self._http_status != 200:
            status = _HTTP_TO_STATUS.get(self._http_status, "UNKNOWN")
            self._end(
                CallEnd(status, f"HTTP status {self._http_status}: this is not a gRPC server, or a proxy before it")
            )

    def _reset(self, code: ErrorCodes | int | None) -> None:
        status = _RESET_TO_STATUS.get(code, "INTERNAL") if isinstance(code, ErrorCodes) else "INTERNAL"
        name = code.name if isinstance(code, ErrorCodes) else str(code)
        self._local_open = False
        self.end = CallEnd(status, f"stream reset ({name})", untouched=code == ErrorCodes.REFUSED_STREAM)

    def _end(self, end: CallEnd) -> None:
        if self._local_open:
            # The rest of the body is not wanted, or not coming.
            self._local_open = False
            with contextlib.suppress(h2.exceptions.ProtocolError):  # the peer may have closed the stream already
                self._h2.reset_stream(self._stream, ErrorCodes.CANCEL)
            if end.status == "OK":
                end = CallEnd("CANCELLED", "the backend answered before the whole body was sent")
        self.end = end


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _cut(words: str) -> str:
    return words if len(words) <= _MOST_WORDS else words[:_MOST_WORDS] + "…"
