# SPDX-License-Identifier: Apache-2.0
"""What one HTTP/1 connection may hold, what it lets go of in time, and which bytes it says it does not need."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Completeness, Exchange
from rover_plugin.access_log.protocols.http1 import MAX_CALLS
from rover_plugin.access_log.protocols.http1_pairing import MAX_OUTSTANDING
from tests.support.http1 import REQUEST, RESPONSE, Conversation

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SECOND_NS = 1_000_000_000


def _get(number: int) -> bytes:
    return b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number


def _answer(number: int) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % (400 + number)


def _said(exchanges: list[Exchange]) -> list[tuple[str | None, int | None, str]]:
    return [(item.path, item.status, item.completeness.value) for item in exchanges]


def test_outstanding_requests_are_bounded_and_none_is_lost() -> None:
    conversation = Conversation()
    for number in range(MAX_OUTSTANDING + 500):
        conversation.request(_get(number))
        assert len(conversation.analyzer._pairing.queue) <= MAX_OUTSTANDING
    assert conversation.analyzer.errors["http1_too_many_requests_outstanding"] == 1
    exchanges = conversation.close()
    assert {item.path for item in exchanges} == {f"/{number}" for number in range(MAX_OUTSTANDING + 500)}
    assert {item.completeness for item in exchanges} == {Completeness.GAP, Completeness.NO_RESPONSE}


def test_a_response_after_its_request_was_given_up_is_not_the_next_requests() -> None:
    conversation = Conversation()
    first = conversation.request(_get(1))
    conversation.analyzer.expire(first.exit_ns + 1)
    conversation.request(_get(2))
    late = conversation.response(_answer(1))
    conversation.response(_answer(2))
    assert _said(conversation.close()) == [("/1", None, "no_response"), ("/2", 402, "complete")]
    assert conversation.analyzer.errors == {"http1_response_after_expiry": 1}
    assert conversation.analyzer.loose == [late]


def test_the_calls_of_one_exchange_are_bounded_its_sizes_go_on() -> None:
    conversation = Conversation()
    conversation.request(_get(1))
    conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n")
    for _ in range(2000):
        conversation.response(b"x")
    (exchange,) = conversation.close()
    assert len(exchange.calls) == MAX_CALLS
    assert len(conversation.analyzer.loose) == 2002 - MAX_CALLS
    assert (exchange.response_body_bytes, exchange.end_ns) == (2000, conversation.now_ns)


def test_content_of_known_length_need_not_be_copied() -> None:
    conversation = Conversation()
    conversation.request(b"PUT /1 HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc")
    assert conversation.analyzer.unneeded(REQUEST) == 997
    conversation.request(b"", unseen=997)
    assert conversation.analyzer.unneeded(REQUEST) == 0
    conversation.response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\nabc")
    assert conversation.analyzer.unneeded(RESPONSE) == 997


def test_content_until_close_is_never_needed_nor_is_what_is_in_a_tunnel() -> None:
    conversation = Conversation()
    conversation.request(_get(1))
    conversation.response(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert conversation.analyzer.unneeded(RESPONSE) == -1
    tunnel = Conversation()
    tunnel.request(b"CONNECT h:1 HTTP/1.1\r\n\r\n")
    tunnel.response(b"HTTP/1.1 200 OK\r\n\r\n")
    assert (tunnel.analyzer.unneeded(REQUEST), tunnel.analyzer.unneeded(RESPONSE)) == (-1, -1)


def test_content_of_a_response_whose_request_is_not_known_must_be_looked_at() -> None:
    conversation = Conversation(late_join=True)
    conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    assert conversation.analyzer.unneeded(RESPONSE) == 0  # it may answer HEAD


def test_a_request_with_interim_responses_is_proven_after_a_late_join() -> None:
    conversation = Conversation(late_join=True)
    conversation.request(b"PUT /1 HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    conversation.response(b"HTTP/1.1 100 Continue\r\n\r\n")
    conversation.request(b"abc")
    conversation.response(b"HTTP/1.1 103 Early Hints\r\n\r\n" + _answer(1))
    conversation.request(_get(2))
    assert _said(conversation.analyzer.exchanges) == [("/1", 401, "complete")]


def test_a_proven_exchange_does_not_wait_for_the_next_for_ever() -> None:
    conversation = Conversation(late_join=True)
    conversation.request(_get(1))
    last = conversation.response(_answer(1))
    assert conversation.analyzer.exchanges == []
    conversation.analyzer.expire(last.exit_ns + 1)
    assert _said(conversation.analyzer.exchanges) == [("/1", 401, "complete")]


def test_a_record_that_overtakes_the_one_before_it_costs_nothing() -> None:
    """The client has the response and asks again before the server's own call returns; another thread reads that."""
    conversation = Conversation()
    conversation.request(_get(1))
    first = conversation.call(RESPONSE, len(_answer(1)))
    conversation.request(_get(2))
    conversation.analyzer.receive(RESPONSE, first, _answer(1), 0)
    conversation.response(_answer(2))
    assert _said(conversation.close()) == [("/1", 401, "complete"), ("/2", 402, "complete")]


@pytest.mark.parametrize("idle", [False, True])
def test_one_that_pipelines_is_paired_again_after_an_idle_second(idle: bool) -> None:
    conversation = Conversation()
    conversation.request(_get(0))
    conversation.request(_get(1))
    conversation.lose(RESPONSE, len(_answer(0)))
    conversation.response(_answer(1))
    for number in (2, 3):
        conversation.request(_get(number))
    for number in (2, 3):
        conversation.response(_answer(number))
    if idle:
        conversation.now_ns += 2 * SECOND_NS
    conversation.request(_get(4))
    conversation.response(_answer(4))
    for number in (5, 6):
        conversation.request(_get(number))
    for number in (5, 6):
        conversation.response(_answer(number))
    whole = [item.path for item in conversation.close() if item.completeness is Completeness.COMPLETE]
    assert whole == (["/4", "/5", "/6"] if idle else [])
