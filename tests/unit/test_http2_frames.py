# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 frames as peers may write them (RFC 9113 §4, §6): padded, with priorities, continued, strewn in between.

`Wire.finish` also runs every script with one call cut in two at each of its bytes.
"""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Completeness, Side
from tests.support.http2_conversation import PREFACE, frame, get, post
from tests.support.http2_wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    HEADERS,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PRIORITY,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    Wire,
    data,
    headers,
    one,
    settings,
)

PRIORITY_FIELDS = b"\x80\0\0\x03\x10"


def test_a_request_and_its_response() -> None:
    wire = Wire()
    request = wire.request(1, post("/a?b=c", "h.test"), end=False)
    wire.up(request, data(1, b"four", end=True))
    response = wire.response(1, 201, end=False)
    wire.down(response, data(1, b"threeeeee"), data(1, b"", end=True))
    exchange = one(wire.finish())
    assert (exchange.method, exchange.path, exchange.host, exchange.status) == ("POST", "/a", "h.test", 201)
    assert (exchange.request_body_bytes, exchange.response_body_bytes) == (4, 9)
    assert exchange.request_header_bytes == len(request) - 9
    assert exchange.response_header_bytes == len(response) - 9
    assert exchange.completeness is Completeness.COMPLETE
    assert not wire.errors


def test_padding_and_priority_fields_are_in_no_size() -> None:
    wire = Wire()
    block = wire.block(Side.REQUEST, post("/p"))
    padded = b"\x07" + PRIORITY_FIELDS + block + bytes(7)
    wire.up(frame(HEADERS, END_HEADERS | PADDED | HAS_PRIORITY, 1, padded), data(1, b"abc", end=True, pad=200))
    answer = wire.block(Side.RESPONSE, [(":status", "200")])
    wire.down(frame(HEADERS, END_HEADERS | PADDED, 1, b"\0" + answer), data(1, b"xy", pad=0), data(1, end=True, pad=3))
    exchange = one(wire.finish())
    assert exchange.path == "/p"
    assert (exchange.request_header_bytes, exchange.request_body_bytes) == (len(block), 3)
    assert (exchange.response_header_bytes, exchange.response_body_bytes) == (len(answer), 2)


def test_a_block_in_many_continuation_frames_some_of_them_empty() -> None:
    wire = Wire()
    block = wire.block(Side.REQUEST, get("/continued", x="v" * 40))
    cuts = (0, 1, 1, 7, len(block) - 1, len(block))
    wire.up(headers(1, block, cuts=cuts))
    wire.down(wire.response(1, cuts=(0,)))
    exchange = one(wire.finish())
    assert (exchange.path, exchange.status) == ("/continued", 200)
    assert exchange.request_header_bytes == len(block)


def test_padded_headers_are_continued_unpadded() -> None:
    wire = Wire()
    block = wire.block(Side.REQUEST, get("/both"))
    first = frame(HEADERS, PADDED | END_STREAM, 1, b"\x05" + block[:4] + bytes(5))
    wire.up(first, frame(CONTINUATION, END_HEADERS, 1, block[4:]))
    wire.down(wire.response(1))
    assert one(wire.finish()).path == "/both"


def test_frames_that_say_nothing_to_the_log_are_passed_over_wherever_they_stand() -> None:
    wire = Wire()
    noise = (
        frame(PING, 0, 0, b"12345678")
        + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1")
        + frame(PRIORITY, 0, 3, PRIORITY_FIELDS) + frame(0xA, 0, 0, b"\0\0alt") + frame(0x10, 0, 0, b"\0\0\0\1u=1")
        + frame(0xC, 0, 0, b"\0\1o") + frame(0xFA, 0xFF, 0x7FFFFFFF, b"unknown kinds are ignored")
    )  # fmt: skip
    wire.up(
        noise, wire.request(1, post("/noise"), end=False), noise, data(1, b"a"), noise, data(1, b"b", end=True), noise
    )
    wire.down(noise, wire.response(1, end=False), noise, data(1, b"c", end=True), noise)
    exchange = one(wire.finish())
    assert (exchange.path, exchange.request_body_bytes, exchange.response_body_bytes) == ("/noise", 2, 1)
    assert not wire.errors


def test_the_reserved_bit_of_a_stream_id_is_ignored() -> None:
    wire = Wire()
    block = wire.block(Side.REQUEST, get("/reserved"))
    wire.up(frame(HEADERS, END_HEADERS | END_STREAM, 0x80000001, block))
    wire.down(wire.response(1, end=False), frame(DATA, END_STREAM, 0x80000001, b"ok"))
    exchange = one(wire.finish())
    assert (exchange.stream_id, exchange.path, exchange.response_body_bytes) == (1, "/reserved", 2)


def test_undefined_flags_are_ignored() -> None:
    wire = Wire()
    block = wire.block(Side.REQUEST, get("/flags"))
    wire.up(frame(HEADERS, END_HEADERS | END_STREAM | 0xD2, 1, block))
    wire.down(wire.response(1, end=False), frame(DATA, END_STREAM | 0xF6, 1, b"ok"))
    exchange = one(wire.finish())
    assert (exchange.path, exchange.response_body_bytes) == ("/flags", 2)


def test_a_frame_may_be_as_large_as_the_receiver_said_and_none_but_data_of_a_live_stream_larger() -> None:
    wire = Wire()
    wire.down(settings((MAX_FRAME_SIZE, 20_000)))
    wire.up(SETTINGS_ACK, SETTINGS_ACK, wire.request(1, post("/large"), end=False))
    body = bytes(20_000)
    wire.then(lambda feeder: feeder.feed(Side.REQUEST, data(1, body, end=True)))
    wire.down(wire.response(1))
    assert one(wire.finish()).request_body_bytes == 20_000
    assert not wire.errors
    for large in (data(3, body), frame(HEADERS, END_HEADERS, 3, body)):
        wire = Wire()
        wire.up(wire.request(1, post("/large"), end=False))
        wire.then(lambda feeder, large=large: feeder.feed(Side.REQUEST, large))
        wire.finish()
        assert wire.errors == {"frame_size": 1}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(DATA, 0, 0, b"stream zero"), "frame_order"),
        (frame(DATA, PADDED, 1, b"\x09only"), "padding"),
        (frame(HEADERS, END_HEADERS, 0, b"\x82"), "frame_order"),
        (frame(CONTINUATION, END_HEADERS, 1, b"\x82"), "frame_order"),
        (frame(PING, 0, 0, b"1234567"), "frame_order"),
        (frame(PING, 0, 1, b"12345678"), "frame_order"),
        (frame(4, 0, 0, b"12345"), "frame_order"),
        (frame(4, 0, 1), "frame_order"),
        (frame(3, 0, 1, b"123"), "frame_order"),
        (frame(3, 0, 0, b"1234"), "frame_order"),
        (frame(7, 0, 0, b"1234567"), "frame_order"),
        (frame(8, 0, 0, b"123"), "frame_order"),
        (frame(HEADERS, 0, 3, b"\x82") + frame(PING, 0, 0, b"12345678"), "frame_order"),
        (frame(HEADERS, 0, 3, b"\x82") + frame(HEADERS, END_HEADERS, 5, b"\x82"), "frame_order"),
        (frame(0x61, 0, 0x62636465, bytes(20_000)), "frame_size"),
    ],
)
def test_what_no_peer_may_send_is_counted_and_the_other_direction_goes_on(bad: bytes, reason: str) -> None:
    wire = Wire()
    wire.up(wire.request(1, post("/"), end=False))
    wire.up(bad[:9] if len(bad) > 10_000 else bad)
    wire.down(wire.response(1))
    exchange = wire.finish()[0]
    assert wire.errors[reason] == 1
    assert (exchange.path, exchange.status) == ("/", 200)
    assert exchange.completeness is Completeness.GAP  # the end of its body may be among what was not understood


def test_no_preface_is_counted_and_the_frames_are_found_all_the_same() -> None:
    wire = Wire(begins=False)
    wire.then(lambda feeder: feeder.feed(Side.REQUEST, settings()))
    for stream_id in (1, 3, 5):
        block = wire.request(stream_id, get(f"/{stream_id}"))
        wire.then(lambda feeder, block=block: feeder.feed(Side.REQUEST, block))  # type: ignore[misc]
    exchanges = wire.finish()
    assert wire.errors == {"no_preface": 1}
    assert [exchange.path for exchange in exchanges] == ["/1", "/3", "/5"]


def test_the_preface_may_come_byte_by_byte() -> None:
    wire = Wire(begins=False)
    for at in range(len(PREFACE)):
        wire.up(PREFACE[at : at + 1])
    wire.up(settings(), wire.request(1))
    wire.down(settings(), wire.response(1))
    assert one(wire.finish()).completeness is Completeness.COMPLETE
    assert len(wire.loose) == len(PREFACE)  # the SETTINGS share their calls with the exchange
