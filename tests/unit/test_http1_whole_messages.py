# SPDX-License-Identifier: Apache-2.0
"""The short way for a call that carries one whole message gives what the general way gives, whatever comes before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.protocols.http1 import Http1Analyzer
from tests.support.http1 import REQUEST, RESPONSE, Conversation

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Call, Exchange

REQUESTS = [
    b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /%d HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /%d HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /%d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PUT /%d HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    b"CONNECT a%d:443 HTTP/1.1\r\n\r\n",
    b"\r\nGET /%d HTTP/1.1\r\n\r\n",
    b"GET /%d HTTP/1.1\n\n",
    b"GET /%d HTTP/1.1\r\nHost: a\r\n",
    b"GET /%d HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"nonsense %d\r\n\r\n",
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.0 500 Oh\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n",
    b"nonsense\r\n\r\n",
]
STEPS = st.one_of(
    st.tuples(st.just("request"), st.sampled_from(REQUESTS), st.just(0)),
    st.tuples(st.just("response"), st.sampled_from(RESPONSES), st.just(0)),
    st.tuples(st.just("exchange"), st.sampled_from(REQUESTS[:3]), st.sampled_from(RESPONSES[:1] + RESPONSES[9:10])),
    st.tuples(st.just("lose request"), st.just(b""), st.integers(1, 200)),
    st.tuples(st.just("lose response"), st.just(b""), st.integers(1, 200)),
    st.tuples(st.just("cut response"), st.sampled_from(RESPONSES), st.integers(1, 20)),
    st.tuples(st.just("expire"), st.just(b""), st.just(0)),
)


class GeneralWay(Http1Analyzer):
    """The analyser without its short way."""

    def _whole_request(self, call: Call, data: bytes) -> bool:  # noqa: ARG002
        return False

    def _whole_response(self, call: Call, data: bytes) -> bool:  # noqa: ARG002
        return False


@dataclass
class Generally(Conversation):
    """A conversation for it."""

    def __post_init__(self) -> None:
        self.analyzer = GeneralWay(late_join=self.late_join)


@dataclass
class Steps:
    """What is done to both."""

    taken: list[tuple[str, bytes, bytes | int]] = field(default_factory=list)

    def run(self, conversation: Conversation) -> tuple[list[Exchange], int, dict[str, int], bool]:
        for number, (kind, data, more) in enumerate(self.taken):
            message = data % number if b"%d" in data else data
            if kind == "request":
                conversation.request(message)
            elif kind == "response":
                conversation.response(message)
            elif kind == "exchange":
                conversation.request(message)
                conversation.response(b"" if isinstance(more, int) else more)
            elif kind == "cut response":
                assert isinstance(more, int)
                conversation.response(message[:-more], len(message[-more:]))
            elif kind == "expire":
                conversation.analyzer.expire(conversation.now_ns - 5_000)
            else:
                assert isinstance(more, int)
                conversation.lose(REQUEST if kind == "lose request" else RESPONSE, more)
        handed_over = conversation.analyzer.handover is not None
        exchanges = conversation.close()
        return exchanges, len(conversation.analyzer.loose), dict(conversation.analyzer.errors), handed_over


@settings(max_examples=1500, deadline=None)
@given(steps=st.lists(STEPS, max_size=14), late_join=st.booleans(), client=st.booleans())
def test_both_ways_agree(steps: list[tuple[str, bytes, bytes | int]], late_join: bool, client: bool) -> None:
    done = Steps(steps)
    assert done.run(Conversation(late_join=late_join, client=client)) == done.run(
        Generally(late_join=late_join, client=client)
    )


def test_the_short_way_is_taken() -> None:
    analyzer = Http1Analyzer()
    analyzer._head = None  # type: ignore[assignment, method-assign]
    conversation = Conversation()
    conversation.analyzer = analyzer
    for _ in range(3):
        conversation.request(b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi")
        conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert len(conversation.close()) == 3
