# SPDX-License-Identifier: Apache-2.0
"""One HTTP/2 stream becomes one exchange (RFC 9113 §5, §8): what has been seen of it, and how its end is labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from rover_plugin.access_log.protocols.http2.hpack import SW8_BY_SHAPE, TRACEPARENT_BY_SHAPE
from rover_plugin.access_log.protocols.trace_context import HEADER_NAMES, extract

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Completeness, Exchange

# Bits of Stream.seen.
REQUEST_HEAD: Final = 1
REQUEST_END: Final = 2
RESPONSE_HEAD: Final = 4
RESPONSE_END: Final = 8
BOTH_ENDS: Final = REQUEST_END | RESPONSE_END
REQUEST_LOSS: Final = 16  # bytes of this side were lost while the stream was open
RESPONSE_LOSS: Final = 32
DONE: Final = 64  # the exchange is out

_STATUS = {str(code).encode(): code for code in range(100, 600)}
_METHOD = {m.encode(): m for m in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT")}
_TRACE_NAMES = frozenset((*HEADER_NAMES, TRACEPARENT_BY_SHAPE, SW8_BY_SHAPE))


class Stream:
    """A stream that has not ended yet.

    Attributes:
        id: stream identifier.
        exchange: what the log will get.
        seen: which parts went by (the bits above).
        label: what `exchange.completeness` becomes unless it stays COMPLETE.
        report_ns: when a long-lived stream is next worth a report.
    """

    __slots__ = ("exchange", "id", "label", "report_ns", "seen")

    def __init__(self, stream_id: int, exchange: Exchange) -> None:
        self.id = stream_id
        self.exchange = exchange
        self.seen = 0
        self.label: Completeness | None = None
        self.report_ns = 0


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def read_request(stream: Stream, fields: dict[bytes, bytes], unknown: Completeness | None) -> None:
    """Takes the fields of a request's header block.

    Args:
        stream: whose request it is.
        fields: the wanted ones.
        unknown: why some fields of this block are unknown; None if all are known.
    """
    exchange = stream.exchange
    stream.seen |= REQUEST_HEAD
    method = fields.get(b":method")
    if method is not None:
        exchange.method = _METHOD.get(method) or _text(method)
    path = fields.get(b":path")
    if path is not None:
        exchange.path = _text(path).partition("?")[0].partition("#")[0]
    host = fields.get(b":authority") or fields.get(b"host")
    if host is not None:
        exchange.host = _text(host)
    if not _TRACE_NAMES.isdisjoint(fields):
        exchange.trace = extract(fields.get)
    if unknown is not None:
        _read_trace_by_shape(stream, fields, unknown)
        if method is None or host is None or (path is None and method != b"CONNECT"):
            stream.label = stream.label or unknown


def _read_trace_by_shape(stream: Stream, fields: dict[bytes, bytes], unknown: Completeness) -> None:
    """Takes a trace context whose field name is unknown: only the shape of its value says what it is, so it is labelled."""
    by_shape = {b"sw8": fields.get(SW8_BY_SHAPE), b"traceparent": fields.get(TRACEPARENT_BY_SHAPE)}
    if stream.exchange.trace is None:
        stream.exchange.trace = extract(by_shape.get)
        if stream.exchange.trace is not None:
            stream.label = stream.label or unknown


def read_response(stream: Stream, fields: dict[bytes, bytes], unknown: Completeness | None) -> bool:
    """Takes the fields of a block of the response: interim response, head or trailers.

    Returns:
        Whether the block counts as header bytes of the response; an interim one does not.
    """
    exchange = stream.exchange
    status = fields.get(b":status")
    if status is not None:
        code = _STATUS.get(status)
        if code is not None and code < 200:
            return False
        exchange.status = code
        stream.seen |= RESPONSE_HEAD
    elif not stream.seen & RESPONSE_HEAD:
        # Without a status this is a head whose status is unknown, or trailers of a head that went by unseen.
        stream.seen |= RESPONSE_HEAD
        if unknown is not None:
            stream.label = stream.label or unknown
    grpc_status = fields.get(b"grpc-status")
    if grpc_status is not None:
        exchange.grpc_status = int(grpc_status) if grpc_status.isdigit() and len(grpc_status) < 10 else None
    grpc_message = fields.get(b"grpc-message")
    if grpc_message is not None:
        exchange.grpc_message = _text(unquote_to_bytes(grpc_message))
    return True
