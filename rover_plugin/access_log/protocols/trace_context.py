# SPDX-License-Identifier: Apache-2.0
"""Trace identifiers in request headers, the same for HTTP/1 and HTTP/2.

Looked up in this order, the first valid one wins, a malformed one does not hide the next:

| header | format | provider | trace id | segment id | span id |
|---|---|---|---|---|---|
| `sw8` | SkyWalking cross-process propagation v3 | skywalking | field 1 | field 2 | field 3 |
| `b3` | `{trace}-{span}[-{sampled}[-{parent}]]` | zipkin | trace | (empty) | span |
| `x-b3-traceid`, `x-b3-spanid` | B3 multiple headers | zipkin | trace | (empty) | span |
| `traceparent` | W3C Trace Context level 1 §3.2 | zipkin | trace-id | (empty) | parent-id |

The backend's enum knows these two providers only; W3C identifiers have Zipkin's shape (hex, 128 and 64 bits), so that
is where they go. A `b3` that only carries a sampling decision (`b3: 0`) names no trace and is skipped.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import TYPE_CHECKING

from rover_plugin.access_log.model import TraceContext

if TYPE_CHECKING:
    from collections.abc import Callable

SKYWALKING = "skywalking"
ZIPKIN = "zipkin"

HEADER_NAMES = (b"sw8", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"traceparent")
"""Every header name `extract` asks for, in lower case."""

# sample-trace-segment-span-service-instance-endpoint-peer; the six strings are base64, the last four may be empty.
_SW8 = re.compile(
    rb"[01]-([A-Za-z0-9+/]+={0,2})-([A-Za-z0-9+/]+={0,2})-([0-9]{1,10})"
    rb"-([A-Za-z0-9+/]*={0,2})-([A-Za-z0-9+/]*={0,2})-([A-Za-z0-9+/]*={0,2})-([A-Za-z0-9+/]*={0,2})"
)
_B3 = re.compile(rb"([0-9a-fA-F]{16}(?:[0-9a-fA-F]{16})?)-([0-9a-fA-F]{16})(?:-[01d](?:-[0-9a-fA-F]{16})?)?")
_TRACE_ID = re.compile(rb"[0-9a-fA-F]{16}(?:[0-9a-fA-F]{16})?")
_SPAN_ID = re.compile(rb"[0-9a-fA-F]{16}")
# A version above 00 may append fields (§3.2.4); ff is forbidden, and so are identifiers of zeros only.
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def extract(header: Callable[[bytes], bytes | None]) -> TraceContext | None:
    """The first valid trace context of a request.

    Args:
        header: gives a header's value by its lower-case name, or `None`; a mapping's `get` will do.
    """
    value = header(b"sw8")
    if value is not None and (found := _sw8(value)) is not None:
        return found
    value = header(b"b3")
    if value is not None and (match := _B3.fullmatch(value)) is not None:
        return TraceContext(ZIPKIN, match[1].decode(), "", match[2].decode())
    trace_id = header(b"x-b3-traceid")
    if trace_id is not None and _TRACE_ID.fullmatch(trace_id):
        span_id = header(b"x-b3-spanid")
        if span_id is not None and _SPAN_ID.fullmatch(span_id):
            return TraceContext(ZIPKIN, trace_id.decode(), "", span_id.decode())
    value = header(b"traceparent")
    if value is not None and (match := _TRACEPARENT.fullmatch(value)) is not None:
        version, trace_id, span_id, more = match.groups()
        if version != b"00" or more is None:
            return TraceContext(ZIPKIN, trace_id.decode(), "", span_id.decode())
    return None


def _sw8(value: bytes) -> TraceContext | None:
    match = _SW8.fullmatch(value)
    if match is None:
        return None
    trace, segment, span, service, instance, endpoint, peer = match.groups()
    if (len(service) | len(instance) | len(endpoint) | len(peer)) & 3:  # base64 comes in fours
        return None
    try:
        return TraceContext(SKYWALKING, a2b_base64(trace).decode(), a2b_base64(segment).decode(), span.decode())
    except (Base64Error, UnicodeDecodeError):
        return None
