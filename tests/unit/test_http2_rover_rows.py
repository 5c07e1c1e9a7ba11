# SPDX-License-Identifier: Apache-2.0
"""Every observed outcome of rover-behaviour.md §7.4 (and P1 to P6, P13 of its defects) that is wrong there."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Completeness, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from tests.support.http2_conversation import PREFACE, Feeder, frame, get, grpc, post
from tests.support.http2_wire import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    HEADERS,
    PADDED,
    Wire,
    data,
    headers,
    one,
    settings,
)

MINUTE_NS = 60 * 10**9


def test_later_grpc_calls_on_a_connection_keep_their_headers() -> None:
    wire = Wire()
    for stream_id in (1, 3, 5, 7):
        wire.up(wire.request(stream_id, grpc("/s/Get", "orders:9000"), end=False), data(stream_id, b"q", end=True))
        wire.down(
            wire.response(stream_id, 200, [("content-type", "application/grpc")], end=False), data(stream_id, b"a")
        )
        wire.down(wire.response(stream_id, None, [("grpc-status", "0")]))
    for exchange in wire.finish():
        assert (exchange.path, exchange.host, exchange.status) == ("/s/Get", "orders:9000", 200)
        assert exchange.completeness is Completeness.COMPLETE


def test_a_response_that_ends_on_a_data_frame_is_logged() -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/page")))
    wire.down(wire.response(1, 200, end=False), data(1, b"<html>", end=True))
    wire.then(_no_stream_is_left)
    assert one(wire.finish()).response_body_bytes == 6


def _no_stream_is_left(feeder: Feeder) -> None:
    assert not feeder.analyzer._streams


@pytest.mark.parametrize("fields", [[], [("grpc-status", "14"), ("grpc-message", "down")]])
def test_a_response_of_headers_alone_is_logged(fields: list[tuple[str, str]]) -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/cached")))
    wire.down(wire.response(1, 200 if fields else 304, fields))
    exchange = one(wire.finish())
    assert (exchange.status, exchange.grpc_status) == ((200, 14) if fields else (304, None))


def test_a_request_that_takes_longer_than_three_minutes_is_logged() -> None:
    wire = Wire(begins=False)
    feeder = Feeder(Http2Analyzer(joined=True))
    feeder.feed(Side.REQUEST, PREFACE + settings() + wire.request(1, post("/upload"), end=False))
    for _ in range(5):
        feeder.now += MINUTE_NS
        feeder.feed(Side.REQUEST, data(1, b"part"))
        feeder.analyzer.expire(feeder.now - MINUTE_NS)
    feeder.feed(Side.REQUEST, data(1, end=True))
    feeder.feed(Side.RESPONSE, settings() + wire.response(1, 201))
    exchange = one(feeder.finish())
    assert (exchange.path, exchange.status, exchange.request_body_bytes) == ("/upload", 201, 20)
    assert exchange.end_ns - exchange.start_ns >= 5 * MINUTE_NS


def test_a_get_without_body_and_a_response_with_trailers_is_logged() -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/trailers")))
    wire.down(wire.response(1, 200, end=False), data(1, b"abc"), wire.response(1, None, [("x-checksum", "1")]))
    exchange = one(wire.finish())
    assert (exchange.method, exchange.status, exchange.response_body_bytes) == ("GET", 200, 3)


@pytest.mark.parametrize(
    "shape", ["priority", "padded", "padded and priority", "continuation", "two reads", "two reads of a continuation"]
)
def test_a_header_block_of_any_shape_breaks_nothing(shape: str) -> None:
    wire = Wire()
    block = wire.block(Side.REQUEST, get("/shaped", "h.test"))
    priority = b"\0\0\0\0\x10"
    plain = END_HEADERS | END_STREAM
    continued = headers(1, block, cuts=(5,))
    for part in {
        "priority": (frame(HEADERS, plain | HAS_PRIORITY, 1, priority + block),),
        "padded": (frame(HEADERS, plain | PADDED, 1, b"\x04" + block + bytes(4)),),
        "padded and priority": (
            frame(HEADERS, plain | PADDED | HAS_PRIORITY, 1, b"\x04" + priority + block + bytes(4)),
        ),
        "continuation": (frame(HEADERS, END_STREAM, 1, block[:9]) + frame(CONTINUATION, END_HEADERS, 1, block[9:]),),
        "two reads": (headers(1, block)[:12], headers(1, block)[12:]),
        "two reads of a continuation": (continued[:20], continued[20:]),
    }[shape]:
        wire.up(part)
    wire.down(wire.response(1))
    for stream_id in (3, 5):
        wire.up(wire.request(stream_id, get("/next", "h.test")))
        wire.down(wire.response(stream_id))
    exchanges = wire.finish()
    assert [(e.path, e.host, e.status) for e in exchanges] == [
        ("/shaped", "h.test", 200),
        ("/next", "h.test", 200),
        ("/next", "h.test", 200),
    ]
    assert not wire.errors


def test_the_client_preface_in_the_data_breaks_nothing() -> None:
    wire = Wire()
    wire.up(wire.request(1))
    wire.down(wire.response(1))
    assert one(wire.finish()).completeness is Completeness.COMPLETE


def test_joining_in_the_middle_of_a_stream_breaks_nothing() -> None:
    wire = Wire(joined=True, begins=False)
    unseen = wire.request(1, get("/unseen", "h.test"))
    assert unseen
    wire.then(lambda feeder: feeder.feed(Side.RESPONSE, data(1, b"the middle of a body that began before")))
    for stream_id in (3, 5, 7, 9):
        up, down = wire.request(stream_id, get(f"/{stream_id}", "h.test")), wire.response(stream_id, 201)
        wire.then(lambda feeder, up=up: feeder.feed(Side.REQUEST, up))  # type: ignore[misc]
        wire.then(lambda feeder, down=down: feeder.feed(Side.RESPONSE, down))  # type: ignore[misc]
    exchanges = [exchange for exchange in wire.finish() if exchange.stream_id != 1]
    assert [(e.path, e.status) for e in exchanges] == [(f"/{n}", 201) for n in (3, 5, 7, 9)]
    assert {e.host for e in exchanges} == {None}  # in the table since before
    assert {e.completeness for e in exchanges} == {Completeness.LATE_JOIN}


def test_a_data_frame_in_two_reads_counts_once_and_what_is_before_it_is_decoded_once() -> None:
    wire = Wire()
    head = wire.request(1, post("/up", "h.test", x="inserted"), end=False)
    body = data(1, bytes(100), end=True)
    wire.up(head, body[:50])
    wire.up(body[50:], wire.request(3, get("/next", "h.test", x="inserted")))
    wire.down(wire.response(1), wire.response(3))
    first, second = wire.finish()
    assert (first.request_header_bytes, first.request_body_bytes) == (len(head) - 9, 100)
    assert (second.path, second.host) == ("/next", "h.test")


def test_the_path_has_no_query_as_in_http_1() -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/find?q=1#there")))
    wire.down(wire.response(1))
    assert one(wire.finish()).path == "/find"


def test_sizes_are_without_frame_headers() -> None:
    wire = Wire()
    head, answer = wire.request(1, post("/"), end=False), wire.response(1, 200, end=False)
    wire.up(head, data(1, b"12", pad=40), data(1, b"3", end=True))
    wire.down(answer, data(1, b"4567", end=True))
    exchange = one(wire.finish())
    assert (exchange.request_header_bytes, exchange.request_body_bytes) == (len(head) - 9, 3)
    assert (exchange.response_header_bytes, exchange.response_body_bytes) == (len(answer) - 9, 4)
