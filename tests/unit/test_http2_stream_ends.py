# SPDX-License-Identifier: Apache-2.0
"""How a stream ends (RFC 9113 §5.1, §6.4, §6.8, §8.1): END_STREAM on any frame, trailers, resets, GOAWAY, nothing."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Completeness, EndedBy, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from rover_plugin.access_log.protocols.http2.analyzer import MAX_STREAMS
from tests.support.http2_conversation import PREFACE, Feeder, get, post
from tests.support.http2_wire import Wire, data, goaway, headers, one, reset, settings


@pytest.mark.parametrize("status", [200, 204, 304, 404])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_responses_without_a_body_end_with_their_headers(method: str, status: int) -> None:
    wire = Wire()
    wire.up(wire.request(1, [(":method", method), *get("/nothing")[1:]]))
    empty = method == "HEAD" or status in {204, 304}
    wire.down(wire.response(1, status, [("content-length", "5" if empty else "0")]))
    exchange = one(wire.finish())
    assert (exchange.method, exchange.status, exchange.response_body_bytes) == (method, status, 0)
    assert (exchange.completeness, exchange.ended_by) == (Completeness.COMPLETE, None)


def test_end_stream_on_headers_data_empty_data_and_trailers_of_either_side() -> None:
    wire = Wire()
    expected = {}
    for number in range(16):
        stream_id = 2 * number + 1
        up, down = number & 3, number >> 2
        head = wire.request(stream_id, post(f"/{number}"), end=up == 0)
        body = {
            0: b"",
            1: data(stream_id, b"abc", end=True),
            2: data(stream_id, b"abc") + data(stream_id, end=True),
            3: data(stream_id, b"abc", pad=9) + _trailers(wire, Side.REQUEST, stream_id) if up == 3 else b"",
        }[up]
        wire.up(head, body)
        answer = wire.response(stream_id, 200, end=down == 0)
        rest = {
            0: b"",
            1: data(stream_id, b"abcd", end=True),
            2: data(stream_id, b"abcd") + data(stream_id, end=True, pad=0),
            3: data(stream_id, b"abcd") + _trailers(wire, Side.RESPONSE, stream_id) if down == 3 else b"",
        }[down]
        wire.down(answer, rest)
        expected[stream_id] = (3 if up else 0, 4 if down else 0)
    exchanges = wire.finish()
    assert {e.stream_id: (e.request_body_bytes, e.response_body_bytes) for e in exchanges} == expected
    assert all(e.completeness is Completeness.COMPLETE for e in exchanges)


def _trailers(wire: Wire, side: Side, stream_id: int) -> bytes:
    if side is Side.REQUEST:
        return wire.request(stream_id, [("x-checksum", "c")])
    return wire.response(stream_id, None, [("x-checksum", "c")])


def test_trailers_count_as_header_bytes_and_change_nothing_else() -> None:
    wire = Wire()
    head = wire.request(1, post("/up"), end=False)
    more = wire.request(1, [("x-checksum", "1"), (":path", "/not-this")])
    wire.up(head, data(1, b"a"), more)
    answer = wire.response(1, 200, end=False)
    tail = wire.response(1, None, [("x-checksum", "2")])
    wire.down(answer, data(1, b"b"), tail)
    exchange = one(wire.finish())
    assert (exchange.path, exchange.status) == ("/up", 200)
    assert exchange.request_header_bytes == len(head) + len(more) - 18
    assert exchange.response_header_bytes == len(answer) + len(tail) - 18


def test_a_response_that_ends_before_its_request_does() -> None:
    wire = Wire()
    wire.up(wire.request(1, post("/early"), end=False), data(1, b"ab"))
    wire.down(wire.response(1, 413))
    wire.up(data(1, b"cd", end=True))
    exchange = one(wire.finish())
    assert (exchange.status, exchange.request_body_bytes) == (413, 4)
    assert exchange.completeness is Completeness.COMPLETE


def test_a_response_that_ends_early_and_a_reset_that_stops_the_request() -> None:
    wire = Wire()
    wire.up(wire.request(1, post("/stop"), end=False), data(1, b"ab"))
    wire.down(wire.response(1, 413), reset(1, 0))
    exchange = one(wire.finish())
    assert (exchange.status, exchange.request_body_bytes) == (413, 2)
    assert (exchange.completeness, exchange.ended_by) == (Completeness.TRUNCATED, EndedBy.LOCAL)


@pytest.mark.parametrize("side", list(Side))
def test_a_reset_before_the_response_ends_the_exchange_without_one(side: Side) -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/reset")))
    (wire.up if side is Side.REQUEST else wire.down)(reset(1))
    wire.up(wire.request(3, get("/next")))
    wire.down(wire.response(3))
    first, second = wire.finish()
    assert (first.path, first.status, first.completeness) == ("/reset", None, Completeness.NO_RESPONSE)
    assert first.ended_by is (EndedBy.REMOTE if side is Side.REQUEST else EndedBy.LOCAL)
    assert (second.path, second.status, second.completeness) == ("/next", 200, Completeness.COMPLETE)


@pytest.mark.parametrize("side", list(Side))
def test_a_reset_in_the_middle_of_the_body_ends_the_exchange_with_what_there_was(side: Side) -> None:
    wire = Wire()
    wire.up(wire.request(1))
    wire.down(wire.response(1, 200, end=False), data(1, b"12345"))
    (wire.up if side is Side.REQUEST else wire.down)(reset(1))
    wire.down(data(1, b"late"))
    exchange = one(wire.finish())
    assert (exchange.status, exchange.response_body_bytes) == (200, 5)
    assert exchange.completeness is Completeness.TRUNCATED
    assert exchange.ended_by is (EndedBy.REMOTE if side is Side.REQUEST else EndedBy.LOCAL)


def test_frames_on_a_stream_that_was_reset_are_nobody_s_and_keep_the_table_right() -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/reset")))
    wire.up(reset(1))
    late = wire.response(1, 200, [("x-inserted", "by a response that nobody waits for")], end=False)
    wire.down(late, data(1, b"abc", end=True))
    wire.up(wire.request(3, get("/next")))
    wire.down(wire.response(3, 404, [("x-inserted", "by a response that nobody waits for")]))
    first, second = wire.finish()
    assert (first.status, second.status) == (None, 404)
    assert second.completeness is Completeness.COMPLETE
    assert not wire.errors


def test_the_server_s_goaway_ends_the_requests_it_will_not_process_and_no_others() -> None:
    wire = Wire()
    for stream_id in (1, 3, 5):
        wire.up(wire.request(stream_id, get(f"/{stream_id}")))
    wire.down(goaway(0x7FFFFFFF))  # a shutdown announced
    wire.down(goaway(3))
    wire.down(wire.response(3), wire.response(1))
    assert [(e.stream_id, e.status, e.completeness) for e in wire.finish()] == [
        (5, None, Completeness.NO_RESPONSE),
        (3, 200, Completeness.COMPLETE),
        (1, 200, Completeness.COMPLETE),
    ]


def test_the_client_s_goaway_ends_no_request() -> None:
    wire = Wire()
    wire.up(wire.request(1))
    wire.up(goaway(0))
    wire.down(wire.response(1))
    assert one(wire.finish()).status == 200


def test_what_is_open_at_the_connection_s_end_comes_out() -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/unanswered")), wire.request(3, get("/half")))
    wire.down(wire.response(3, 200, end=False), data(3, b"12345678")[:12])
    unanswered, half = wire.finish()
    assert (unanswered.path, unanswered.completeness) == ("/unanswered", Completeness.NO_RESPONSE)
    assert (half.path, half.status, half.response_body_bytes) == ("/half", 200, 3)


def test_a_request_nobody_answers_is_let_go_when_it_is_old_and_another_is_not() -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/old")))
    wire.then(lambda feeder: setattr(feeder, "now", feeder.now + 10**9))
    wire.up(wire.request(3, get("/young")))
    wire.then(lambda feeder: feeder.analyzer.expire(feeder.now - 10**8))
    wire.then(lambda feeder: _assert_paths(feeder.analyzer.exchanges, ["/old"]))
    wire.down(wire.response(3))
    assert [(e.path, e.completeness) for e in wire.finish()] == [
        ("/old", Completeness.NO_RESPONSE),
        ("/young", Completeness.COMPLETE),
    ]


def _assert_paths(exchanges: list[object], paths: list[str]) -> None:
    assert [exchange.path for exchange in exchanges] == paths  # type: ignore[attr-defined]


# Who ends what: (what happens, label, ended by) after a request with half of its content, or with all of it.
BOTH = (EndedBy.REMOTE, EndedBy.LOCAL)
CUTS = [
    ("request", "", Completeness.NO_RESPONSE, EndedBy.LOCAL),
    ("request", "head", Completeness.TRUNCATED, EndedBy.LOCAL),
    ("request", "part", Completeness.TRUNCATED, EndedBy.LOCAL),
    ("request", "whole", Completeness.COMPLETE, None),
    ("half", "", Completeness.NO_RESPONSE, EndedBy.LOCAL),
    ("half", "part", Completeness.TRUNCATED, EndedBy.LOCAL),
    ("half", "whole", Completeness.TRUNCATED, EndedBy.REMOTE),
]


@pytest.mark.parametrize(("request_", "response", "label", "ended_by"), CUTS)
def test_the_connection_s_end_cuts_what_is_open(
    request_: str, response: str, label: Completeness, ended_by: EndedBy | None
) -> None:
    wire, feeder = Wire(begins=False), Feeder(Http2Analyzer(joined=False))
    body = data(1, b"1234", end=request_ == "request")
    feeder.feed(Side.REQUEST, PREFACE + settings() + wire.request(1, post("/cut"), end=False) + body)
    answer = wire.response(1, 200, end=False)
    more = {"": b"", "head": answer, "part": answer + data(1, b"12345"), "whole": answer + data(1, b"1", end=True)}
    feeder.feed(Side.RESPONSE, settings() + more[response])
    feeder.analyzer.close(feeder.now, BOTH)
    exchange = one(feeder.finish())
    assert (exchange.completeness, exchange.ended_by) == (label, ended_by)
    assert exchange.request_body_bytes == 4
    assert exchange.response_body_bytes == {"": 0, "head": 0, "part": 5, "whole": 1}[response]


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("side", list(Side))
def test_who_reset_a_stream_or_went_away_is_told_from_the_call_that_moved_the_frame(
    side: Side, *, client: bool
) -> None:
    wire, feeder = Wire(begins=False), Feeder(Http2Analyzer(joined=False), client=client)
    feeder.feed(Side.REQUEST, PREFACE + settings() + wire.request(1) + wire.request(3) + wire.request(5))
    feeder.feed(Side.RESPONSE, wire.response(1, 200, end=False) + data(1, b"123"))
    feeder.feed(side, reset(1) + reset(3))
    feeder.feed(Side.RESPONSE, goaway(3))
    local = (side is Side.REQUEST) is client
    by = EndedBy.LOCAL if local else EndedBy.REMOTE
    server = EndedBy.REMOTE if client else EndedBy.LOCAL
    assert [(e.stream_id, e.completeness, e.ended_by) for e in feeder.finish()] == [
        (1, Completeness.TRUNCATED, by),
        (3, Completeness.NO_RESPONSE, by),
        (5, Completeness.NO_RESPONSE, server),
    ]


LENGTHS = [
    (b"12345", Completeness.COMPLETE),
    (b"1234", Completeness.TRUNCATED),
    (b"", Completeness.TRUNCATED),
    (b"123456", Completeness.COMPLETE),  # malformed (RFC 9113 §8.1.1), but all of it was seen
]


@pytest.mark.parametrize("trailers", [False, True])
@pytest.mark.parametrize(("body", "label"), LENGTHS)
@pytest.mark.parametrize("side", list(Side))
def test_less_content_than_was_announced_is_cut_short(
    side: Side, body: bytes, label: Completeness, *, trailers: bool
) -> None:
    announced = [("content-length", "5")]
    wire = Wire()
    parts = [data(1, body[:2], pad=3), data(1, body[2:], end=not trailers)]
    if side is Side.REQUEST:
        wire.up(wire.request(1, post("/") + announced, end=False), *parts)
        if trailers:
            wire.up(_trailers(wire, Side.REQUEST, 1))
        wire.down(wire.response(1))
    else:
        wire.up(wire.request(1))
        wire.down(wire.response(1, 200, announced, end=False), *parts)
        if trailers:
            wire.down(_trailers(wire, Side.RESPONSE, 1))
    exchange = one(wire.finish())
    assert exchange.completeness is label
    by = EndedBy.REMOTE if side is Side.REQUEST else EndedBy.LOCAL
    assert exchange.ended_by is (by if label is Completeness.TRUNCATED else None)


@pytest.mark.parametrize("value", ["", "-1", "5, 5", "+5", "\u0665", "9" * 30, "0x5"])
def test_an_announced_length_that_is_none_says_nothing(value: str) -> None:
    wire = Wire()
    wire.up(wire.request(1))
    wire.down(wire.response(1, 200, [("content-length", value)]))
    assert one(wire.finish()).completeness is Completeness.COMPLETE


def test_a_stream_that_gives_way_to_others_was_not_left_unanswered() -> None:
    feeder = Feeder(Http2Analyzer(joined=False))
    feeder.feed(Side.REQUEST, PREFACE + settings())
    feeder.feed(Side.REQUEST, b"".join(headers(n, b"\x82\x84\x86") for n in range(1, 2 * MAX_STREAMS + 3, 2)))
    first = feeder.analyzer.exchanges[0]
    assert (first.stream_id, first.completeness, first.ended_by) == (1, Completeness.TRUNCATED, EndedBy.AGENT)
    feeder.finish()
