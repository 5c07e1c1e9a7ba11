# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1 conversations that SkyWalking Rover loses or gets wrong: one test for each, named after it.

Calls are given as the kernel sees them, one list element a call, from the server's side.
"""

from __future__ import annotations

from rover_plugin.access_log.model import Completeness, ProtocolName
from tests.support.http1 import REQUEST, RESPONSE, Conversation, run

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def _one_more_works(conversation: Conversation) -> None:
    """The exchange after the unusual one is right, and complete."""
    before = len(conversation.analyzer.exchanges)
    request, response = conversation.request(GET), conversation.response(OK)
    (exchange,) = conversation.analyzer.exchanges[before:]
    assert (exchange.method, exchange.path, exchange.status) == ("GET", "/a", 200)
    assert exchange.completeness is Completeness.COMPLETE
    assert exchange.calls == [request, response]


def test_two_pipelined_requests_in_one_chunk() -> None:
    conversation = Conversation()
    both = conversation.request(GET + b"GET /b HTTP/1.1\r\n\r\n")
    first, second = conversation.response(OK), conversation.response(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
    _one_more_works(conversation)
    a, b, _ = conversation.close()
    assert (a.path, a.status, a.request_body_bytes, a.calls) == ("/a", 200, 0, [both, first])
    assert (b.path, b.status, b.calls) == ("/b", 404, [second])
    assert a.start_ns == b.start_ns == both.exit_ns


def test_two_responses_in_one_chunk() -> None:
    conversation = Conversation()
    conversation.request(GET)
    conversation.request(GET.replace(b"/a", b"/b"))
    conversation.response(OK + b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
    _one_more_works(conversation)
    assert [(e.path, e.status) for e in conversation.close()][:2] == [("/a", 200), ("/b", 404)]


def test_chunked_with_a_body_of_nothing() -> None:
    conversation = Conversation()
    conversation.request(GET)
    conversation.response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    _one_more_works(conversation)
    exchange = conversation.close()[0]
    assert (exchange.status, exchange.response_body_bytes, exchange.completeness) == (200, 0, Completeness.COMPLETE)


def test_chunked_with_the_terminator_in_its_own_write() -> None:
    conversation = Conversation()
    calls = [
        conversation.request(GET),
        conversation.response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        conversation.response(b"0\r\n\r\n"),
    ]
    (exchange,) = conversation.close()
    assert exchange.calls == calls
    assert exchange.end_ns == calls[-1].exit_ns


def test_head_response_with_a_content_length() -> None:
    conversation = Conversation()
    conversation.request(b"HEAD /a HTTP/1.1\r\n\r\n")
    conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")
    _one_more_works(conversation)
    head = conversation.close()[0]
    assert (head.method, head.status, head.response_body_bytes) == ("HEAD", 200, 0)


def test_304_with_a_content_length() -> None:
    conversation = Conversation()
    conversation.request(GET)
    conversation.response(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n")
    _one_more_works(conversation)
    assert conversation.close()[0].status == 304


def test_100_continue() -> None:
    conversation = Conversation()
    calls = [
        conversation.request(b"POST /up HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"),
        conversation.response(b"HTTP/1.1 100 Continue\r\n\r\n"),
        conversation.request(b"abc"),
        conversation.response(OK),
    ]
    _one_more_works(conversation)
    upload = conversation.close()[0]
    assert (upload.status, upload.request_body_bytes) == (200, 3)
    assert upload.calls == calls


def test_early_response_during_the_upload() -> None:
    conversation = Conversation()
    calls = [
        conversation.request(b"POST /up HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc"),
        conversation.response(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"),
        conversation.request(b"def"),
    ]
    _one_more_works(conversation)
    upload = conversation.close()[0]
    assert (upload.status, upload.request_body_bytes, upload.calls) == (403, 6, calls)


def test_close_delimited_body_over_two_writes() -> None:
    conversation = Conversation()
    calls = [
        conversation.request(GET),
        conversation.response(b"HTTP/1.1 200 OK\r\n\r\nfirst"),
        conversation.response(b" second"),
    ]
    (exchange,) = conversation.close()
    assert (exchange.response_body_bytes, exchange.calls) == (12, calls)
    assert exchange.completeness is Completeness.COMPLETE


def test_body_beyond_what_is_copied_of_one_call() -> None:
    conversation = Conversation()
    conversation.request(GET)
    conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\nxyz", unseen=499_997)
    _one_more_works(conversation)
    big = conversation.close()[0]
    assert (big.status, big.response_body_bytes, big.completeness) == (200, 500_000, Completeness.COMPLETE)


def test_body_sent_by_sendfile() -> None:
    conversation = Conversation()
    conversation.request(GET)
    conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n")
    conversation.response(b"", unseen=500_000)
    _one_more_works(conversation)
    big = conversation.close()[0]
    assert (big.response_body_bytes, big.completeness) == (500_000, Completeness.COMPLETE)


def test_body_moved_without_any_record() -> None:
    conversation = Conversation()
    conversation.request(GET)
    conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n")
    conversation.analyzer.gap(RESPONSE, 500_000)
    _one_more_works(conversation)
    big = conversation.close()[0]
    assert (big.response_body_bytes, big.completeness) == (500_000, Completeness.GAP)


def test_websocket_frames_are_stand_alone_calls() -> None:
    conversation = Conversation()
    conversation.request(b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
    conversation.response(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    frames = [conversation.request(b"\x81\x80abcd"), conversation.response(b"\x81\x02hi")]
    assert conversation.analyzer.handover is not None
    assert conversation.analyzer.handover.protocol is ProtocolName.TCP
    (upgrade,) = conversation.close()
    assert upgrade.status == 101
    assert conversation.analyzer.loose == frames


def test_a_request_that_never_gets_a_response() -> None:
    conversation = Conversation()
    call = conversation.request(GET)
    conversation.analyzer.expire(call.exit_ns)
    assert conversation.analyzer.exchanges == []
    conversation.analyzer.expire(call.exit_ns + 1)
    (exchange,) = conversation.close()
    assert (exchange.path, exchange.status, exchange.completeness) == ("/a", None, Completeness.NO_RESPONSE)
    assert exchange.calls == [call]


def test_a_slow_request_keeps_its_calls() -> None:
    """Rover drops what is 60 to 120 s old; a response that starts before the time-out is never given up."""
    conversation = Conversation()
    calls = [conversation.request(GET)]
    conversation.now_ns += 100_000_000_000
    calls.append(conversation.response(OK[:-1]))
    conversation.now_ns += 100_000_000_000
    conversation.analyzer.expire(conversation.now_ns)
    calls.append(conversation.response(OK[-1:]))
    (exchange,) = conversation.close()
    assert (exchange.calls, exchange.completeness) == (calls, Completeness.COMPLETE)


def test_an_unknown_method_keeps_its_name() -> None:
    (exchange,) = run([(REQUEST, b"PURGE /cache HTTP/1.1\r\n\r\n")])
    assert exchange.method == "PURGE"
