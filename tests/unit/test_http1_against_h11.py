# SPDX-License-Identifier: Apache-2.0
"""Two h11 endpoints talk as a state machine wills; the analyser, given the same bytes in other pieces, agrees."""

from __future__ import annotations

from dataclasses import dataclass

import h11
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rover_plugin.access_log.model import Completeness, Exchange, Side
from tests.support.http1 import REQUEST, RESPONSE, Conversation

_METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PURGE"])
_STATUSES = st.sampled_from([200, 201, 204, 304, 400, 404, 500, 599])
_PATHS = st.text("abcXYZ019%-._~/", max_size=12)
_FIELDS = st.lists(st.tuples(st.sampled_from(["X-A", "Accept", "Cookie"]), st.text("abc ;=,", max_size=20)), max_size=4)
_CONTENT = st.lists(st.binary(min_size=1, max_size=40), max_size=4)
_PIECES = st.integers(1, 60)


@dataclass
class Truth:
    """What one exchange was."""

    method: str
    path: str
    host: str
    request_header: int = 0
    request_body: int = 0
    status: int | None = None
    response_header: int = 0
    response_body: int = 0


class Talk(RuleBasedStateMachine):
    """A client that waits, a server that answers, and the wire between them."""

    def __init__(self) -> None:
        super().__init__()
        self.client = h11.Connection(h11.CLIENT)
        self.server = h11.Connection(h11.SERVER)
        self.conversation = Conversation()
        self.truths: list[Truth] = []

    def _send(self, side: Side, data: bytes, pieces: int) -> None:
        if not data:  # which h11 takes for the end of the stream
            return
        (self.server if side is REQUEST else self.client).receive_data(data)
        for at in range(0, len(data), pieces):
            self.conversation.feed(side, data[at : at + pieces])

    def _content(self, side: Side, content: list[bytes], pieces: int, *, chunked: bool) -> None:
        sender = self.client if side is REQUEST else self.server
        for part in content:
            self._send(side, sender.send(h11.Data(data=part)), pieces)
        end = h11.EndOfMessage(headers=[("X-Trailer", "t")] if chunked else [])
        self._send(side, sender.send(end), pieces)

    @staticmethod
    def _framing(content: list[bytes], *, chunked: bool) -> tuple[str, str]:
        return ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(sum(map(len, content))))

    @precondition(lambda self: self.client.our_state is h11.IDLE)
    @rule(
        method=_METHODS,
        path=_PATHS,
        query=_PATHS,
        fields=_FIELDS,
        content=_CONTENT,
        chunked=st.booleans(),
        pieces=_PIECES,
    )
    def ask(
        self,
        method: str,
        path: str,
        query: str,
        fields: list[tuple[str, str]],
        content: list[bytes],
        chunked: bool,
        pieces: int,
    ) -> None:
        truth = Truth(method, f"/{len(self.truths)}/{path}", f"h{len(self.truths)}")
        headers = [("Host", truth.host), *((name, value.strip()) for name, value in fields)]
        if content:
            headers.append(self._framing(content, chunked=chunked))
            truth.request_body = sum(map(len, content))
        head = self.client.send(h11.Request(method=method, target=f"{truth.path}?{query}", headers=headers))
        truth.request_header = len(head)
        self.truths.append(truth)
        self._send(REQUEST, head, pieces)
        self._content(REQUEST, content, pieces, chunked=chunked and bool(content))
        while self.server.their_state is not h11.DONE:
            self.server.next_event()

    @precondition(lambda self: self.server.our_state is h11.SEND_RESPONSE and self.server.their_state is h11.DONE)
    @rule(status=st.sampled_from([100, 102, 103]), pieces=_PIECES)
    def hint(self, status: int, pieces: int) -> None:
        self._send(RESPONSE, self.server.send(h11.InformationalResponse(status_code=status, headers=[])), pieces)

    @precondition(lambda self: self.server.our_state is h11.SEND_RESPONSE and self.server.their_state is h11.DONE)
    @rule(status=_STATUSES, fields=_FIELDS, content=_CONTENT, chunked=st.booleans(), pieces=_PIECES)
    def answer(
        self, status: int, fields: list[tuple[str, str]], content: list[bytes], chunked: bool, pieces: int
    ) -> None:
        truth = self.truths[-1]
        bodiless = truth.method == "HEAD" or status in {204, 304}
        headers = [*((name, value.strip()) for name, value in fields), self._framing(content, chunked=chunked)]
        head = self.server.send(h11.Response(status_code=status, headers=headers, reason="Because"))
        truth.status, truth.response_header = status, len(head)
        truth.response_body = 0 if bodiless else sum(map(len, content))
        self._send(RESPONSE, head, pieces)
        self._content(RESPONSE, [] if bodiless else content, pieces, chunked=chunked and not bodiless)
        while self.client.their_state is not h11.DONE:
            self.client.next_event()
        self.client.start_next_cycle()
        self.server.start_next_cycle()

    @invariant()
    def nothing_was_misread(self) -> None:
        assert not self.conversation.analyzer.errors.keys() - {"http1_other_method"}

    def teardown(self) -> None:
        exchanges = self.conversation.close()
        assert [_truth(exchange) for exchange in exchanges] == self.truths
        for exchange in exchanges:
            answered = exchange.status is not None
            assert exchange.completeness is (Completeness.COMPLETE if answered else Completeness.NO_RESPONSE)


def _truth(e: Exchange) -> Truth:
    return Truth(
        e.method or "",
        e.path or "",
        e.host or "",
        e.request_header_bytes,
        e.request_body_bytes,
        e.status,
        e.response_header_bytes,
        e.response_body_bytes,
    )


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
