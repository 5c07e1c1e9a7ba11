# SPDX-License-Identifier: Apache-2.0
"""Any streams, in calls of any size, copied in any way, with any loss: right or labelled, never wrong or silent."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.model import Completeness, EndedBy, Exchange, ProtocolName, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from tests.support.http2_conversation import Feeder
from tests.support.http2_story import Framing, Pieces, Story, Truth, calls, feed, reset_by, tell
from tests.support.http2_wire import said

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = st.integers(0, 1 << 48)
ENDS = (EndedBy.REMOTE, EndedBy.LOCAL)  # the watched process is the server


def _whole(_side: Side, written: bytes) -> Pieces:
    return [(written, 0)]


def _limited(limit: int) -> Callable[[Side, bytes], Pieces]:
    def copy(_side: Side, written: bytes) -> Pieces:
        return [(written[:limit], max(len(written) - limit, 0))]

    return copy


def _scattered(source: Random) -> Callable[[Side, bytes], Pieces]:
    """Pieces that heed no frame."""

    def copy(_side: Side, written: bytes) -> Pieces:
        pieces, at = [], 0
        while at < len(written):
            seen, unseen = source.choice((10, 1000, 1 << 20)), source.choice((1, 100, 20_000))
            part = written[at : at + seen]
            at += len(part)
            unseen = min(unseen, len(written) - at)
            at += unseen
            pieces.append((part, unseen))
        return pieces

    return copy


def _run(story: Story, source: Random, copy: Callable[[Side, bytes], Pieces], loss: float = 0) -> list[Exchange]:
    feeder = Feeder(Http2Analyzer(joined=False))
    feed(feeder, calls(story, source), copy, lambda: source.random() < loss)
    assert feeder.analyzer.protocol is ProtocolName.HTTP2
    assert "gave_up" not in feeder.analyzer.errors
    feeder.analyzer.close(feeder.now, ENDS)
    exchanges = feeder.finish()
    assert len({exchange.stream_id for exchange in exchanges}) == len(exchanges)
    return exchanges


def _expected_label(truth: Truth) -> Completeness:
    if truth.whole:
        return Completeness.COMPLETE
    return Completeness.TRUNCATED if truth.response_header_bytes else Completeness.NO_RESPONSE


def _fields(truth_or_exchange: Truth | Exchange) -> tuple[object, ...]:
    one = truth_or_exchange
    return (
        one.method, one.path, one.status, one.grpc_status, one.request_header_bytes, one.request_body_bytes,
        one.response_header_bytes, one.response_body_bytes,
    )  # fmt: skip


def _exact(exchanges: list[Exchange], story: Story) -> None:
    assert sorted(exchange.stream_id or 0 for exchange in exchanges) == sorted(story.truths)
    for exchange in exchanges:
        truth = story.truths[exchange.stream_id or 0]
        assert _fields(exchange) == _fields(truth)
        assert exchange.completeness is _expected_label(truth)
        if truth.reset_by is not None:
            assert exchange.ended_by is reset_by(truth, ENDS)
        else:
            assert (exchange.ended_by is None) is truth.whole


def _honest(exchanges: list[Exchange], story: Story) -> None:
    for exchange in exchanges:
        truth = story.truths[exchange.stream_id or 0]
        if exchange.completeness is Completeness.COMPLETE:
            assert _fields(exchange) == _fields(truth)
            assert truth.whole
        if exchange.completeness is Completeness.NO_RESPONSE:
            assert not truth.response_header_bytes
        for ours, right in zip(_fields(exchange)[:4], _fields(truth)[:4], strict=True):
            assert ours is None or ours == right
        for ours, right in zip(_fields(exchange)[4:], _fields(truth)[4:], strict=True):
            # Of padded DATA whose pad length was not copied, the padding is in the size: 255 a frame at most.
            assert ours <= right or exchange.completeness is not Completeness.COMPLETE


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_what_is_copied_whole_is_exact_whatever_the_calls(seed: int) -> None:
    source = Random(seed)
    story = tell(source)
    _exact(_run(story, source, _whole), story)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_framing_alone_gives_what_whole_copies_give(seed: int) -> None:
    source = Random(seed)
    story = tell(source)
    exchanges = _run(story, Random(seed), Framing())
    _exact(exchanges, story)
    assert list(map(said, exchanges)) == list(map(said, _run(story, Random(seed), _whole)))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([0, 9, 64, 1000, 16_384, 65_536]))
def test_a_copy_limit_costs_what_it_hides_and_says_so(seed: int, limit: int) -> None:
    source = Random(seed)
    story = tell(source)
    _honest(_run(story, source, _limited(limit)), story)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_pieces_that_heed_no_frame_cost_what_they_hide_and_say_so(seed: int) -> None:
    source = Random(seed)
    story = tell(source)
    _honest(_run(story, source, _scattered(Random(seed + 1))), story)


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.sampled_from([0.02, 0.1, 0.4]), st.sampled_from(["whole", "limited", "framing"]))
def test_lost_records_cost_what_they_hide_and_say_so(seed: int, loss: float, way: str) -> None:
    source = Random(seed)
    story = tell(source)
    copy = {"whole": _whole, "limited": _limited(16_384), "framing": Framing()}[way]
    _honest(_run(story, source, copy, loss), story)
