# SPDX-License-Identifier: Apache-2.0
"""Where redacted bytes go: a call carries its own output, and what spans calls is spread over their outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rover_plugin.access_log.model import Call

if TYPE_CHECKING:
    from collections.abc import Iterable

# All bytes but blanks and line ends become the filler.
_BLANKS = b"\t\n\r "
_FILL = bytes(byte if byte in _BLANKS else ord("x") for byte in range(256))

Piece = tuple[bytearray, int, int]
"""An output, and from where to where in it."""


@dataclass(slots=True)
class RecordedCall(Call):
    """A call and what will be recorded of its bytes: zeros, until somebody knows what may be seen of them."""

    out: bytearray = field(default_factory=bytearray)


def place(call: Call, data: bytes) -> tuple[bytearray, int]:
    """The output of a call, and where in it the output of `data` begins, which is the end of the call's bytes."""
    if isinstance(call, RecordedCall) and len(call.out) >= len(data):
        return call.out, len(call.out) - len(data)
    return bytearray(len(data)), 0


def spread(pieces: Iterable[Piece], text: bytes) -> None:
    """Writes `text` over the pieces, one after the other."""
    at = 0
    for out, start, end in pieces:
        size = min(end - start, len(text) - at)
        out[start : start + size] = text[at : at + size]
        at += size


def part(pieces: Iterable[Piece], start: int, stop: int) -> list[Piece]:
    """The pieces of what is from `start` to `stop` in the pieces' bytes."""
    found = []
    at = 0
    for out, begin, end in pieces:
        size = end - begin
        low, high = max(start - at, 0), min(stop - at, size)
        if low < high:
            found.append((out, begin + low, begin + high))
        at += size
    return found


def fill(text: bytes) -> bytes:
    """Filler as long as `text`, with its blanks and line ends."""
    return text.translate(_FILL)
