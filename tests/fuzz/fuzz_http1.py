# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of protocol detection and of the HTTP/1 analyser. See README.md beside this file.

Run: python -m tests.fuzz.fuzz_http1 [libFuzzer options] [corpus folders]
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if __name__ == "__main__":
    import atheris

    # What is to be covered must be imported here first.
    with atheris.instrument_imports(
        include=["rover_plugin.access_log.protocols", "rover_plugin.access_log.conversation"]
    ):
        import rover_plugin.access_log.conversation  # noqa: F401

from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Call, Completeness, Exchange, Operation, Role, Side
from rover_plugin.access_log.protocols import http1, http1_pairing
from rover_plugin.access_log.protocols.http1 import Http1Analyzer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The first byte: whether detection comes first, whether the beginning was missed, whether the client is watched.
DETECT, LATE, CLIENT = 1, 2, 4
# What a step's first byte says; its lowest bit is the side.
BYTES, UNSEEN, LOST, RECORDED, ENDLESS_GAP, EXPIRE, BYTE_BY_BYTE = range(0, 14, 2)

_MOST_SINGLE_BYTES = 400  # to keep the fuzzer fast
_MAX_UNDECIDED = 33
_HTTP1_ERRORS = frozenset({
    "http1_bad_chunk_end", "http1_bad_chunk_size", "http1_bad_content_length", "http1_bad_start_line",
    "http1_head_too_large", "http1_other_method", "http1_parked_bytes_lost", "http1_response_after_expiry",
    "http1_too_many_requests_outstanding", "http1_trailer_too_large", "http1_upgrade_in_shared_call",
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
        kind, side = data[at] % 14 & ~1, Side(data[at] & 1)
        size = int.from_bytes(data[at + 1 : at + 3])
        at += 3
        if kind in {BYTES, UNSEEN, BYTE_BY_BYTE}:
            taken = data[at : at + size]
            at += size
            if kind == BYTE_BY_BYTE:
                taken = taken[:_MOST_SINGLE_BYTES]
            steps.append(Step(kind, side, taken, len(taken) * 3 + 1 if kind == UNSEEN else 0))
        else:
            steps.append(Step(kind, side, b"", size))
    return data[0] if data else 0, steps


def write_steps(flags: int, steps: Iterable[Step]) -> bytes:
    """The inverse, for seeds."""
    parts = [bytes((flags,))]
    for step in steps:
        size = len(step.data) if step.data else step.size
        parts.append(bytes((step.kind | step.side,)) + size.to_bytes(2) + step.data)
    return b"".join(parts)


class _Subject:
    """An analyser, or a conversation that finds one first: the same few verbs for both."""

    def __init__(self, flags: int) -> None:
        client = bool(flags & CLIENT)
        self.reads = Side.RESPONSE if client else Side.REQUEST
        self.whole = None
        if flags & DETECT:
            role = Role.UNKNOWN if flags & LATE else Role.CLIENT if client else Role.SERVER
            self.whole = Conversation(role)
        else:
            self.analyzer = Http1Analyzer(late_join=bool(flags & LATE))

    def receive(self, side: Side, call: Call, data: bytes, unseen: int) -> None:
        if self.whole is not None:
            self.whole.receive(int(side is not self.reads), call, data, unseen)
        elif self.analyzer.handover is None:
            self.analyzer.receive(side, call, data, unseen)
        else:
            self.analyzer.loose.append(call)

    def gap(self, side: Side, size: int, *, recorded: bool) -> None:
        if self.whole is not None:
            self.whole.gap(int(side is not self.reads), size, recorded=recorded)
        elif self.analyzer.handover is None:
            self.analyzer.gap(side, size, recorded=recorded)

    def expire(self, before_ns: int) -> None:
        (self.whole or self.analyzer).expire(before_ns)

    def close(self, now_ns: int) -> tuple[list[Exchange], Counter[int], dict[str, int]]:
        """What came out: exchanges, how often each call (by identity), errors."""
        said = self.whole or self.analyzer
        said.close(now_ns)
        out = Counter(id(call) for exchange in said.exchanges for call in exchange.calls)
        out.update(id(call) for call in said.loose)
        if self.whole is not None:
            out.update(id(call) for _, calls in self.whole.earlier for call in calls)
        handover = None if self.whole is not None else self.analyzer.handover
        if handover is not None:
            out.update(id(piece.call) for piece in handover.rest)
            if handover.upgraded is not None:
                out.update(id(call) for call in handover.upgraded.calls)
        return said.exchanges, out, said.errors

    def check_bounds(self) -> None:
        """What is kept is bounded."""
        analyzer = self.analyzer if self.whole is None else self.whole._analyzer
        if self.whole is not None:
            assert len(self.whole._waiting) <= _MAX_UNDECIDED
            if self.whole._detector is not None:
                assert all(len(way.pending) <= 2048 for way in self.whole._detector._ways)
        if not isinstance(analyzer, Http1Analyzer):
            return
        for half in (analyzer._request, analyzer._response):
            assert len(half.buffer) <= http1.MAX_HEAD + 1
            assert half.exchange is None or len(half.exchange.calls) <= 2 * http1.MAX_CALLS + 1
        assert sum(len(piece.data) for piece in analyzer._parked) <= http1._MAX_PARKED
        assert len(analyzer._pairing.queue) <= http1_pairing.MAX_OUTSTANDING
        assert len(analyzer._pairing._held) <= http1_pairing._MAX_HELD_RESPONSES


def analyze(flags: int, steps: Iterable[Step]) -> tuple[list[Exchange], dict[str, int]]:
    """Runs the steps; checks what holds for any bytes."""
    subject = _Subject(flags)
    given: list[Call] = []
    positions = {Side.REQUEST: 2**32 - 50, Side.RESPONSE: 2**32 - 20}
    lost = {Side.REQUEST: 0, Side.RESPONSE: 0}
    now = 0
    for step in steps:
        now += 10
        side = step.side
        other = Side.RESPONSE if side is Side.REQUEST else Side.REQUEST
        if step.kind == LOST:  # told with the next bytes of that side
            lost[side] += step.size
        elif step.kind == EXPIRE:
            subject.expire(now - step.size)
        elif step.kind == ENDLESS_GAP:
            subject.gap(side, -1, recorded=False)
        elif step.kind == RECORDED:
            subject.gap(side, step.size + 1, recorded=True)
        else:
            positions[side] += lost[side]
            subject.gap(side, lost[side], recorded=False)
            lost[side] = 0
            parts = [step.data]
            if step.kind == BYTE_BY_BYTE:
                parts = [step.data[at : at + 1] for at in range(len(step.data))]
            for part in parts:
                now += 10
                size = len(part) + step.size
                operation = Operation.READ if side is subject.reads else Operation.WRITE
                at, reached = (positions[way] % 2**32 for way in (side, other))
                call = Call(operation, 0, now - 5, now, size, position=at, opposite=reached)
                positions[side] += size
                given.append(call)
                subject.receive(side, call, part, step.size)
        if now % 160 == 0:
            subject.check_bounds()
    subject.check_bounds()
    exchanges, out, errors = subject.close(now)
    assert out == Counter(map(id, given)), "a call came out twice or never"
    assert "analyzer_failed" not in errors
    assert all(name in _HTTP1_ERRORS for name in errors if name.startswith("http1")), errors
    for exchange in exchanges:
        check_exchange(exchange)
    return exchanges, errors


def check_exchange(exchange: Exchange) -> None:
    """What holds for every exchange."""
    sizes = (exchange.request_header_bytes, exchange.request_body_bytes)
    sizes += (exchange.response_header_bytes, exchange.response_body_bytes)
    assert min(sizes) >= 0, exchange
    assert exchange.status is None or 100 <= exchange.status <= 999
    assert exchange.path is None or not {"?", "#"} & set(exchange.path)
    assert exchange.method is not None or exchange.status is not None or exchange.version == 2, exchange
    assert exchange.end_ns >= exchange.start_ns or not exchange.calls
    if exchange.completeness is Completeness.COMPLETE and exchange.version == 1:
        assert exchange.method is not None, exchange
        assert exchange.status is not None, exchange


def test_one_input(data: bytes) -> None:
    """One input of the fuzzer."""
    flags, steps = read_steps(data)
    exchanges, errors = analyze(flags, steps)
    if errors or flags & (DETECT | LATE) or any(step.kind not in {BYTES, BYTE_BY_BYTE} for step in steps):
        return
    if all(exchange.completeness is Completeness.COMPLETE for exchange in exchanges):
        check_cuts(flags, steps, exchanges)


def check_cuts(flags: int, steps: list[Step], exchanges: list[Exchange]) -> None:
    """What was understood to the end does not depend on how it was cut into calls."""
    again, _ = analyze(flags, _cut(steps, 7))
    assert [_said(exchange) for exchange in again] == [_said(exchange) for exchange in exchanges]


def _cut(steps: list[Step], size: int) -> Iterator[Step]:
    for step in steps:
        for at in range(0, len(step.data), size):
            yield Step(BYTES, step.side, step.data[at : at + size])


def _said(e: Exchange) -> tuple[object, ...]:
    return (
        e.method, e.path, e.host, e.status, e.request_header_bytes, e.request_body_bytes, e.response_header_bytes,
        e.response_body_bytes,
    )  # fmt: skip


def main() -> None:
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
