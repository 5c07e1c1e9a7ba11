# SPDX-License-Identifier: Apache-2.0
"""What the bytes of a call record are: the call's first bytes, or its framing alone, in parts (bpf/walk.h)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.protocols.analyzer import Part
from rover_plugin.capture.records import CHUNKS, HOW_CHUNKS, HOW_PIECES, PIECE

if TYPE_CHECKING:
    from collections.abc import Sequence

IN_PARTS: Final = HOW_PIECES | HOW_CHUNKS
"""Flags of records whose bytes are not simply the call's first ones."""


def copied(flags: int, captured: bytes) -> list[slice]:
    """Where in a record's `captured` bytes are bytes of the call, in order; the others say how many are missing."""
    if not flags & IN_PARTS:
        return [slice(0, len(captured))]
    if flags & HOW_CHUNKS:
        end = len(captured) - CHUNKS.size
        front = CHUNKS.unpack_from(captured, end)[0]
        return [slice(0, front), slice(front, end)]
    found = []
    at = 0
    while at < len(captured):
        start = at + PIECE.size
        at = start + PIECE.unpack_from(captured, at)[1]
        found.append(slice(start, at))
    return found


def unpack(flags: int, size: int, offset: int, captured: bytes) -> tuple[bytes, int, Sequence[Part]]:
    """What an analyser is given of a call: first bytes, how many unseen ones follow, and parts (`Analyzer.receive`).

    Args:
        flags: of the record.
        size: bytes that the call moved.
        offset: how many of its first bytes were left out.
        captured: what follows the record's header.
    """
    where = copied(flags, captured)
    rest = size - offset - sum(found.stop - found.start for found in where)
    parts = []
    if flags & HOW_PIECES:
        holes = [PIECE.unpack_from(captured, found.start - PIECE.size)[0] for found in where]
        if holes:
            offset += holes[0]
        holes.append(size - offset - sum(holes[1:]) - sum(found.stop - found.start for found in where))
        parts = [Part(captured[found], hole) for found, hole in zip(where, holes[1:], strict=True)]
    elif flags & HOW_CHUNKS:
        _, unseen, content, left = CHUNKS.unpack_from(captured, where[1].stop)
        parts = [Part(captured[where[0]], unseen, content, left), Part(captured[where[1]], rest - unseen)]
    else:
        parts = [Part(captured, rest)]
    if offset or not parts:
        return b"", offset if parts else size, parts
    first, *others = parts
    if first.content >= 0:
        return first.data, 0, [replace(first, data=b""), *others]
    return first.data, first.unseen, others
