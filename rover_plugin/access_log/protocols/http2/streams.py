# SPDX-License-Identifier: Apache-2.0
"""One HTTP/2 stream becomes one exchange (RFC 9113 §5, §8): what has been seen of it, and how its end is labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from rover_plugin.access_log.model import TraceContext
from rover_plugin.access_log.protocols.http2.hpack import SW8_BY_SHAPE, TRACEPARENT_BY_SHAPE
from rover_plugin.access_log.protocols.trace_context import extract

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Completeness, Exchange
    from rover_plugin.access_log.protocols.http2.hpack import Fields

# Bits of Stream.seen.
REQUEST_HEAD: Final = 1
REQUEST_END: Final = 2
RESPONSE_HEAD: Final = 4
RESPONSE_END: Final = 8
BOTH_ENDS: Final = REQUEST_END | RESPONSE_END
DONE: Final = 16  # the exchange is out
SHORT: Final = 32  # a side ended with less content than it had announced

RequestHead = tuple[str | None, str | None, str | None, TraceContext | None, int]
"""Method, path without query and fragment, host, trace context, announced size of the content (-1 if none is)."""

ResponseHead = tuple[int | None, int | None, str | None, int]
"""Status, gRPC status, gRPC message, announced size of the content (-1 if none is)."""


class Stream:
    """A stream that has not ended yet.

    Attributes:
        id: stream identifier.
        exchange: what the log will get.
        seen: which parts went by (the bits above).
        label: what `exchange.completeness` becomes unless it stays COMPLETE.
        request_length, response_length: sizes of the content as announced, -1 if none is.
        request_losses, response_losses: `Half.losses` of each side when the stream began, or when its head came.
    """

    __slots__ = (
        "exchange", "id", "label", "request_length", "request_losses", "response_length", "response_losses", "seen",
    )  # fmt: skip

    def __init__(self, stream_id: int, exchange: Exchange) -> None:
        self.id = stream_id
        self.exchange = exchange
        self.seen = 0
        self.label: Completeness | None = None
        self.request_length = self.response_length = -1
        self.request_losses = self.response_losses = 0


def read_request(fields: Fields) -> RequestHead:
    """What a request's header block says. A host in `:authority` goes before `host` (RFC 9113 §8.3.1)."""
    method = fields.get(b":method") or None
    path = fields.get(b":path")
    host = fields.get(b":authority") or fields.get(b"host")
    # Anything beyond these three may be a trace header.
    more = len(fields) > 3 or path is None or host is None or method is None
    return method, path, host, extract(fields.get) if more else None, fields.get(b"content-length", -1)


def read_response(fields: Fields) -> ResponseHead:
    """What a block of a response says: interim response, head or trailers."""
    status, length = fields.get(b":status"), fields.get(b"content-length", -1)
    if b"grpc-status" not in fields and b"grpc-message" not in fields:
        return status, None, None, length
    code = fields.get(b"grpc-status", -1)
    message = fields.get(b"grpc-message")
    return status, code if 0 <= code < 10**9 else None, None if message is None else unquote(message), length


def take_request(stream: Stream, head: RequestHead, size: int) -> None:
    """Gives the stream its request head, or, if it has one, counts the block as its trailers."""
    exchange = stream.exchange
    exchange.request_header_bytes += size
    if not stream.seen & REQUEST_HEAD:
        stream.seen |= REQUEST_HEAD
        exchange.method, exchange.path, exchange.host, exchange.trace, stream.request_length = head


def take_response(stream: Stream, head: ResponseHead, size: int) -> None:
    """Gives the stream its response head or trailers. Interim responses (1xx) leave no trace.

    A block without a status before any with one is a head whose status is unknown, or trailers of a head that went by
    unseen.
    """
    status, grpc_status, message, length = head
    exchange = stream.exchange
    if status is not None:
        if status < 200:
            return
        exchange.status = status
        stream.response_length = length
    stream.seen |= RESPONSE_HEAD
    exchange.response_header_bytes += size
    if grpc_status is not None:
        exchange.grpc_status = grpc_status
    if message is not None:
        exchange.grpc_message = message


def label_unknown(stream: Stream, fields: Fields, label: Completeness, *, is_request: bool, ends: bool) -> None:
    """After a block with unknown fields: labels the exchange if it misses one of them.

    A trace context whose field name is unknown is known by the shape of its value only, so it is labelled, too. What
    ends the response of a POST may have said a gRPC status.
    """
    exchange = stream.exchange
    if is_request:
        missing = exchange.method is None or exchange.host is None
        missing = missing or (exchange.path is None and exchange.method != "CONNECT")
        if exchange.trace is None:
            by_shape = {b"sw8": fields.get(SW8_BY_SHAPE), b"traceparent": fields.get(TRACEPARENT_BY_SHAPE)}
            exchange.trace = extract(by_shape.get)
            missing = missing or exchange.trace is not None
    else:
        missing = exchange.status is None
        if ends and exchange.method in {"POST", None}:
            missing = missing or exchange.grpc_status is None
            missing = missing or (exchange.grpc_status != 0 and exchange.grpc_message is None)
    if missing and stream.label is None:
        stream.label = label
