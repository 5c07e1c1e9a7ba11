# SPDX-License-Identifier: Apache-2.0
"""What a lost record costs: only what depends on it, with the label that says so; the other side and streams go on."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Completeness, Exchange, Side
from rover_plugin.access_log.protocols.analyzer import Part
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from tests.support.http2_conversation import PREFACE, Feeder, Headers, frame, get, post
from tests.support.http2_wire import MAX_FRAME_SIZE, Wire, data, goaway, headers, one, reset, settings


class Talk:
    """A connection fed call by call, some of them lost."""

    def __init__(self) -> None:
        self.wire = Wire(begins=False)
        self.feeder = Feeder(Http2Analyzer(joined=False))
        self.feeder.feed(Side.REQUEST, PREFACE + settings())
        self.feeder.feed(Side.RESPONSE, settings())

    def up(self, *frames: bytes) -> None:
        self.feeder.feed(Side.REQUEST, b"".join(frames))

    def down(self, *frames: bytes) -> None:
        self.feeder.feed(Side.RESPONSE, b"".join(frames))

    def lose(self, side: Side, *frames: bytes) -> None:
        self.feeder.analyzer.gap(side, len(b"".join(frames)))

    def exchange(self, stream_id: int, path: str, fields: Headers | None = None) -> None:
        self.up(self.wire.request(stream_id, get(path)))
        self.down(self.wire.response(stream_id, 200, fields))

    def finish(self) -> dict[int, Exchange]:
        return {exchange.stream_id or 0: exchange for exchange in self.feeder.finish()}


def test_a_hole_in_a_body_costs_nothing_but_its_label() -> None:
    talk = Talk()
    talk.up(talk.wire.request(1, post("/up"), end=False))
    body = data(1, bytes(1000), end=True)
    talk.up(body[:300])
    talk.lose(Side.REQUEST, body[300:700])
    talk.up(body[700:])
    talk.down(talk.wire.response(1))
    talk.exchange(3, "/next")
    found = talk.finish()
    assert (found[1].request_body_bytes, found[1].status, found[1].completeness) == (1000, 200, Completeness.GAP)
    assert (found[3].path, found[3].completeness) == ("/next", Completeness.COMPLETE)


def test_bytes_of_a_body_that_were_not_copied_cost_nothing_at_all() -> None:
    talk = Talk()
    talk.up(talk.wire.request(1, post("/up"), end=False))
    body = data(1, bytes(5000), end=True)
    talk.feeder.feed(Side.REQUEST, body[:100], unseen=1000)
    assert talk.feeder.analyzer.unneeded(Side.REQUEST) == len(body) - 1100
    talk.feeder.analyzer.gap(Side.REQUEST, len(body) - 1100 - 5, recorded=True)
    talk.up(body[-5:], talk.wire.request(3, get("/next")))
    talk.down(talk.wire.response(1), talk.wire.response(3))
    found = talk.finish()
    assert found[1].request_body_bytes == 5000
    assert found[3].path == "/next"


def test_a_lost_request_costs_this_request_and_no_response_of_another() -> None:
    talk = Talk()
    talk.exchange(1, "/before")
    talk.lose(Side.REQUEST, talk.wire.request(3, get("/lost")))
    talk.down(talk.wire.response(3, 404))
    for stream_id in range(5, 15, 2):
        talk.exchange(stream_id, f"/after/{stream_id}")
    found = talk.finish()
    assert found[1].completeness is Completeness.COMPLETE
    assert (found[3].path, found[3].status, found[3].completeness) == (None, 404, Completeness.GAP)
    assert [found[stream_id].status for stream_id in range(5, 15, 2)] == [200] * 5
    assert found[13].path == "/after/13"


def test_a_lost_response_costs_this_response_and_no_request() -> None:
    talk = Talk()
    talk.up(talk.wire.request(1, get("/answered")), talk.wire.request(3, get("/lost")))
    talk.down(talk.wire.response(1, 200))
    talk.lose(Side.RESPONSE, talk.wire.response(3, 500))
    for stream_id in range(5, 15, 2):
        talk.exchange(stream_id, f"/after/{stream_id}")
    found = talk.finish()
    assert (found[1].status, found[1].completeness) == (200, Completeness.COMPLETE)
    assert (found[3].path, found[3].status, found[3].completeness) == ("/lost", None, Completeness.GAP)
    assert [found[stream_id].path for stream_id in range(5, 15, 2)] == [f"/after/{n}" for n in range(5, 15, 2)]
    assert found[13].completeness is Completeness.COMPLETE


def test_trailers_after_a_lost_response_head_do_not_make_it_complete() -> None:
    talk = Talk()
    talk.up(talk.wire.request(1, post("/rpc")))
    talk.lose(Side.RESPONSE, talk.wire.response(1, 200, end=False))
    talk.down(data(1, b"abc"), talk.wire.response(1, None, [("grpc-status", "0")]), settings())
    exchange = talk.finish()[1]
    assert (exchange.status, exchange.grpc_status) == (None, 0)
    assert exchange.completeness is Completeness.GAP


def test_after_a_lost_header_block_what_it_inserted_is_unknown_and_never_guessed() -> None:
    talk = Talk()
    shared = get("/shared", "shared.test")
    talk.lose(Side.REQUEST, talk.wire.request(1, shared))
    for stream_id in (3, 5, 7):
        talk.up(talk.wire.request(stream_id, shared))
        talk.down(talk.wire.response(stream_id))
    found = talk.finish()
    for exchange in (found[3], found[5], found[7]):
        assert (exchange.path, exchange.host) == (None, None)
        assert exchange.completeness is Completeness.GAP


def test_a_hole_in_a_header_block_gives_what_was_before_it() -> None:
    talk = Talk()
    request = talk.wire.request(1, get("/whole-path", "host.test", x="v" * 200))
    talk.up(request[:-100])
    talk.lose(Side.REQUEST, request[-100:])
    talk.down(talk.wire.response(1))
    talk.exchange(3, "/next")
    found = talk.finish()
    assert (found[1].method, found[1].path, found[1].status) == ("GET", "/whole-path", 200)
    assert found[1].completeness is Completeness.GAP
    assert found[1].request_header_bytes == len(request) - 9
    assert found[3].path == "/next"


def test_a_hole_in_a_continuation_gives_what_was_before_it() -> None:
    talk = Talk()
    block = talk.wire.block(Side.REQUEST, get("/whole-path", "host.test", x="v" * 200))
    written = headers(1, block, cuts=(60, 120))
    talk.up(written[:-40])
    talk.lose(Side.REQUEST, written[-40:])
    talk.down(talk.wire.response(1))
    exchange = talk.finish()[1]
    assert (exchange.path, exchange.status, exchange.completeness) == ("/whole-path", 200, Completeness.GAP)


def test_bytes_that_were_not_copied_are_no_gap_but_truncate() -> None:
    talk = Talk()
    request = talk.wire.request(1, get("/long", "host.test", x="v" * 3000))
    talk.feeder.feed(Side.REQUEST, request[:1000], unseen=len(request) - 1000)
    talk.down(talk.wire.response(1))
    exchange = talk.finish()[1]
    assert (exchange.path, exchange.status, exchange.completeness) == ("/long", 200, Completeness.TRUNCATED)
    assert not talk.feeder.analyzer.errors


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("size", [-1, 1, 5, 9, 1 << 20])
def test_a_gap_of_any_size_at_a_frame_boundary(side: Side, size: int) -> None:
    talk = Talk()
    talk.exchange(1, "/before")
    talk.feeder.analyzer.gap(side, size)
    for stream_id in range(3, 21, 2):
        talk.exchange(stream_id, f"/{stream_id}")
    found = talk.finish()
    assert talk.feeder.analyzer.errors == {"gap": 1}
    assert found[1].completeness is Completeness.COMPLETE
    assert (found[19].path, found[19].status) == ("/19", 200)
    for exchange in found.values():
        assert exchange.path in {None, f"/{exchange.stream_id}", "/before"}
        assert exchange.status in {None, 200}


def test_a_lost_record_never_costs_another_connection() -> None:
    other = Talk()
    other.exchange(1, "/one")
    talk = Talk()
    talk.lose(Side.REQUEST, talk.wire.request(1))
    other.exchange(3, "/two")
    found = other.finish()
    assert [(e.path, e.completeness) for e in found.values()] == [
        ("/one", Completeness.COMPLETE),
        ("/two", Completeness.COMPLETE),
    ]


def test_a_settings_frame_that_may_have_been_lost_binds_no_encoder() -> None:
    talk = Talk()
    talk.lose(Side.RESPONSE, settings((1, 65_536)))
    talk.wire.encoders[Side.REQUEST].header_table_size = 65_536
    talk.exchange(1, "/a")
    talk.exchange(3, "/b")
    found = talk.finish()
    assert "hpack_table_size" not in talk.feeder.analyzer.errors
    assert [exchange.path for exchange in found.values()] == ["/a", "/b"]


def test_malformed_header_blocks_are_counted_and_restart_the_window() -> None:
    wire = Wire()
    wire.up(headers(1, b"\xff\xff\xff\xff\xff\xff\xff\xff"), wire.request(3, get("/next")))
    wire.down(wire.response(1), wire.response(3))
    first, second = wire.finish()
    assert wire.errors == {"hpack_integer": 1}
    assert (first.path, first.status, first.completeness) == (None, 200, Completeness.GAP)
    assert (second.path, second.status) == ("/next", 200)


def test_a_response_recorded_before_its_request_is_paired_with_it() -> None:
    talk = Talk()
    talk.down(talk.wire.response(1, 200))
    talk.up(talk.wire.request(1, get("/late")))
    exchange = one(list(talk.finish().values()))
    assert (exchange.path, exchange.status, exchange.completeness) == ("/late", 200, Completeness.COMPLETE)


def test_a_second_loss_in_the_body_of_a_response_that_began_after_a_first() -> None:
    talk = Talk()
    talk.up(talk.wire.request(1, get("/twice")), talk.wire.request(3, get("/other")))
    talk.lose(Side.RESPONSE, settings())
    talk.down(headers(1, b"\x88", end=False), data(1, bytes(100)), settings())
    talk.lose(Side.RESPONSE, data(1, bytes(100)))
    talk.down(data(1, bytes(100), end=True), headers(3, b"\x88"), settings())
    found = talk.finish()
    assert (found[1].status, found[1].response_body_bytes, found[1].completeness) == (200, 200, Completeness.GAP)
    assert (found[3].status, found[3].completeness) == (200, Completeness.COMPLETE)


def test_a_request_made_while_the_response_side_is_lost_was_not_left_unanswered() -> None:
    talk = Talk()
    talk.lose(Side.RESPONSE, settings())
    talk.up(talk.wire.request(1, get("/during")))
    talk.down(b"\xff" * 40)
    assert talk.finish()[1].completeness is Completeness.GAP
    talk = Talk()
    talk.lose(Side.RESPONSE, settings())
    talk.up(talk.wire.request(1, get("/during")))
    talk.down(b"\xff" * 40, settings(), settings(), settings())
    talk.up(talk.wire.request(3, get("/after")))
    found = talk.finish()
    assert found[1].completeness is Completeness.GAP
    assert found[3].completeness is Completeness.NO_RESPONSE


FRAMES = {
    "padded DATA": (Side.RESPONSE, data(1, bytes(500), pad=100, end=True)),
    "RST_STREAM": (Side.RESPONSE, reset(1)),
    "SETTINGS": (Side.RESPONSE, settings((MAX_FRAME_SIZE, 1 << 20), (3, 100))),
    "GOAWAY": (Side.RESPONSE, goaway(1)),
    "PUSH_PROMISE": (Side.RESPONSE, frame(5, 0x4, 1, b"\0\0\0\2\x82\x84\x86\x41\x01h")),
    "PUSH_PROMISE, to be continued": (Side.RESPONSE, frame(5, 0, 1, b"\0\0\0\2\x82\x84") + frame(9, 0x4, 1, b"\x86")),
    "PING": (Side.RESPONSE, frame(6, 0, 0, bytes(8))),
    "WINDOW_UPDATE": (Side.REQUEST, frame(8, 0, 0, b"\0\0\1\0")),
}


@pytest.mark.parametrize("name", FRAMES)
def test_of_any_frame_the_header_alone_is_enough_to_find_the_next(name: str) -> None:
    """Every payload but those of header blocks may be left out of the copy."""
    side, written = FRAMES[name]
    size = 9 + int.from_bytes(written[:3])
    for seen in range(9, size):
        talk = Talk()
        talk.up(talk.wire.request(1, post("/first"), end=False), data(1, bytes(100_000))[:60])
        talk.feeder.analyzer.gap(Side.REQUEST, 100_009 - 60, recorded=True)
        talk.down(headers(1, b"\x88", end=False))
        call = talk.feeder.call(side, len(written) + 20)
        after = data(1, b"", end=True) if side is Side.RESPONSE else data(1, b"")
        talk.feeder.analyzer.receive(side, call, written[:seen], size - seen, [Part(written[size:] + after, 0)])
        talk.exchange(3, "/next")
        found = talk.finish()
        assert (found[3].path, found[3].status, found[3].completeness) == ("/next", 200, Completeness.COMPLETE)
        assert not talk.feeder.analyzer.errors
        body = found[1].response_body_bytes
        assert 500 <= body <= 600 if name == "padded DATA" else body == 0
        assert found[1].completeness is Completeness.TRUNCATED


def test_a_header_block_that_is_cut_together_with_what_follows_gives_what_was_before() -> None:
    talk = Talk()
    request = talk.wire.request(1, get("/long", "host.test", x="v" * 3000))
    talk.feeder.feed(Side.REQUEST, request[:1000], unseen=len(request) - 1000 + 5000)
    talk.down(talk.wire.response(1))
    exchange = talk.finish()[1]
    assert (exchange.path, exchange.status, exchange.completeness) == ("/long", 200, Completeness.TRUNCATED)
