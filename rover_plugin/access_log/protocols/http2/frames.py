# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 frame layer: numbers, layouts and what makes nine bytes a plausible frame header (RFC 9113 §4, §6)."""

from __future__ import annotations

import re
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Length (24 bits) and kind (8 bits) read as one number, then flags, then the reserved bit and the stream id.
FRAME_HEADER: Final = struct.Struct(">IBI")
FRAME_HEADER_SIZE: Final = 9
STREAM_ID_MASK: Final = 0x7FFFFFFF

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9
ALTSVC: Final = 0xA  # RFC 7838
ORIGIN: Final = 0xC  # RFC 8336
PRIORITY_UPDATE: Final = 0x10  # RFC 9218

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

SETTINGS_HEADER_TABLE_SIZE: Final = 0x1
SETTINGS_MAX_FRAME_SIZE: Final = 0x5
DEFAULT_MAX_FRAME_SIZE: Final = 16_384
LARGEST_FRAME_SIZE: Final = 0xFFFFFF

_SETTING = struct.Struct(">HI")

# Flags defined for each kind; a known kind with any other flag is a reason for doubt while looking for a boundary.
_FLAGS = {
    DATA: END_STREAM | PADDED,
    HEADERS: END_STREAM | END_HEADERS | PADDED | HAS_PRIORITY,
    PRIORITY: 0,
    RST_STREAM: 0,
    SETTINGS: ACK,
    PUSH_PROMISE: END_HEADERS | PADDED,
    PING: ACK,
    GOAWAY: 0,
    WINDOW_UPDATE: 0,
    CONTINUATION: END_HEADERS,
    ALTSVC: 0,
    ORIGIN: 0,
    PRIORITY_UPDATE: 0,
}
_FIXED_LENGTH = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_ON_CONNECTION = frozenset({SETTINGS, PING, GOAWAY, ORIGIN, PRIORITY_UPDATE})
_ON_STREAM = frozenset({DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION})


def is_sound(kind: int, length: int, stream_id: int) -> bool:
    """Whether a frame header keeps the rules whose breach ends the connection (wrong size or stream for its kind).

    Unknown kinds are sound: receivers ignore them (§4.1).
    """
    if kind in _ON_STREAM:
        if not stream_id:
            return False
    elif kind in _ON_CONNECTION and stream_id:
        return False
    if kind == SETTINGS:
        return length % 6 == 0
    if kind == GOAWAY:
        return length >= 8
    return length == _FIXED_LENGTH.get(kind, length)


def is_plausible(kind: int, flags: int, length: int, stream_id: int, max_length: int) -> bool:
    """Whether nine bytes at an unknown place look like a frame header that a sane peer sends.

    Stricter than `is_sound`: only registered kinds, only defined flags, the reserved bit clear, no empty HEADERS.
    """
    defined = _FLAGS.get(kind)
    if defined is None or flags & ~defined or length > max_length or stream_id > STREAM_ID_MASK:
        return False
    if kind == SETTINGS and flags & ACK and length:
        return False
    if kind == HEADERS and not length:
        return False
    return is_sound(kind, length, stream_id)


OPENS_OR_FILLS: Final = frozenset({DATA, HEADERS, CONTINUATION})  # a client sends them on odd streams only (§5.1.1)


def plausible_header(*, from_client: bool) -> re.Pattern[bytes]:
    """Finds where `is_plausible` may hold, for lengths below 2^21, so that bytes that are no header cost no Python."""
    odd = b"".join(rb"\x%02x" % value for value in range(1, 256, 2))
    free, fixed = [], []
    for kind, defined in _FLAGS.items():
        if from_client and kind == PUSH_PROMISE:
            continue
        flags = b"".join(rb"\x%02x" % value for value in range(256) if not value & ~defined)
        stream = rb"\x00{4}" if kind in _ON_CONNECTION else rb"[\x00-\x7f][\s\S]{3}"
        if kind in _ON_STREAM:
            stream = rb"(?!\x00{4})" + stream
        if from_client and kind in OPENS_OR_FILLS:
            stream = rb"[\x00-\x7f][\s\S]{2}[%s]" % odd
        length = _FIXED_LENGTH.get(kind)
        rest = rb"\x%02x[%s]%s" % (kind, flags, stream)
        if length is None:
            free.append(rest)
        else:
            fixed.append(rb"\x%02x%s" % (length, rest))
    # A frame with a length of its own kind is short: nothing but its last byte differs.
    return re.compile(rb"(?=\x00\x00(?:%s)|[\x00-\x1f][\s\S]{2}(?:%s))" % (b"|".join(fixed), b"|".join(free)))


def parse_settings(payload: bytes) -> dict[int, int]:
    """The parameters of a SETTINGS payload; the last of a repeated one counts (§6.5.3)."""
    return {
        _SETTING.unpack_from(payload, at)[0]: _SETTING.unpack_from(payload, at)[1]
        for at in range(0, len(payload) - 5, 6)
    }


def content_range(kind: int, flags: int, data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the header block fragment is in a HEADERS or PUSH_PROMISE payload at `data[start:end]`.

    Leaves out pad length, padding, priority fields and the promised stream id. `data` may stop before `end`. An
    impossible pad length gives an empty range.
    """
    if flags & PADDED:
        if start >= min(end, len(data)):
            return end, end
        end -= data[start]
        start += 1
    if kind == HEADERS and flags & HAS_PRIORITY:
        start += 5
    elif kind == PUSH_PROMISE:
        start += 4
    return start, max(start, end)
