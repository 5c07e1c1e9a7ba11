# SPDX-License-Identifier: Apache-2.0
"""What a hostile peer can make us keep or do is bounded: streams, header blocks, windows, searches."""

from __future__ import annotations

import tracemalloc

import pytest

from rover_plugin.access_log.model import Completeness, ProtocolName, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from rover_plugin.access_log.protocols.http2.analyzer import MAX_HEADER_BLOCK, MAX_SKIPPED, MAX_STREAMS
from tests.support.http2_conversation import PREFACE, Feeder, frame, get, post, seeded
from tests.support.http2_wire import CONTINUATION, HEADERS, Wire, data, reset, settings


def _started(*, joined: bool = False) -> Feeder:
    feeder = Feeder(Http2Analyzer(joined=joined))
    if not joined:
        feeder.feed(Side.REQUEST, PREFACE + settings())
        feeder.feed(Side.RESPONSE, settings())
    return feeder


def test_the_oldest_stream_gives_way_when_there_are_too_many() -> None:
    feeder = _started()
    block = b"\x82\x84\x86"
    for stream_id in range(1, 2 * MAX_STREAMS + 21, 2):
        feeder.feed(Side.REQUEST, frame(HEADERS, 0x5, stream_id, block))
    assert len(feeder.analyzer._streams) == MAX_STREAMS
    assert feeder.analyzer.errors == {"streams": 10}
    assert [exchange.stream_id for exchange in feeder.analyzer.exchanges] == list(range(1, 21, 2))


def test_a_flood_of_continuation_frames_is_cut_off_and_the_connection_goes_on() -> None:
    feeder, wire = _started(), Wire(begins=False)
    feeder.feed(Side.REQUEST, frame(HEADERS, 0x1, 1, b"\x82"))
    for _ in range(2 * MAX_HEADER_BLOCK // 16_000):
        feeder.feed(Side.REQUEST, frame(CONTINUATION, 0, 1, bytes(16_000)))
        block = feeder.analyzer._request.block
        assert block is not None
        assert len(block) <= MAX_HEADER_BLOCK
    feeder.feed(Side.REQUEST, frame(CONTINUATION, 0x4, 1, b""))
    feeder.feed(Side.REQUEST, wire.request(3, get("/next")))
    feeder.feed(Side.RESPONSE, wire.response(1) + wire.response(3))
    first, second = feeder.finish()
    assert feeder.analyzer.errors["header_block_size"] == 1
    assert (first.method, first.completeness) == ("GET", Completeness.TRUNCATED)
    assert (second.path, second.status) == ("/next", 200)


def test_a_frame_that_would_have_to_be_kept_whole_and_is_too_large_is_not_kept() -> None:
    feeder = _started()
    feeder.feed(Side.RESPONSE, settings((5, 0xFFFFFF)))
    feeder.feed(Side.REQUEST, frame(HEADERS, 0x5, 1, bytes(1 << 20))[:4096])
    feeder.feed(Side.REQUEST, bytes(4096))
    assert feeder.analyzer.errors["header_block_size"] == 1
    feeder.finish()


def test_rapid_resets_keep_nothing() -> None:
    feeder = _started()
    for stream_id in range(1, 4001, 2):
        feeder.feed(Side.REQUEST, frame(HEADERS, 0x5, stream_id, b"\x82\x84\x86") + reset(stream_id))
    assert not feeder.analyzer._streams
    assert len(feeder.finish()) == 2000


def test_bytes_that_are_no_frames_are_given_up_after_a_while() -> None:
    feeder, source = _started(joined=True), seeded(3)
    fed = 0
    while feeder.analyzer.protocol is not ProtocolName.TCP:
        feeder.feed(Side.REQUEST, source.randbytes(8192))
        fed += 8192
        assert fed < 2 * MAX_SKIPPED
    assert feeder.analyzer.errors["gave_up"] == 1
    assert feeder.analyzer.unneeded(Side.REQUEST) == -1
    assert feeder.finish() == []


@pytest.mark.parametrize("joined", [True, False])
def test_what_was_seen_to_be_http_2_is_never_given_up(*, joined: bool) -> None:
    feeder, source, wire = _started(joined=joined), seeded(3), Wire(begins=False)
    for stream_id in (1, 3, 5):
        feeder.feed(Side.REQUEST, wire.request(stream_id, get("/before")))
        feeder.feed(Side.RESPONSE, wire.response(stream_id))
    feeder.analyzer.gap(Side.REQUEST, -1)
    for _ in range(MAX_SKIPPED * 2 // 65_536):
        feeder.feed(Side.REQUEST, source.randbytes(65_536), unseen=1 << 20)
    for stream_id in (7, 9, 11):
        feeder.feed(
            Side.REQUEST, Wire(begins=False).request(stream_id, post("/after"), end=False) + data(stream_id, end=True)
        )
        feeder.feed(Side.RESPONSE, wire.response(stream_id))
    found = {exchange.stream_id: exchange for exchange in feeder.finish()}
    assert feeder.analyzer.protocol is ProtocolName.HTTP2
    assert [found[n].path for n in (7, 9, 11)] == ["/after"] * 3


def test_a_connection_given_up_says_of_no_request_that_it_was_not_answered() -> None:
    feeder = _started(joined=True)
    feeder.feed(Side.REQUEST, frame(HEADERS, 0x5, 1, b"\xbe") * 2)  # nobody knows what it asks
    for _ in range(2 * MAX_SKIPPED // 8192):
        feeder.feed(Side.RESPONSE, seeded(4).randbytes(8192))
    assert feeder.analyzer.protocol is ProtocolName.TCP
    assert Completeness.NO_RESPONSE not in {exchange.completeness for exchange in feeder.finish()}


def test_false_boundaries_again_and_again_are_given_up() -> None:
    feeder = _started(joined=True)
    for _ in range(50):
        feeder.feed(Side.RESPONSE, frame(6, 0, 0, b"12345678") * 3)
        feeder.feed(Side.RESPONSE, b"\xff" * 20)
    assert feeder.analyzer.protocol is ProtocolName.TCP
    feeder.finish()


def test_memory_stays_flat_however_long_a_connection_lives() -> None:
    wire, feeder = Wire(begins=False), _started()
    source = seeded(1)

    def exchanges(first: int, count: int) -> None:
        for stream_id in range(first, first + 2 * count, 2):
            fields = get(f"/{source.randrange(10**9)}", x=str(source.random()))
            feeder.feed(Side.REQUEST, wire.request(stream_id, fields))
            feeder.feed(Side.RESPONSE, wire.response(stream_id, 200, [("y", str(source.random()))], end=False))
            feeder.feed(Side.RESPONSE, data(stream_id, b"body", end=True))
            feeder.analyzer.exchanges.clear()
            feeder.analyzer.loose.clear()
            feeder.calls.clear()

    tracemalloc.start()
    exchanges(1, 1500)
    before = tracemalloc.take_snapshot()
    exchanges(3001, 1500)
    after = tracemalloc.take_snapshot()
    tracemalloc.stop()
    ours = tracemalloc.Filter(inclusive=True, filename_pattern="*/protocols/http2/*", all_frames=True)
    sizes = [sum(item.size for item in shot.filter_traces([ours]).statistics("lineno")) for shot in (before, after)]
    assert sizes[1] - sizes[0] < 20_000
