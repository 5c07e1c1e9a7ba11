# SPDX-License-Identifier: Apache-2.0
"""Recorded connections of real stacks, wherever calls cut them; hyperframe and hpack are the oracle."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from rover_plugin.access_log.model import Exchange, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from tests.support.http2_conversation import (
    PREFACE,
    Feeder,
    assert_agrees,
    cut,
    reframe,
    seeded,
    split_frames,
)
from tests.support.http2_relay import Chunks, load

FOLDER = Path(__file__).parents[1] / "data" / "http2"
RECORDINGS = sorted(path.stem for path in FOLDER.glob("*.txt"))
SPACING = 48


def _run(chunks: Chunks) -> list[Exchange]:
    feeder = Feeder(Http2Analyzer(joined=False))
    feeder.feed_all(chunks)
    exchanges = feeder.finish()
    assert not feeder.analyzer.errors
    return exchanges


def _sides(chunks: Chunks) -> tuple[bytes, bytes]:
    up = b"".join(written for side, written in chunks if side is Side.REQUEST)
    down = b"".join(written for side, written in chunks if side is Side.RESPONSE)
    return up, down


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_exchange_says_what_the_reference_reads(name: str) -> None:
    chunks = load(FOLDER / f"{name}.txt")
    assert_agrees(_run(chunks), *_sides(chunks))


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_byte_is_once_the_first_of_a_call(name: str) -> None:
    chunks = load(FOLDER / f"{name}.txt")
    if sum(len(written) for _, written in chunks) > 20_000:
        chunks = chunks[: next(at for at in range(1, len(chunks)) if sum(len(c[1]) for c in chunks[:at]) > 12_000)]
    whole = _run(chunks)
    for first in range(1, SPACING + 1):
        pieces = []
        for side, written in chunks:
            edges = [0, *range(first, len(written), SPACING), len(written)]
            pieces += [(side, written[a:b]) for a, b in itertools.pairwise(edges) if b > a]
        assert [_said(exchange) for exchange in _run(pieces)] == [_said(exchange) for exchange in whole]


def _said(exchange: Exchange) -> tuple[object, ...]:
    return (exchange.stream_id, exchange.path, exchange.status, exchange.completeness, exchange.response_body_bytes)


@pytest.mark.parametrize("name", RECORDINGS)
def test_one_byte_a_call(name: str) -> None:
    chunks = load(FOLDER / f"{name}.txt")
    assert_agrees(_run(cut(chunks, itertools.repeat(1))), *_sides(chunks))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", RECORDINGS)
def test_the_same_connection_padded_prioritised_continued_and_cut_at_random(name: str, seed: int) -> None:
    source = seeded(seed)
    chunks = load(FOLDER / f"{name}.txt")
    up, down = _sides(chunks)
    up, down = reframe(up, source), reframe(down, source)
    pieces = _interleave(up, down, chunks, source.choice((3, 40, 700, 5000)), seed)
    assert_agrees(_run(pieces), up, down)


def _interleave(up: bytes, down: bytes, chunks: Chunks, longest: int, seed: int) -> Chunks:
    """Both sides again, frame for frame about as far apart in time as they were, cut at random."""
    source = seeded(seed)
    ups, downs = [PREFACE, *split_frames(up)], split_frames(down)
    total = sum(len(written) for _, written in chunks)
    seen = 0
    pieces = []
    sizes = {Side.REQUEST: len(up), Side.RESPONSE: len(down)}
    queues = {Side.REQUEST: ups, Side.RESPONSE: downs}
    done = {Side.REQUEST: 0, Side.RESPONSE: 0}
    for side, written in chunks:
        seen += len(written)
        part = b""
        while queues[side] and done[side] * total <= sizes[side] * seen:
            part += queues[side].pop(0)
            done[side] = sizes[side] - sum(map(len, queues[side]))
        pieces.append((side, part))
    pieces += [(Side.REQUEST, b"".join(ups)), (Side.RESPONSE, b"".join(downs))]
    return cut([piece for piece in pieces if piece[1]], iter(lambda: source.randint(1, longest), 0))
