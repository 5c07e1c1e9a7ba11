# SPDX-License-Identifier: Apache-2.0
"""Messages that a connection's end cuts short (RFC 9112 §8): labelled, with who ended them; whole ones are complete."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Completeness, EndedBy
from tests.support.http1 import REQUEST, RESPONSE, Conversation

LOCAL, REMOTE, RESET, AGENT = EndedBy
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

CUT_RESPONSES = {
    "content-length": (LENGTH + b"a" * 500, 500),
    "content-length, only the head": (LENGTH, 0),
    "in a chunk": (CHUNKED + b"400\r\n" + b"a" * 500, 500),
    "after a chunk": (CHUNKED + b"5\r\nabcde", 5),
    "before the last chunk": (CHUNKED + b"5\r\nabcde\r\n", 5),
    "in a chunk-size line": (CHUNKED + b"5\r\nabcde\r\n1", 5),
    "in the trailers": (CHUNKED + b"5\r\nabcde\r\n0\r\nX: ", 5),
    "in the head": (b"HTTP/1.1 200 OK\r\nContent-Le", 0),
}


@pytest.mark.parametrize("by", EndedBy)
@pytest.mark.parametrize("name", CUT_RESPONSES)
def test_a_cut_response(name: str, by: EndedBy) -> None:
    data, body = CUT_RESPONSES[name]
    conversation = Conversation()
    conversation.request(GET)
    conversation.response(data)
    (exchange,) = conversation.close((LOCAL, by))
    assert (exchange.path, exchange.status, exchange.response_body_bytes) == ("/a", 200, body)
    assert (exchange.completeness, exchange.ended_by) == (Completeness.TRUNCATED, by)


@pytest.mark.parametrize(
    ("client", "by", "whole"),
    [
        (False, LOCAL, True),
        (False, REMOTE, True),  # it had shut its own side down, and read on
        (False, RESET, False),
        (False, AGENT, False),
        (True, REMOTE, True),
        (True, LOCAL, False),
        (True, RESET, False),
        (True, AGENT, False),
    ],
)
def test_content_until_close_is_whole_where_its_writer_ended_it(client: bool, by: EndedBy, whole: bool) -> None:
    conversation = Conversation(client=client)
    conversation.request(GET)
    conversation.response(UNTIL_CLOSE + b"a" * 77)
    (exchange,) = conversation.close((by, by))
    assert exchange.response_body_bytes == 77
    expected = (Completeness.COMPLETE, None) if whole else (Completeness.TRUNCATED, by)
    assert (exchange.completeness, exchange.ended_by) == expected


def test_a_request_answered_before_its_end() -> None:
    conversation = Conversation()
    conversation.request(POST + b"a" * 100)
    conversation.response(TOO_LARGE)
    (exchange,) = conversation.close((REMOTE, LOCAL))
    assert (exchange.status, exchange.request_body_bytes) == (413, 100)
    assert (exchange.completeness, exchange.ended_by) == (Completeness.TRUNCATED, REMOTE)


def test_a_request_answered_early_that_goes_on_is_complete() -> None:
    conversation = Conversation()
    conversation.request(POST + b"a" * 100)
    conversation.response(TOO_LARGE)
    conversation.request(b"a" * 900)
    (exchange,) = conversation.close((LOCAL, LOCAL))
    assert (exchange.request_body_bytes, exchange.completeness, exchange.ended_by) == (1000, "complete", None)


def test_a_cut_request_that_nothing_answered() -> None:
    conversation = Conversation()
    conversation.request(POST + b"a" * 100)
    (exchange,) = conversation.close((REMOTE, LOCAL))
    assert (exchange.status, exchange.request_body_bytes) == (None, 100)
    assert (exchange.completeness, exchange.ended_by) == (Completeness.NO_RESPONSE, REMOTE)


@pytest.mark.parametrize("by", [LOCAL, REMOTE, RESET])
def test_a_whole_request_that_nothing_answered(by: EndedBy) -> None:
    conversation = Conversation()
    conversation.request(GET)
    (exchange,) = conversation.close((REMOTE, by))
    assert (exchange.completeness, exchange.ended_by) == (Completeness.NO_RESPONSE, by)


@pytest.mark.parametrize("late_join", [False, True])
def test_what_was_whole_before_the_end_is_complete(late_join: bool) -> None:
    conversation = Conversation(late_join=late_join)
    for _ in range(2):
        conversation.request(GET)
        conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    labels = [(exchange.completeness, exchange.ended_by) for exchange in conversation.close((RESET, RESET))]
    assert labels == [(Completeness.COMPLETE, None)] * 2


@pytest.mark.parametrize("way", ["not copied", "lost", "not copied, again and again"])
@pytest.mark.parametrize("late_join", [False, True])
def test_an_answer_that_nobody_could_read_is_no_missing_answer(way: str, late_join: bool) -> None:
    conversation = Conversation(late_join=late_join)
    for _ in range(3):
        conversation.request(GET)
        if way == "lost":
            conversation.lose(RESPONSE, 1041)
        else:
            conversation.response(b"", unseen=1041)
        if way.endswith("again"):
            conversation.response(b"", unseen=500)
    exchanges = conversation.close((LOCAL, LOCAL))
    assert [exchange.path for exchange in exchanges] == ["/a"] * 3
    assert {exchange.status for exchange in exchanges} == {None}
    assert Completeness.NO_RESPONSE not in {exchange.completeness for exchange in exchanges}


@pytest.mark.parametrize("late_join", [False, True])
def test_an_answer_cut_in_its_first_line_is_no_missing_answer(late_join: bool) -> None:
    conversation = Conversation(late_join=late_join)
    conversation.request(GET)
    conversation.response(b"HTTP/1.1 2")
    (exchange,) = conversation.close((LOCAL, REMOTE))
    assert (exchange.status, exchange.completeness, exchange.ended_by) == (None, Completeness.TRUNCATED, REMOTE)


@pytest.mark.parametrize("whole", [False, True])
def test_an_answer_under_way_is_no_missing_answer_at_a_time_out(whole: bool) -> None:
    conversation = Conversation()
    conversation.request(GET)
    conversation.response(b"HTTP/1.1 200 OK\r\nX: ")
    conversation.analyzer.expire(conversation.now_ns + 1)
    assert conversation.analyzer.exchanges == []
    if whole:
        conversation.response(b"y\r\nContent-Length: 0\r\n\r\n")
    (exchange,) = conversation.close((LOCAL, LOCAL))
    assert (exchange.status, exchange.completeness) == (200, "complete" if whole else "truncated")


def test_after_an_answer_that_was_lost_a_request_that_nothing_answers_is_seen_as_one() -> None:
    conversation = Conversation()
    conversation.request(GET)
    conversation.lose(RESPONSE, 50)
    conversation.request(GET)
    conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    conversation.request(GET)
    first, second, third = conversation.close((LOCAL, LOCAL))
    assert [(e.status, e.completeness) for e in (first, second, third)] == [
        (None, Completeness.GAP),
        (200, Completeness.COMPLETE),
        (None, Completeness.NO_RESPONSE),
    ]
    assert (first.ended_by, third.ended_by) == (None, LOCAL)


REFUSALS = [
    b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 401 Who\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
]
OFFERS = {
    "content-length": (b"Content-Length: 12\r\n", b"hello-body-1", 12),
    "like a method": (b"Content-Length: 9\r\n", b"GET it: 1", 9),
    "like a request with another line end": (b"Content-Length: 12\r\n", b"POST h\r\n\r\nxy", 12),
    "chunked": (b"Transfer-Encoding: chunked\r\n", b"C\r\nhello-body-1\r\n0\r\n\r\n", 12),
}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
NEXT = {
    "GET": b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n",
    "PROPFIND": b"PROPFIND http://h/next HTTP/1.1\r\nHost: h\r\n\r\n",
    "OPTIONS": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "CONNECT": b"CONNECT h.test:443 HTTP/1.1\r\nHost: h\r\n\r\n",
}


def _offer(fields: bytes) -> bytes:
    return b"POST /u HTTP/1.1\r\nHost: h\r\n" + fields + b"Expect: 100-Continue\r\n\r\n"


@pytest.mark.parametrize("late_join", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("following", NEXT)
@pytest.mark.parametrize("offer", ["content-length", "chunked"])
def test_declined_content_is_none_and_the_next_request_is_one(
    offer: str, following: str, refusal: bytes, step: int, late_join: bool
) -> None:
    conversation = Conversation(late_join=late_join)
    conversation.request(_offer(OFFERS[offer][0]))
    conversation.response(refusal)
    data = NEXT[following]
    for at in range(0, len(data), step):
        conversation.request(data[at : at + step])
    conversation.response(OK)
    first, second = conversation.close((LOCAL, LOCAL))
    assert (first.path, first.request_body_bytes, first.completeness) == ("/u", 0, "complete")
    assert (second.method, second.status, second.completeness) == (following, 200, "complete")
    assert second.request_header_bytes == len(data)


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("offer", OFFERS)
def test_content_that_is_sent_all_the_same_is_content(offer: str, refused: bool, step: int) -> None:
    fields, content, size = OFFERS[offer]
    conversation = Conversation()
    conversation.request(_offer(fields))
    if refused:
        conversation.response(REFUSALS[0])
    for at in range(0, len(content), step):
        conversation.request(content[at : at + step])
    if not refused:
        conversation.response(OK)
    conversation.request(NEXT["GET"])
    conversation.response(OK)
    first, second = conversation.close((LOCAL, LOCAL))
    assert (first.request_body_bytes, first.completeness) == (size, "complete")
    assert first.status == (417 if refused else 200)
    assert (second.path, second.status, second.completeness) == ("/next", 200, "complete")


@pytest.mark.parametrize("seen", [b"", b"GE"])
def test_declined_content_and_no_other_request(seen: bytes) -> None:
    conversation = Conversation()
    conversation.request(_offer(OFFERS["content-length"][0]))
    conversation.response(REFUSALS[0])
    if seen:
        conversation.request(seen)
    (exchange,) = conversation.close((REMOTE, REMOTE))
    assert (exchange.status, exchange.request_body_bytes) == (417, 0)
    expected = (Completeness.TRUNCATED, REMOTE) if seen else (Completeness.COMPLETE, None)
    assert (exchange.completeness, exchange.ended_by) == expected


def test_declined_content_is_settled_by_time() -> None:
    conversation = Conversation()
    conversation.request(_offer(OFFERS["content-length"][0]))
    conversation.response(REFUSALS[0])
    conversation.analyzer.expire(conversation.now_ns + 1)
    (exchange,) = conversation.analyzer.exchanges
    assert exchange.completeness is Completeness.COMPLETE
    conversation.request(NEXT["GET"])
    conversation.response(OK)
    assert [(e.path, e.completeness) for e in conversation.close()][1:] == [("/next", "complete")]


def test_content_need_not_be_copied_once_it_is_known_to_come() -> None:
    conversation = Conversation()
    conversation.request(_offer(b"Content-Length: 100000\r\n"))
    assert conversation.analyzer.unneeded(REQUEST) == 0
    conversation.response(b"HTTP/1.1 100 Continue\r\n\r\n")
    conversation.request(b"a", unseen=9)
    assert conversation.analyzer.unneeded(REQUEST) == 99_990
