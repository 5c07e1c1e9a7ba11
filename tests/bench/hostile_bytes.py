# SPDX-License-Identifier: Apache-2.0
"""CPU per 64 KB of bytes made to be expensive, next to ordinary requests in the same run.

    .venv/bin/python -m tests.bench.hostile_bytes

Ratios are what counts: none above 3.
"""

from __future__ import annotations

import gc
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rover_plugin.access_log.model import Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from tests.support.http2_conversation import PREFACE, Feeder, frame, seeded

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 65_536
ROUNDS = 5
MANY = 9000


@dataclass(frozen=True)
class Case:
    """A flood of one side's bytes.

    Attributes:
        flood: the bytes; one call's.
        side: whose they are.
        prepare: makes an analyser in the state in which they hurt most.
    """

    flood: bytes
    side: Side
    prepare: Callable[[], Feeder]


def integer(value: int, prefix: int, pattern: int = 0) -> bytes:
    """An HPACK integer (RFC 7541 §5.1)."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes((pattern | value,))
    out = [pattern | most]
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def string(value: bytes) -> bytes:
    """An HPACK string without Huffman coding (§5.2)."""
    return integer(len(value), 7) + value


def begun(table: int = 4096) -> Feeder:
    """A connection behind its preface and SETTINGS."""
    feeder = Feeder(Http2Analyzer(joined=False))
    limit = frame(4, 0, 0, struct.pack(">HI", 1, table))
    feeder.feed(Side.REQUEST, PREFACE + limit)
    feeder.feed(Side.RESPONSE, limit + frame(4, 1, 0))
    feeder.feed(Side.REQUEST, frame(4, 1, 0))
    return feeder


_REQUEST = b"\x02\x03GET\x86\x04\x0b/plain/path\x01\x0bexample.com"


def _requests(count: int, block: bytes = _REQUEST) -> bytes:
    return b"".join(frame(1, 5, 2 * number + 1, block) for number in range(count))


def _open(count: int) -> Feeder:
    feeder = begun()
    feeder.feed(Side.REQUEST, _requests(count, b"\x82\x84\x86"))
    return feeder


def _orphans() -> Feeder:
    feeder = begun()
    feeder.feed(Side.RESPONSE, b"".join(frame(1, 5, 200_001 + 2 * number, b"\x88") for number in range(MANY)))
    return feeder


def _full_table() -> Feeder:
    feeder = begun(1 << 20)
    feeder.feed(Side.REQUEST, frame(1, 5, 1, integer(1 << 20, 5, 0x20)))
    for number in range(1, 8):
        feeder.feed(Side.REQUEST, frame(1, 5, 2 * number + 1, b"\x40\0\0" * 5450))
    return feeder


def _lost(*, joined: bool = True) -> Feeder:
    feeder = Feeder(Http2Analyzer(joined=joined))
    feeder.analyzer.gap(Side.REQUEST, -1)
    return feeder


def _goaway(last: int) -> bytes:
    return frame(7, 0, 0, struct.pack(">II", last, 0))


_PINGS = frame(6, 0, 0, bytes(8)) * (SIZE // 17)
_RESETS = b"".join(frame(1, 5, n, b"\x82\x86\x84\x41\x01h") + frame(3, 0, n, b"\0\0\0\x08") for n in range(1, 4401, 2))
_MIXED = (frame(0, 0, 0, b"xx") + frame(8, 0, 0, b"\0\0\0\1") * 2 + frame(6, 0, 0, bytes(8))) * 1300

HTTP2 = {
    "ordinary requests": Case(_requests(1300), Side.REQUEST, begun),
    "inserts into a full table of 1 MB": Case(
        b"".join(frame(1, 5, 2 * n + 101, b"\x40\0\0" * 5450) for n in range(4)), Side.REQUEST, _full_table
    ),
    "references only": Case(b"".join(frame(1, 5, 2 * n + 1, b"\x82" * 16_000) for n in range(4)), Side.REQUEST, begun),
    "Huffman codes of 30 bits": Case(
        b"".join(
            frame(1, 5, 2 * n + 1, b"\x04" + integer(16_000, 7, 0x80) + b"\xff\xff\xff\xea" * 4000) for n in range(4)
        ),
        Side.REQUEST,
        begun,
    ),
    "GOAWAY, one limit": Case(_goaway(0x7FFFFFFF) * 3800, Side.RESPONSE, lambda: _open(MANY)),
    "GOAWAY, ever lower limits": Case(
        b"".join(_goaway(20_000 - n) for n in range(3800)), Side.RESPONSE, lambda: _open(MANY)
    ),
    "requests below 9000 orphaned responses": Case(_requests(1300), Side.REQUEST, _orphans),
    "requests when 10 000 are open": Case(
        b"".join(frame(1, 5, 40_001 + 2 * n, _REQUEST) for n in range(1300)), Side.REQUEST, lambda: _open(10_000)
    ),
    "SETTINGS": Case(frame(4, 0, 0, struct.pack(">HI", 1, 4096)) * 4300, Side.REQUEST, begun),
    "empty DATA": Case(frame(0, 0, 1) * 7000, Side.REQUEST, lambda: _open(1)),
    "empty CONTINUATION": Case(frame(1, 0, 1, b"\x82") + frame(9, 0, 1) * 7000, Side.REQUEST, begun),
    "PING": Case(_PINGS, Side.REQUEST, begun),
    "resets": Case(_RESETS, Side.REQUEST, begun),
    "random bytes": Case(seeded(9).randbytes(SIZE), Side.REQUEST, begun),
    "zeros": Case(bytes(SIZE), Side.REQUEST, begun),
    "zeros of the server": Case(bytes(SIZE), Side.RESPONSE, lambda: _open(1)),
    "ones": Case(b"\xff" * SIZE, Side.REQUEST, begun),
    "frames and breaches in turn": Case(_MIXED, Side.REQUEST, begun),
    "frames and breaches in turn, of the server": Case(_MIXED, Side.RESPONSE, lambda: _open(1)),
    "frames that are plausible and wrong": Case(frame(0, 8, 1, b"\xff\0") * 5900, Side.REQUEST, lambda: _open(1)),
    "requests and wrong frames in turn": Case(
        b"".join(frame(1, 5, n, b"\x82\x84\x86") + frame(0, 8, 1, b"\xff\0") for n in range(3, 5603, 2)),
        Side.REQUEST,
        lambda: _open(1),
    ),
    "frames that tile up to a breach": Case(_PINGS[:16_000] + b"\xff" * 12, Side.REQUEST, _lost),
    "frames that tile up to a breach, after a loss": Case(
        _PINGS[:16_000] + b"\xff" * 12, Side.REQUEST, lambda: _lost(joined=False)
    ),
}


def cost(case: Case) -> float:
    """Least CPU ms per 64 KB of the rounds."""
    results = []
    for _ in range(ROUNDS):
        feeder = case.prepare()
        gc.collect()
        began = time.process_time_ns()
        feeder.feed(case.side, case.flood)
        results.append((time.process_time_ns() - began) / 1e6 * SIZE / len(case.flood))
    return min(results)


def main() -> None:
    """Prints the table."""
    print("| bytes | ms per 64 KB | times ordinary |\n|---|---:|---:|")
    ordinary = cost(HTTP2["ordinary requests"])
    for name, case in HTTP2.items():
        spent = cost(case)
        print(f"| HTTP/2: {name} | {spent:.1f} | {spent / ordinary:.1f} |")


if __name__ == "__main__":
    main()
