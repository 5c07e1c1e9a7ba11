# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the HTTP/2 analyser. See README.md beside this file.

Run: python -m tests.fuzz.fuzz_http2 [libFuzzer options] [corpus folders]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if __name__ == "__main__":
    import atheris

    # What is to be covered must be imported here first.
    with atheris.instrument_imports(include=["rover_plugin.access_log.protocols"]):
        import rover_plugin.access_log.protocols.http2  # noqa: F401

from rover_plugin.access_log.model import Call, Exchange, Operation, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from rover_plugin.access_log.protocols.http2 import analyzer as limits
from rover_plugin.access_log.protocols.http2.resync import KEPT_BYTES, KEPT_CALLS

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first byte: flags, and above them the size of cuts.
JOINED, UPGRADED = 1, 2
# What a step's first byte says; its lowest bit is the side.
BYTES, UNSEEN, GAP, RECORDED, ENDLESS_GAP, EXPIRE = 0, 2, 4, 6, 8, 10
_ERRORS = frozenset({
    "frame_size", "frame_order", "padding", "header_block_size", "no_preface", "streams", "gap", "gave_up",
    "hpack_index", "hpack_table_size", "hpack_truncated", "hpack_huffman", "hpack_integer",
})  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One thing that happens to the connection."""

    kind: int
    side: Side
    data: bytes = b""
    size: int = 0


def read_steps(data: bytes) -> tuple[int, list[Step]]:
    """The flags and steps that fuzzer input stands for: a flag byte, then steps of kind, length (2 bytes) and bytes."""
    steps = []
    at = 1
    while at + 3 <= len(data):
        kind, side = data[at] % 12 & ~1, Side(data[at] & 1)
        size = int.from_bytes(data[at + 1 : at + 3])
        at += 3
        if kind in {BYTES, UNSEEN}:
            taken = data[at : at + size]
            at += size
            steps.append(Step(kind, side, taken, len(taken) * 3 + 1 if kind == UNSEEN else 0))
        else:
            steps.append(Step(kind, side, b"", size))
    return data[0] if data else 0, steps


def write_steps(flags: int, steps: list[Step]) -> bytes:
    """The inverse, for seeds made of recorded connections."""
    parts = [bytes((flags,))]
    for step in steps:
        if step.kind in {BYTES, UNSEEN}:
            for at in range(0, len(step.data), 0xFFFF):
                part = step.data[at : at + 0xFFFF]
                parts.append(bytes((step.kind | step.side,)) + len(part).to_bytes(2) + part)
        else:
            parts.append(bytes((step.kind | step.side,)) + step.size.to_bytes(2))
    return b"".join(parts)


def _cut(steps: list[Step], size: int) -> Iterator[Step]:
    for step in steps:
        for at in range(0, len(step.data), size):
            yield Step(BYTES, step.side, step.data[at : at + size])


def analyze(flags: int, steps: Iterator[Step] | list[Step]) -> tuple[list[Exchange], dict[str, int]]:
    """Runs the analyser over the steps; checks what holds for any bytes."""
    calls: list[Call] = []
    upgraded = Exchange(1, method="GET", path="/", host="h") if flags & UPGRADED and not flags & JOINED else None
    analyzer = Http2Analyzer(joined=bool(flags & JOINED), upgraded=upgraded)
    now = 0
    for step in steps:
        now += 10
        if step.kind in {BYTES, UNSEEN}:
            operation = Operation.READ if step.side is Side.REQUEST else Operation.WRITE
            call = Call(operation, 0, now - 5, now, len(step.data) + step.size)
            calls.append(call)
            analyzer.receive(step.side, call, step.data, step.size)
        elif step.kind == EXPIRE:
            analyzer.expire(now - step.size)
        elif step.kind == ENDLESS_GAP:
            analyzer.gap(step.side, -1)
        else:
            analyzer.gap(step.side, step.size + 1, recorded=step.kind == RECORDED)
        assert analyzer.unneeded(step.side) >= -1
        if now % 160 == 0:
            check_bounds(analyzer)
    check_bounds(analyzer)
    analyzer.close(now)
    out = [id(call) for exchange in analyzer.exchanges for call in exchange.calls]
    out += [id(call) for call in analyzer.loose]
    assert sorted(out) == sorted(map(id, calls)), "a call came out twice or never"
    assert analyzer.errors.keys() <= _ERRORS, analyzer.errors
    for exchange in analyzer.exchanges:
        check_exchange(exchange)
    return analyzer.exchanges, analyzer.errors


def check_bounds(analyzer: Http2Analyzer) -> None:
    """What is kept is bounded."""
    assert len(analyzer._streams) <= limits.MAX_STREAMS
    assert len(analyzer._closed) <= limits.MAX_CLOSED
    for direction in analyzer._directions:
        assert len(direction.partial) <= limits.MAX_HEADER_BLOCK
        assert direction.block is None or len(direction.block) <= limits.MAX_HEADER_BLOCK
        assert len(direction.settings_sent) <= limits.MAX_SETTINGS_SENT
        assert direction.decoder.size <= direction.decoder.room
        if direction.seeker is not None:
            assert len(direction.seeker.segments) <= KEPT_CALLS
            largest = max((len(segment.data) for segment in direction.seeker.segments), default=0)
            assert direction.seeker._kept <= KEPT_BYTES + largest


def check_exchange(exchange: Exchange) -> None:
    """What holds for every exchange."""
    sizes = (exchange.request_header_bytes, exchange.request_body_bytes)
    sizes += (exchange.response_header_bytes, exchange.response_body_bytes)
    assert min(sizes) >= 0, exchange
    assert exchange.status is None or 100 <= exchange.status < 600
    assert exchange.path is None or not {"?", "#"} & set(exchange.path)
    assert exchange.end_ns >= exchange.start_ns or not exchange.calls


def _said(exchanges: list[Exchange]) -> list[tuple[object, ...]]:
    return [
        (
            e.stream_id, e.method, e.path, e.host, e.status, e.grpc_status, e.grpc_message, e.completeness,
            e.request_header_bytes, e.request_body_bytes, e.response_header_bytes, e.response_body_bytes,
        )
        for e in exchanges
    ]  # fmt: skip


def test_one_input(data: bytes) -> None:
    """One input: never an exception, and without losses it does not matter where calls cut the bytes."""
    flags, steps = read_steps(data)
    exchanges, errors = analyze(flags, steps)
    if not flags & JOINED and not errors and all(step.kind == BYTES for step in steps):
        cut_exchanges, cut_errors = analyze(flags, _cut(steps, (flags >> 2) % 32 + 1))
        assert not cut_errors
        assert _said(exchanges) == _said(cut_exchanges)


def main() -> None:
    """Fuzzes until stopped."""
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
