# SPDX-License-Identifier: Apache-2.0
"""Server push (RFC 9113 §8.4) and interim responses (RFC 9110 §15.2)."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Completeness, Side
from tests.support.http2_conversation import frame, get, post
from tests.support.http2_wire import (
    CONTINUATION,
    END_HEADERS,
    PADDED,
    PUSH_PROMISE,
    Wire,
    data,
    one,
    reset,
)


@pytest.mark.parametrize("shape", ["plain", "padded", "continued"])
def test_a_pushed_request_is_an_exchange_of_its_own(shape: str) -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/page")))
    block = wire.block(Side.RESPONSE, get("/style.css?v=1", "h.test"))
    promised = (2).to_bytes(4)
    promise = {
        "plain": frame(PUSH_PROMISE, END_HEADERS, 1, promised + block),
        "padded": frame(PUSH_PROMISE, END_HEADERS | PADDED, 1, b"\x03" + promised + block + bytes(3)),
        "continued": frame(PUSH_PROMISE, 0, 1, promised + block[:5]) + frame(CONTINUATION, END_HEADERS, 1, block[5:]),
    }[shape]
    wire.down(promise, wire.response(1, 200, end=False), data(1, b"<html>", end=True))
    wire.down(wire.response(2, 200, [("content-type", "text/css")], end=False), data(2, b"body{}", end=True))
    page, style = wire.finish()
    assert (page.stream_id, page.path, page.status, page.response_body_bytes) == (1, "/page", 200, 6)
    assert (style.stream_id, style.method, style.path, style.host) == (2, "GET", "/style.css", "h.test")
    assert (style.status, style.response_body_bytes, style.request_header_bytes) == (200, 6, len(block))
    assert style.completeness is page.completeness is Completeness.COMPLETE
    assert not wire.errors


def test_a_push_that_the_client_refuses() -> None:
    wire = Wire()
    wire.up(wire.request(1, get("/page")))
    wire.down(frame(PUSH_PROMISE, END_HEADERS, 1, (2).to_bytes(4) + wire.block(Side.RESPONSE, get("/style.css"))))
    wire.up(reset(2))
    wire.down(wire.response(1))
    refused, page = wire.finish()
    assert (refused.path, refused.completeness) == ("/style.css", Completeness.NO_RESPONSE)
    assert (page.path, page.status) == ("/page", 200)


def test_a_client_s_promise_is_decoded_for_the_table_s_sake_and_makes_no_exchange() -> None:
    wire = Wire()
    wire.up(frame(PUSH_PROMISE, END_HEADERS, 1, (2).to_bytes(4) + b"\x82"), wire.request(1))
    wire.down(wire.response(1))
    assert [exchange.stream_id for exchange in wire.finish()] == [1]


def test_interim_responses_leave_no_trace_but_keep_the_table_right() -> None:
    wire = Wire()
    wire.up(wire.request(1, post("/continue"), end=False))
    wire.down(wire.response(1, 100, end=False))
    wire.up(data(1, b"body", end=True))
    hints = wire.response(1, 103, [("link", "</a.css>; rel=preload")], end=False)
    final = wire.response(1, 200, [("link", "</a.css>; rel=preload")], end=False)
    wire.down(hints, hints[:0], final, data(1, b"ok", end=True))
    exchange = one(wire.finish())
    assert (exchange.status, exchange.request_body_bytes, exchange.response_body_bytes) == (200, 4, 2)
    assert exchange.response_header_bytes == len(final) - 9
    assert exchange.completeness is Completeness.COMPLETE


def test_only_an_interim_response_is_no_response() -> None:
    wire = Wire()
    wire.up(wire.request(1, post("/continue"), end=False))
    wire.down(wire.response(1, 100, end=False))
    exchange = one(wire.finish())
    assert (exchange.status, exchange.completeness) == (None, Completeness.NO_RESPONSE)
