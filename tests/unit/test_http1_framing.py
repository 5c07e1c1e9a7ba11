# SPDX-License-Identifier: Apache-2.0
"""Message framing (RFC 9112 §6, §7) by the request a response answers; each conversation also cut at every byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from rover_plugin.access_log.model import Completeness, ProtocolName
from tests.support.http1 import REQUEST, RESPONSE, Conversation, framing, run

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Exchange, Side

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NO_CONTENT_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LONG = b"X-Long: " + b"v" * 300 + b"\r\n"


@dataclass(frozen=True)
class Expected:
    """What one exchange must say; sizes are content sizes, header sizes follow from the script where they matter."""

    method: str
    path: str
    status: int | None
    request_body: int = 0
    response_body: int = 0
    host: str | None = None
    completeness: Completeness = Completeness.COMPLETE

    @staticmethod
    def of(exchange: Exchange) -> Expected:
        return Expected(
            exchange.method or "",
            exchange.path or "",
            exchange.status,
            exchange.request_body_bytes,
            exchange.response_body_bytes,
            exchange.host,
            exchange.completeness,
        )


@dataclass(frozen=True)
class Scenario:
    name: str
    script: list[tuple[Side, bytes]]
    expected: list[Expected]
    handover: ProtocolName | None = None
    errors: tuple[str, ...] = field(default=())


def _ask(head: bytes, body: bytes = b"") -> tuple[Side, bytes]:
    return REQUEST, head.replace(b"\n", b"\r\n") + body


def _answer(head: bytes, body: bytes = b"") -> tuple[Side, bytes]:
    return RESPONSE, head.replace(b"\n", b"\r\n") + body


GET = _ask(b"GET /a HTTP/1.1\nHost: h\n\n")
GOT = Expected("GET", "/a", 200, 0, 2, "h")

SCENARIOS = [
    Scenario("content-length", [GET, (RESPONSE, OK)], [GOT]),
    Scenario("keep-alive", [GET, (RESPONSE, OK), GET, (RESPONSE, OK)], [GOT, GOT]),
    Scenario(
        "body of a request and of a response over several calls",
        [
            _ask(b"POST /p HTTP/1.1\nContent-Length: 9\n\n", b"abc"),
            (REQUEST, b"def"),
            (REQUEST, b"ghi"),
            (RESPONSE, OK),
        ],
        [Expected("POST", "/p", 200, 9, 2)],
    ),
    Scenario(
        "chunked both ways",
        [
            _ask(b"POST /c HTTP/1.1\nTransfer-Encoding: chunked\n\n", b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"),
            _answer(b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"1\r\nx\r\n0\r\n\r\n"),
        ],
        [Expected("POST", "/c", 200, 13, 1)],
    ),
    Scenario(
        "chunk extensions, leading zeros, trailers",
        [
            GET,
            _answer(
                b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: Digest\n\n",
                b'0003;name="va;l\\"ue";x\r\nabc\r\n5 ; y = z \r\nhello\r\n000;last\r\nDigest: x\r\nMore: y\r\n\r\n',
            ),
            GET,
            (RESPONSE, OK),
        ],
        [Expected("GET", "/a", 200, 0, 8, "h"), GOT],
    ),
    Scenario(
        "chunked wins over content-length, after other codings",
        [
            GET,
            _answer(
                b"HTTP/1.1 200 OK\nContent-Length: 99\nTransfer-Encoding: gzip\nTransfer-Encoding: Chunked\n\n",
                b"1\r\nx\r\n0\r\n\r\n",
            ),
            GET,
            (RESPONSE, OK),
        ],
        [Expected("GET", "/a", 200, 0, 1, "h"), GOT],
    ),
    Scenario(
        "a response coded otherwise lasts until close",
        [GET, _answer(b"HTTP/1.1 200 OK\nTransfer-Encoding: gzip\nContent-Length: 1\n\n", b"12345")],
        [Expected("GET", "/a", 200, 0, 5, "h")],
    ),
    Scenario(
        "close-delimited over several calls",
        [GET, _answer(b"HTTP/1.1 200 OK\n\n", b"HTTP"), (RESPONSE, b"more"), (RESPONSE, b"HTTP/1.1 200 OK\r\n")],
        [Expected("GET", "/a", 200, 0, 25, "h")],
    ),
    Scenario(
        "HTTP/1.0, close-delimited",
        [_ask(b"GET /old HTTP/1.0\n\n"), _answer(b"HTTP/1.0 200 OK\nServer: x\n\n", b"body")],
        [Expected("GET", "/old", 200, 0, 4)],
    ),
    Scenario(
        "HTTP/1.0 with keep-alive",
        [
            _ask(b"GET /old HTTP/1.0\nConnection: keep-alive\n\n"),
            _answer(b"HTTP/1.0 200 OK\nContent-Length: 2\n\n", b"ok"),
        ]
        * 2,
        [Expected("GET", "/old", 200, 0, 2)] * 2,
    ),
    Scenario(
        "HEAD, 304 and 204 have no content whatever they say",
        [
            _ask(b"HEAD /h HTTP/1.1\n\n"),
            _answer(b"HTTP/1.1 200 OK\nContent-Length: 1000\n\n"),
            GET,
            _answer(b"HTTP/1.1 304 Not Modified\nContent-Length: 1000\n\n"),
            GET,
            _answer(b"HTTP/1.1 204 No Content\nTransfer-Encoding: chunked\n\n"),
            _ask(b"HEAD /h HTTP/1.1\n\n"),
            _answer(b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n"),
            GET,
            (RESPONSE, OK),
        ],
        [
            Expected("HEAD", "/h", 200),
            Expected("GET", "/a", 304, host="h"),
            Expected("GET", "/a", 204, host="h"),
            Expected("HEAD", "/h", 200),
            GOT,
        ],
    ),
    Scenario(
        "100 Continue and 103 Early Hints come before the response",
        [
            _ask(b"PUT /e HTTP/1.1\nExpect: 100-continue\nContent-Length: 3\n\n"),
            _answer(b"HTTP/1.1 100 Continue\n\n"),
            (REQUEST, b"abc"),
            _answer(b"HTTP/1.1 103 Early Hints\nLink: </x>\n\nHTTP/1.1 102 Processing\n\n"),
            (RESPONSE, OK),
        ],
        [Expected("PUT", "/e", 200, 3, 2)],
    ),
    Scenario(
        "expectation refused, the body never sent",
        [
            _ask(b"PUT /e HTTP/1.1\nExpect: 100-continue\nContent-Length: 3\n\n"),
            _answer(b"HTTP/1.1 417 No\nContent-Length: 0\n\n"),
        ],
        [Expected("PUT", "/e", 417)],
    ),
    Scenario(
        "early response while the request goes on",
        [
            _ask(b"POST /big HTTP/1.1\nContent-Length: 6\n\n", b"12"),
            _answer(b"HTTP/1.1 413 Too Large\nContent-Length: 2\n\n", b"no"),
            (REQUEST, b"3456"),
            GET,
            (RESPONSE, OK),
        ],
        [Expected("POST", "/big", 413, 6, 2), GOT],
    ),
    Scenario(
        "pipelining both ways in single calls",
        [
            (
                REQUEST,
                GET[1] + b"HEAD /b HTTP/1.1\r\n\r\n" + b"POST /c HTTP/1.1\r\nContent-Length: 1\r\n\r\nx" + GET[1],
            ),
            (RESPONSE, OK + b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n" + NO_CONTENT_OK + OK),
        ],
        [GOT, Expected("HEAD", "/b", 200), Expected("POST", "/c", 200, 1, 0), GOT],
    ),
    Scenario(
        "absolute-form, its authority before Host",
        [_ask(b"GET http://user@example.com:8080/x/y?q#f HTTP/1.1\nHost: other\n\n"), (RESPONSE, OK)],
        [Expected("GET", "/x/y", 200, 0, 2, "example.com:8080")],
    ),
    Scenario(
        "absolute-form without a path",
        [_ask(b"GET http://example.com?q HTTP/1.1\n\n"), (RESPONSE, OK)],
        [Expected("GET", "/", 200, 0, 2, "example.com")],
    ),
    Scenario(
        "asterisk-form",
        [_ask(b"OPTIONS * HTTP/1.1\nHost: h\n\n"), (RESPONSE, OK)],
        [Expected("OPTIONS", "*", 200, 0, 2, "h")],
    ),
    Scenario(
        "methods outside the nine",
        [
            _ask(b"PROPFIND /dav HTTP/1.1\nHost: h\n\n"),
            (RESPONSE, OK),
            _ask(b"m-search~1 /x HTTP/1.1\n\n"),
            (RESPONSE, OK),
        ],
        [Expected("PROPFIND", "/dav", 200, 0, 2, "h"), Expected("m-search~1", "/x", 200, 0, 2)],
        errors=("http1_other_method",),
    ),
    Scenario(
        "query and fragment are no path; percent-encoding and blanks stay",
        [_ask(b"GET /a%20b%2Fc?d=/e HTTP/1.1\n\n"), (RESPONSE, OK), _ask(b"GET /x y#z?q HTTP/1.1\n\n"), (RESPONSE, OK)],
        [Expected("GET", "/a%20b%2Fc", 200, 0, 2), Expected("GET", "/x y", 200, 0, 2)],
    ),
    Scenario(
        "bytes that are not UTF-8 are replaced",
        [_ask(b"GET /caf\xc3\xa9/\xff HTTP/1.1\nHost: \xfe\n\n"), (RESPONSE, OK)],
        [Expected("GET", "/café/�", 200, 0, 2, "�")],
    ),
    Scenario(
        "bare LF, empty lines before the request, no reason phrase",
        [
            (REQUEST, b"\r\n\nGET /a HTTP/1.1\nHost: h\n\n"),
            (RESPONSE, b"HTTP/1.1 200\nContent-Length: 2\n\nok"),
            (REQUEST, b"GET /a HTTP/1.1\r\nHost: h\n\r\n"),
            (RESPONSE, b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\nok"),
        ],
        [GOT, GOT],
    ),
    Scenario(
        "bare LF in chunk framing",
        [GET, (RESPONSE, b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nok\n0\nT: x\n\n"), GET, (RESPONSE, OK)],
        [GOT, GOT],
    ),
    Scenario(
        "a bare-LF head before a CRLF head in one call",
        [(REQUEST, b"GET /n HTTP/1.1\nHost: n\n\n" + GET[1]), (RESPONSE, OK + OK)],
        [Expected("GET", "/n", 200, 0, 2, "n"), GOT],
    ),
    Scenario(
        "obs-fold",
        [
            _ask(b"POST /f HTTP/1.1\nHost:\n  folded.example\nContent-Length:\n\t3\n\n", b"abc"),
            _answer(b"HTTP/1.1 200 OK\nX: y\n Content-Length: 9\nTransfer-Encoding: gzip,\n chunked\n\n", b"0\r\n\r\n"),
            GET,
            (RESPONSE, OK),
        ],
        [Expected("POST", "/f", 200, 3, 0, "folded.example"), GOT],
    ),
    Scenario(
        "equal content-lengths are one",
        [
            _ask(b"POST /l HTTP/1.1\nContent-Length: 3, 3\ncontent-length : 3\nContent-Length-Not: 9\n\n", b"abc"),
            (RESPONSE, OK),
            GET,
            (RESPONSE, OK),
        ],
        [Expected("POST", "/l", 200, 3, 2), GOT],
    ),
    Scenario(
        "different content-lengths in a response",
        [GET, _answer(b"HTTP/1.1 200 OK\nContent-Length: 3\nContent-Length: 4\n\n", b"abcd")],
        [Expected("GET", "/a", 200, 0, 0, "h", Completeness.TRUNCATED)],
        errors=("http1_bad_content_length",),
    ),
    Scenario(
        "a content-length that is no number in a request",
        [
            _ask(b"POST /l HTTP/1.1\nContent-Length: +3\n\n", b"abc"),
            _answer(b"HTTP/1.1 400 Bad\nContent-Length: 0\n\n"),
        ],
        [Expected("POST", "/l", 400, 0, 0, None, Completeness.TRUNCATED)],
        errors=("http1_bad_content_length",),
    ),
    Scenario(
        "a chunk size that is no number",
        [GET, _answer(b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"2\r\nok\r\n1_0\r\nxx")],
        [Expected("GET", "/a", 200, 0, 2, "h", Completeness.TRUNCATED)],
        errors=("http1_bad_chunk_size",),
    ),
    Scenario(
        "a chunk longer than its size",
        [GET, _answer(b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"2\r\nokay\r\n")],
        [Expected("GET", "/a", 200, 0, 2, "h", Completeness.TRUNCATED)],
        errors=("http1_bad_chunk_end",),
    ),
    Scenario(
        "upgrade to WebSocket",
        [
            _ask(b"GET /ws HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: websocket\n\n"),
            _answer(b"HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: websocket\n\n", b"\x81\x02hi"),
            (REQUEST, b"\x81\x82\x00\x00\x00\x00yo"),
            (RESPONSE, b"HTTP/1.1 200 OK\r\n\r\n"),
        ],
        [Expected("GET", "/ws", 101, host="h")],
        ProtocolName.TCP,
    ),
    Scenario(
        "upgrade declined",
        [_ask(b"GET /a HTTP/1.1\nHost: h\nUpgrade: websocket\n\n"), (RESPONSE, OK), GET, (RESPONSE, OK)],
        [GOT, GOT],
    ),
    Scenario(
        "CONNECT",
        [
            _ask(b"CONNECT example.com:443 HTTP/1.1\nHost: example.com:443\n\n"),
            _answer(b"HTTP/1.1 200 Connection established\n\n"),
            (REQUEST, b"\x16\x03\x01\x00\x05hello"),
        ],
        [Expected("CONNECT", "", 200, host="example.com:443")],
        ProtocolName.TCP,
    ),
    Scenario(
        "CONNECT with impatient bytes",
        [
            _ask(b"CONNECT example.com:443 HTTP/1.1\n\n"),
            (REQUEST, b"\x16\x03\x01\x00\x05hello"),
            _answer(b"HTTP/1.1 200 Connection established\nContent-Length: 5\n\n"),
        ],
        [Expected("CONNECT", "", 200, host="example.com:443")],
        ProtocolName.TCP,
    ),
    Scenario(
        "CONNECT refused, the connection goes on",
        [
            _ask(b"CONNECT example.com:443 HTTP/1.1\n\n"),
            _answer(b"HTTP/1.1 407 Who are you\nContent-Length: 2\n\n", b"no"),
            GET,
            (RESPONSE, OK),
        ],
        [Expected("CONNECT", "", 407, 0, 2, "example.com:443"), GOT],
    ),
    Scenario(
        "no response before the connection closes",
        [GET, (RESPONSE, OK), GET],
        [GOT, Expected("GET", "/a", None, host="h", completeness=Completeness.NO_RESPONSE)],
    ),
    Scenario(
        "long headers",
        [_ask(b"GET /a HTTP/1.1\n" + LONG.replace(b"\r", b"") * 3 + b"Host: h\n\n"), (RESPONSE, OK)],
        [GOT],
    ),
]

_ids = [scenario.name for scenario in SCENARIOS]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=_ids)
def test_each_exchange_is_what_was_said(scenario: Scenario) -> None:
    conversation = Conversation()
    for side, data in scenario.script:
        conversation.feed(side, data)
    assert [Expected.of(exchange) for exchange in conversation.close()] == scenario.expected
    handover = conversation.analyzer.handover
    assert (handover.protocol if handover else None) == scenario.handover
    assert tuple(conversation.analyzer.errors) == scenario.errors


@pytest.mark.parametrize("scenario", SCENARIOS, ids=_ids)
def test_every_message_may_be_cut_at_every_byte(scenario: Scenario) -> None:
    expected = [framing(exchange) for exchange in run(scenario.script)]
    for number, (side, data) in enumerate(scenario.script):
        for cut in range(1, len(data)):
            script = [*scenario.script[:number], (side, data[:cut]), (side, data[cut:]), *scenario.script[number + 1 :]]
            assert [framing(exchange) for exchange in run(script)] == expected, (number, cut)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=_ids)
def test_every_message_may_come_byte_by_byte(scenario: Scenario) -> None:
    script = [(side, data[at : at + 1]) for side, data in scenario.script for at in range(len(data))]
    assert [framing(e) for e in run(script)] == [framing(e) for e in run(scenario.script)]


def test_header_sizes_are_the_bytes_from_start_line_to_empty_line() -> None:
    head, answer = b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\n", b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n"
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    (exchange,) = run([(REQUEST, head + b"abc"), (RESPONSE, interim + answer + b"1\r\nx\r\n0\r\nTrailer: 1\r\n\r\n")])
    assert exchange.request_header_bytes == len(head)
    assert exchange.response_header_bytes == len(answer)
    assert exchange.response_body_bytes == 1


def test_a_header_section_of_64_kb_is_taken() -> None:
    filler = b"X: " + b"y" * (65_536 - len(b"GET /a HTTP/1.1\r\nX: \r\nHost: h\r\n\r\n"))
    head = b"GET /a HTTP/1.1\r\n" + filler + b"\r\nHost: h\r\n\r\n"
    assert len(head) == 65_536
    for step in (len(head), 4096):
        script = [(REQUEST, head[at : at + step]) for at in range(0, len(head), step)]
        assert [Expected.of(exchange) for exchange in run([*script, (RESPONSE, OK)])] == [GOT]


@pytest.mark.parametrize("step", [100_000, 4096])
def test_a_longer_one_is_counted_and_labelled_and_the_next_message_is_right(step: int) -> None:
    conversation = Conversation()
    head = b"GET /a HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"
    for at in range(0, len(head), step):
        conversation.request(head[at : at + step])
    conversation.response(OK)
    for _ in range(2):
        conversation.request(GET[1])
        conversation.response(OK)
    first, *rest = [Expected.of(exchange) for exchange in conversation.close()]
    assert first == Expected("GET", "/a", 200, 0, 2, "h", Completeness.TRUNCATED)
    assert rest == [GOT, GOT]
    assert conversation.analyzer.errors == {"http1_head_too_large": 1}


def test_a_trace_header_becomes_the_exchange_s_trace() -> None:
    head = b"GET / HTTP/1.1\r\nTraceParent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n"
    (exchange,) = run([(REQUEST, head), (RESPONSE, OK)])
    assert exchange.trace is not None
    assert exchange.trace.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
