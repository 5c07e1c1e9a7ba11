# SPDX-License-Identifier: Apache-2.0
"""Whether bytes have the shape of HTTP/2 frames, for connections whose preface was never seen.

Stateless on purpose: nothing but the bytes of one call, no HPACK tables. So it only accepts what other protocols and
ciphertext do not produce by accident: frames valid by RFC 9113 §4.1 and §6 that end where the call ends, among them a
HEADERS frame with a complete, well-formed block (RFC 7541 §6) that has a pseudo-header field.
"""

from __future__ import annotations

from enum import Enum


class Speaker(Enum):
    """Who sent the frames."""

    CLIENT = 1
    SERVER = 2
    UNKNOWN = 3  # frames so far, but no proof
    NOBODY = 4  # not frames


_DEFAULT_MAX_FRAME = 16_384
_MAX_INDEX = 61 + 65_536 // 32  # a dynamic table of 64 KB, entries of 32 bytes (RFC 7541 §4.1)

# Static table indexes (RFC 7541 appendix A): pseudo-header fields, each by its first entry, then the others.
_FIRST_REGULAR = 15
_SCHEME = 6
_STATUS = 8
_PSEUDO_FIELDS = (0, 1, 2, 2, 4, 4, _SCHEME, _SCHEME, *[_STATUS] * 7)
_LAST_STATIC = 61

_PADDED = 0x08
_PRIORITY = 0x20
_END_HEADERS = 0x04
_ACK = 0x01

# Frame type: (flags it may have, whether its stream is 0 (False), not 0 (True) or either (None)); RFC 9113 §6, and
# ALTSVC (RFC 7838), ORIGIN (RFC 8336), PRIORITY_UPDATE (RFC 9218).
_TYPES: dict[int, tuple[int, bool | None]] = {
    0x0: (0x09, True),  # DATA
    0x1: (0x2D, True),  # HEADERS
    0x2: (0x00, True),  # PRIORITY
    0x3: (0x00, True),  # RST_STREAM
    0x4: (0x01, False),  # SETTINGS
    0x5: (0x0C, True),  # PUSH_PROMISE
    0x6: (0x01, False),  # PING
    0x7: (0x00, False),  # GOAWAY
    0x8: (0x00, None),  # WINDOW_UPDATE
    0x9: (0x04, True),  # CONTINUATION
    0xA: (0x00, None),
    0xC: (0x00, False),
    0x10: (0x00, False),
}
_EXACT_SIZES = {0x2: 5, 0x3: 4, 0x6: 8, 0x8: 4}

# Lowest and highest value of ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE (RFC 9113 §6.5.2) and
# ENABLE_CONNECT_PROTOCOL (RFC 8441 §3). Stacks add identifiers of their own: gRPC's C core sends 0xFE03.
_SETTING_VALUES = {0x2: (0, 1), 0x4: (0, 0x7FFFFFFF), 0x5: (16_384, 0xFFFFFF), 0x8: (0, 1)}
_ANY_VALUE = (0, 0xFFFFFFFF)


def judge_frames(data: bytes, unseen: int = 0) -> Speaker:
    """Who sent these frames, if they are frames.

    Args:
        data: captured bytes, from the beginning of a call.
        unseen: bytes of the same call that follow but were not copied.
    """
    position = 0
    size = len(data)
    speaker = Speaker.UNKNOWN
    while position < size:
        if size - position < 9:
            # A cut frame header proves nothing more; what is there must still be possible.
            return Speaker.UNKNOWN if speaker is Speaker.UNKNOWN and data[position] == 0 else Speaker.NOBODY
        length = int.from_bytes(data[position : position + 3], "big")
        kind = data[position + 3]
        flags = data[position + 4]
        stream = int.from_bytes(data[position + 5 : position + 9], "big")
        payload = data[position + 9 : position + 9 + length]
        if not _valid(length, kind, flags, stream, payload):
            return Speaker.NOBODY
        position += 9 + length
        if kind == 0x1 and len(payload) == length and flags & _END_HEADERS:
            if not stream & 1:
                return Speaker.NOBODY  # streams of pushed responses are no place to begin
            found = _judge_headers(payload, flags)
            if found is Speaker.NOBODY or (Speaker.UNKNOWN not in (found, speaker) and found is not speaker):
                return Speaker.NOBODY
            if found is not Speaker.UNKNOWN:
                speaker = found
    if position == size + unseen:
        return speaker
    return Speaker.UNKNOWN if position > size and not unseen else Speaker.NOBODY


def _valid(length: int, kind: int, flags: int, stream: int, payload: bytes) -> bool:
    rule = _TYPES.get(kind)
    if rule is None or length > _DEFAULT_MAX_FRAME or stream >> 31:
        return False
    allowed, on_stream = rule
    if flags & ~allowed or (on_stream is not None and (stream != 0) is not on_stream):
        return False
    if length != _EXACT_SIZES.get(kind, length):
        return False
    if kind == 0x4:
        return length % 6 == 0 and not (flags & _ACK and length) and _valid_settings(payload)
    if kind == 0x7:
        return length >= 8
    if kind == 0x8:
        return payload[:1] < b"\x80" and (len(payload) < 4 or any(payload))
    return not (kind in (0x1, 0x5) and length == 0)


def _valid_settings(payload: bytes) -> bool:
    """Values are those a sender may choose (RFC 9113 §6.5.2); identifiers nobody knows are ignored, as receivers do."""
    for at in range(0, len(payload) - 5, 6):
        lowest, highest = _SETTING_VALUES.get(int.from_bytes(payload[at : at + 2]), _ANY_VALUE)
        if not lowest <= int.from_bytes(payload[at + 2 : at + 6]) <= highest:
            return False
    return True


def _judge_headers(payload: bytes, flags: int) -> Speaker:
    """Walks a whole header block without tables."""
    start = 0
    end = len(payload)
    if flags & _PADDED:
        start = 1
        end -= payload[0]
    if flags & _PRIORITY:
        start += 5
    if start >= end:
        return Speaker.NOBODY
    block = payload[start:end]
    position = 0
    pseudo: set[int] = set()
    regular = False
    while position < len(block):
        byte = block[position]
        if byte & 0x80:
            index, position = _integer(block, position, 7)
            if index == 0:
                return Speaker.NOBODY
        elif byte & 0xE0 == 0x20:  # table size update: only at the beginning of a block (RFC 7541 §4.2)
            size, position = _integer(block, position, 5)
            if position < 0 or size > 1 << 20 or pseudo or regular:
                return Speaker.NOBODY
            continue
        else:
            index, position = _integer(block, position, 6 if byte & 0x40 else 4)
            for _ in range(1 if index else 2):
                if 0 <= position < len(block):
                    length, position = _integer(block, position, 7)
                    position = position + length if position >= 0 else -1
                else:
                    position = -1
        if not 0 <= position <= len(block) or index > _MAX_INDEX:
            return Speaker.NOBODY
        if 1 <= index < _FIRST_REGULAR and regular:  # RFC 9113 §8.3: pseudo-header fields come first
            return Speaker.NOBODY
        regular = regular or index == 0 or _FIRST_REGULAR <= index <= _LAST_STATIC
        if 1 <= index < _FIRST_REGULAR:
            field = _PSEUDO_FIELDS[index]
            if field in pseudo:
                return Speaker.NOBODY
            pseudo.add(field)
    if _STATUS in pseudo:
        return Speaker.SERVER if len(pseudo) == 1 else Speaker.NOBODY
    # The scheme is in no encoder's dynamic table: both are static entries.
    return Speaker.CLIENT if _SCHEME in pseudo else Speaker.UNKNOWN


def _integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """An integer with an N-bit prefix (RFC 7541 §5.1) and the position after it, -1 if it is cut or too long."""
    mask = (1 << prefix) - 1
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    shift = 0
    while position < len(block) and shift <= 21:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
    return value, -1
