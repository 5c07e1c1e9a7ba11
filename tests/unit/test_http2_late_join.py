# SPDX-License-Identifier: Apache-2.0
"""Joining a recorded 500-request connection anywhere: no wrong field ever, what is unknown is labelled.

The rates of docs/http2.md are what `pytest -s` prints here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from rover_plugin.access_log.model import Completeness, Exchange, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer, frames
from tests.support.http2_conversation import PREFACE, Feeder, Seen, read_independently, seeded, split_frames
from tests.support.http2_relay import Chunks, load

FOLDER = Path(__file__).parents[1] / "data" / "http2"
RECORDINGS = ["go-500", "grpc-500", "node-500"]
HORIZON = 60  # calls fed after each join


@dataclass(frozen=True)
class Recording:
    """A recorded connection.

    Attributes:
        chunks: one a call, in order.
        oracle: what the whole connection says about each stream.
        begins, ends: index of the call with the first and last byte of each stream.
        reset: streams that RST_STREAM ended; what crossed it on its way is in no size.
        frames: (index of the call, offset in it, length) of each frame.
    """

    chunks: Chunks
    oracle: dict[int, Seen]
    begins: dict[int, int]
    ends: dict[int, int]
    reset: set[int]
    frames: list[tuple[int, int, int]]


@cache
def _recording(name: str) -> Recording:
    chunks = load(FOLDER / f"{name}.txt.gz")
    sides = {side: b"".join(written for from_side, written in chunks if from_side is side) for side in Side}
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    reset = set()
    places = []
    for side, written in sides.items():
        edges = []  # (offset behind it in this side's stream, index) of each call
        total = 0
        for index, (from_side, part) in enumerate(chunks):
            if from_side is side:
                total += len(part)
                edges.append((total, index, total - len(part)))
        at = len(PREFACE) if side is Side.REQUEST else 0
        call = 0
        for raw in split_frames(written):
            while edges[call][0] <= at:
                call += 1
            places.append((edges[call][1], at - edges[call][2], len(raw)))
            at += len(raw)
            last = call
            while edges[last][0] < at:
                last += 1
            stream_id = int.from_bytes(raw[5:9])
            if raw[3] == 3:
                reset.add(stream_id)
            elif raw[3] in {0, 1, 9}:
                begins[stream_id] = min(begins.get(stream_id, 1 << 30), edges[call][1])
                ends[stream_id] = max(ends.get(stream_id, 0), edges[last][1])
    oracle = read_independently(sides[Side.REQUEST], sides[Side.RESPONSE])
    return Recording(chunks, oracle, begins, ends, reset, sorted(places))


def _join(recording: Recording, index: int, offset: int, horizon: int = HORIZON) -> Http2Analyzer:
    """An analyser that saw the connection from byte `offset` of call `index` on, for `horizon` calls."""
    analyzer = Http2Analyzer(joined=True)
    feeder = Feeder(analyzer)
    for number, (side, written) in enumerate(recording.chunks[index : index + horizon]):
        rest = written if number else written[offset:]
        if rest:
            feeder.feed(side, rest)
    feeder.finish()
    assert "gap" not in analyzer.errors
    return analyzer


def _check(exchange: Exchange, seen: Seen, *, whole: bool) -> None:
    """Every field is unknown or right; if the exchange says it is complete, and was seen whole, all are right."""
    trace = seen.traceparent.split("-")[1] if seen.traceparent else None
    pairs = (
        (exchange.method, seen.method), (exchange.path, seen.path), (exchange.host, seen.host),
        (exchange.status, seen.status), (exchange.grpc_status, seen.grpc_status),
        (exchange.trace and exchange.trace.trace_id, trace),
    )  # fmt: skip
    for said, right in pairs:
        assert said is None or said == right, (exchange, seen)
    sizes = (
        (exchange.request_header_bytes, seen.request_header_bytes),
        (exchange.request_body_bytes, seen.request_body_bytes),
        (exchange.response_header_bytes, seen.response_header_bytes),
        (exchange.response_body_bytes, seen.response_body_bytes),
    )
    for said_size, right_size in sizes:
        assert said_size <= right_size, (exchange, seen)
    if exchange.completeness is Completeness.COMPLETE and whole:
        assert [said for said, _ in (*pairs, *sizes)] == [right for _, right in (*pairs, *sizes)], exchange


def _check_join(recording: Recording, index: int, offset: int, counts: Counter[str], horizon: int = HORIZON) -> None:
    analyzer = _join(recording, index, offset, horizon)
    last = index + horizon
    found = {exchange.stream_id: exchange for exchange in analyzer.exchanges}
    assert len(found) == len(analyzer.exchanges)
    for stream_id, exchange in found.items():
        whole = recording.ends[stream_id or 0] < last and stream_id not in recording.reset
        _check(exchange, recording.oracle[stream_id or 0], whole=whole)
    for stream_id, begin in recording.begins.items():
        if index < begin and recording.ends[stream_id] < last:
            exchange = found.get(stream_id)  # type: ignore[assignment]
            counts["after the join"] += 1
            if exchange is None:
                continue
            counts["logged"] += 1
            counts["complete"] += exchange.completeness is Completeness.COMPLETE
            counts["method"] += exchange.method is not None
            counts["path"] += exchange.path is not None
            counts["host"] += exchange.host is not None
            counts["status"] += exchange.status is not None


def _say(name: str, counts: Counter[str]) -> None:
    total = counts["after the join"]
    rates = ", ".join(f"{key} {100 * value / total:.1f} %" for key, value in counts.items() if key != "after the join")
    print(f"\n{name}: {total} exchanges after joins: {rates}")


@pytest.mark.parametrize("name", RECORDINGS)
def test_at_every_exchange_s_end(name: str) -> None:
    recording = _recording(name)
    assert len(recording.oracle) == 500
    counts: Counter[str] = Counter()
    for index in sorted(set(recording.ends.values())):
        _check_join(recording, index + 1, 0, counts)
    _say(f"{name}, at an exchange's end", counts)
    assert counts["logged"] > 0.97 * counts["after the join"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_inside_every_frame(name: str) -> None:
    recording = _recording(name)
    source = seeded(5)
    counts: Counter[str] = Counter()
    for index, offset, length in recording.frames:
        at = min(offset + source.randrange(1, length), len(recording.chunks[index][1]))
        _check_join(recording, index, at, counts, 24)
    _say(f"{name}, inside a frame", counts)
    assert counts["logged"] > 0.9 * counts["after the join"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_and_followed_to_the_connection_s_end(name: str) -> None:
    recording = _recording(name)
    counts: Counter[str] = Counter()
    known = unknown = 0
    for index in range(3, len(recording.chunks) // 2, len(recording.chunks) // 24):
        _check_join(recording, index, 0, counts, len(recording.chunks))
        analyzer = _join(recording, index, 0, len(recording.chunks))
        known += analyzer.fields_known
        unknown += analyzer.fields_unknown
    _say(f"{name}, to the end", counts)
    print(f"{name}: {known} wanted fields known, {unknown} fields unknown while the table was not whole")
    assert counts["logged"] > 0.99 * counts["after the join"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_any_call_s_record_lost(name: str) -> None:
    """Nothing wrong, and nothing that was over before the loss depends on it."""
    recording = _recording(name)
    for index in range(1, 240):
        feeder = Feeder(Http2Analyzer(joined=False))
        fed = recording.chunks[: index + 40]
        for number, (side, written) in enumerate(fed):
            if number == index:
                feeder.analyzer.gap(side, len(written))
            else:
                feeder.feed(side, written)
        exchanges = feeder.finish()
        assert exchanges
        for exchange in exchanges:
            stream_id = exchange.stream_id or 0
            end = recording.ends[stream_id]
            _check(exchange, recording.oracle[stream_id], whole=end < len(fed) and stream_id not in recording.reset)
            if end < index:
                assert exchange.completeness is Completeness.COMPLETE


@pytest.mark.parametrize("from_client", [False, True])
def test_no_plausible_frame_header_is_passed_over_while_looking_for_one(*, from_client: bool) -> None:
    pattern, source = frames.plausible_header(from_client=from_client), seeded(1)
    for _ in range(50_000):
        kind = source.choice([*range(13), 16, source.randrange(256)])
        flags = source.choice([0, 1, 4, 5, 8, 9, 0x20, 0x2D, 0x2E, source.randrange(256)])
        length = source.choice([0, 1, 4, 5, 6, 8, 12, 16_384, 1 << 20, source.randrange(1 << 21)])
        stream_id = source.choice([0, 1, 2, 0x7FFFFFFF, 0x80000001, source.randrange(1 << 32)])
        header = frames.FRAME_HEADER.pack(length << 8 | kind, flags, stream_id)
        if frames.is_plausible(kind, flags, length, stream_id, 1 << 21):
            from_server = kind == frames.PUSH_PROMISE or (kind in frames.OPENS_OR_FILLS and not stream_id & 1)
            assert (pattern.match(header) is None) is (from_client and from_server)
