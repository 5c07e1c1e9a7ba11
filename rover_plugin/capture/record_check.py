# SPDX-License-Identifier: Apache-2.0
"""Whether bytes of a foreign file are records that the kernel side could have written (bpf/records.h).

Records out of a ring are not checked: they cost microseconds each, and only our own programs write there.
"""

from __future__ import annotations

from typing import Final

from rover_plugin.capture.records import (
    CALL,
    CHUNKS,
    CLOSE,
    HEADER,
    HOW_CHUNKS,
    HOW_PIECES,
    MET,
    OPEN,
    OPEN_BEGINNINGS,
    PIECE,
    CallClass,
    OpenCause,
    RecordKind,
)

_DIRECTIONS: Final = 2
_FAMILIES: Final = (2, 10)  # AF_INET, AF_INET6
_LATEST_NS: Final = 1 << 62  # 146 years of CLOCK_MONOTONIC: sums of two still fit 64 bits with a sign


def check_record(data: memoryview, start: int, end: int) -> None:
    """Checks `data[start:end]`.

    Raises:
        ValueError: it is no record of this version.
    """
    length = end - start
    _require(length >= HEADER.size, "too short")
    kind, call, direction, flags, *_, enter_ns, exit_ns = HEADER.unpack_from(data, start)
    _require(max(enter_ns, exit_ns) < _LATEST_NS, "a time that cannot be")
    if kind == RecordKind.CALL:
        _require(call < len(CallClass) and direction < _DIRECTIONS, "an unknown call")
        _check_call(data, start, length, flags)
    elif kind == RecordKind.OPEN:
        _require(length >= (MET if flags & OPEN_BEGINNINGS else OPEN).size, "too short")
        family, cause = OPEN.unpack_from(data, start)[14:16]
        _require(family in _FAMILIES and cause < len(OpenCause), "an unknown address family or cause")
    else:
        _require(kind == RecordKind.CLOSE and length >= CLOSE.size, "an unknown kind, or too short")


def _check_call(data: memoryview, start: int, length: int, flags: int) -> None:
    _require(length >= CALL.size, "too short")
    size, offset, captured = CALL.unpack_from(data, start)[10:13]
    _require(captured <= length - CALL.size, "more bytes than there are")
    at = start + CALL.size
    if flags & HOW_PIECES:
        moved = _pieces(data, at, at + captured)
    elif flags & HOW_CHUNKS:
        _require(captured >= CHUNKS.size, "too short")
        front, unseen, content, _ = CHUNKS.unpack_from(data, at + captured - CHUNKS.size)
        _require(front <= captured - CHUNKS.size and content <= unseen, "chunks beyond their bytes")
        moved = captured - CHUNKS.size + unseen
    else:
        moved = captured
    _require(offset + moved <= size, "more bytes than the call moved")


def _pieces(data: memoryview, at: int, end: int) -> int:
    """Bytes of the call that pieces stand for."""
    moved = 0
    while at < end:
        _require(at + PIECE.size <= end, "a piece that is cut")
        unseen, length = PIECE.unpack_from(data, at)
        at += PIECE.size + length
        moved += unseen + length
    _require(at == end, "a piece that is cut")
    return moved


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise ValueError(otherwise)
