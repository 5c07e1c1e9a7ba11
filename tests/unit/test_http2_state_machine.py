# SPDX-License-Identifier: Apache-2.0
"""Two `h2` endpoints do whatever hypothesis thinks of, over an adversarial path that re-frames, packs and cuts their
bytes; the analyser says what they say, stream by stream."""

from __future__ import annotations

from dataclasses import dataclass

from h2.exceptions import ProtocolError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rover_plugin.access_log.model import Completeness, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from tests.support.http2_conversation import Conversation, Feeder, Headers, reframe, seeded

NAMES = ("x-a", "x-longer-name", "authorization", "user-agent", "traceparent", "b3")
VALUES = st.one_of(st.sampled_from(["", "v", "v" * 70]), st.text("abcXYZ019-_./", max_size=90))
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=5)
PATHS = st.text("abc/-.?=%#~\u00e9", max_size=30).map(lambda tail: f"/{tail}")


@dataclass
class Wanted:
    """What the endpoints did on one stream."""

    method: str
    path: str
    host: str
    status: int | None = None
    grpc_status: int | None = None
    request_body: int = 0
    response_body: int = 0
    request_done: bool = False
    response_done: bool = False
    over: bool = False

    @property
    def label(self) -> Completeness:
        """Neither a reset nor the connection's end makes a message whole."""
        if self.status is None:
            return Completeness.NO_RESPONSE
        return Completeness.COMPLETE if self.request_done and self.response_done else Completeness.TRUNCATED


class Endpoints(RuleBasedStateMachine):
    """The rules are what HTTP/2 lets two endpoints do; what it does not, `h2` refuses and is not written."""

    @initialize(seed=st.integers(0, 1 << 30), longest=st.sampled_from([9, 60, 3000]), reframed=st.booleans())
    def begin(self, seed: int, longest: int, reframed: bool) -> None:
        self.source = seeded(seed)
        self.longest = longest
        self.reframed = reframed
        self.talk = Conversation()
        self.feeder = Feeder(Http2Analyzer(joined=False))
        self.written = 0
        self.fixed_tables = list(Side)
        self.wanted: dict[int, Wanted] = {}
        self.flush()

    def flush(self) -> None:
        """Lets both endpoints read everything, and hands what went by to the analyser."""
        self.talk.flush()
        for side, data in self.talk.chunks[self.written :]:
            rewritten = reframe(data, self.source) if self.reframed else data
            at = 0
            while at < len(rewritten):
                step = self.source.randint(1, self.longest)
                self.feeder.feed(side, rewritten[at : at + step])
                at += step
        self.written = len(self.talk.chunks)

    def _fitting(self, *, request_done: bool | None = None, status: bool | None = None) -> list[int]:
        """Streams on which this may happen."""
        return [
            stream_id
            for stream_id, item in self.wanted.items()
            if not item.over
            and not item.response_done
            and (request_done is None or item.request_done is request_done)
            and (status is None or (item.status is not None) is status)
        ]

    @rule(method=st.sampled_from(["GET", "POST", "OPTIONS", "BREW"]), path=PATHS, fields=FIELDS, end=st.booleans())
    def ask(self, method: str, path: str, fields: Headers, end: bool) -> None:
        if sum(not item.over and not item.response_done for item in self.wanted.values()) > 60:
            return
        host = self.source.choice(("a.test", "b.test:80"))
        head = [(":method", method), (":scheme", "http"), (":authority", host), (":path", path)]
        stream_id = self.talk.request(head + fields, end=end)
        self.wanted[stream_id] = Wanted(method, path.partition("?")[0].partition("#")[0], host, request_done=end)

    @precondition(lambda self: self._fitting(request_done=False))
    @rule(size=st.integers(0, 400), end=st.booleans())
    def send_body(self, size: int, end: bool) -> None:
        stream_id = self.source.choice(self._fitting(request_done=False))
        self.talk.client.send_data(stream_id, bytes(size), end_stream=end)
        self.wanted[stream_id].request_body += size
        self.wanted[stream_id].request_done = end

    @precondition(lambda self: self._fitting(request_done=False))
    @rule(fields=FIELDS)
    def send_trailers(self, fields: Headers) -> None:
        stream_id = self.source.choice(self._fitting(request_done=False))
        self.talk.client.send_headers(stream_id, [*fields, ("x-checksum", "1")], end_stream=True)
        self.wanted[stream_id].request_done = True

    @precondition(lambda self: self._fitting(status=False))
    @rule(status=st.sampled_from([200, 404, 503]), fields=FIELDS, end=st.booleans(), interim=st.booleans())
    def answer(self, status: int, fields: Headers, end: bool, interim: bool) -> None:
        stream_id = self.source.choice(self._fitting(status=False))
        self.flush()
        if interim:
            self.talk.server.send_headers(stream_id, [(":status", "103"), ("link", "</a>")])
        self.talk.server.send_headers(stream_id, [(":status", str(status)), *fields], end_stream=end)
        self.wanted[stream_id].status = status
        self._ended(stream_id, end=end)

    @precondition(lambda self: self._fitting(status=True))
    @rule(size=st.integers(0, 400), end=st.booleans())
    def answer_body(self, size: int, end: bool) -> None:
        stream_id = self.source.choice(self._fitting(status=True))
        self.talk.server.send_data(stream_id, bytes(size), end_stream=end)
        self.wanted[stream_id].response_body += size
        self._ended(stream_id, end=end)

    @precondition(lambda self: self._fitting(status=True))
    @rule(grpc_status=st.integers(0, 16), fields=FIELDS)
    def answer_trailers(self, grpc_status: int, fields: Headers) -> None:
        stream_id = self.source.choice(self._fitting(status=True))
        self.talk.server.send_headers(stream_id, [*fields, ("grpc-status", str(grpc_status))], end_stream=True)
        self.wanted[stream_id].grpc_status = grpc_status
        self._ended(stream_id, end=True)

    @precondition(lambda self: self._fitting())
    @rule(by_client=st.booleans())
    def reset(self, by_client: bool) -> None:
        stream_id = self.source.choice(self._fitting())
        self.flush()
        endpoint = self.talk.client if by_client else self.talk.server
        try:
            endpoint.reset_stream(stream_id, 8)
        except ProtocolError:
            return
        self.wanted[stream_id].over = True
        self.flush()

    @precondition(lambda self: self.fixed_tables)
    @rule(index=st.integers(0, 1), size=st.sampled_from([0, 64, 1000, 4096, 20_000]))
    def change_table(self, index: int, size: int) -> None:
        self.flush()
        # Once only: `hpack` encoders lose count when their size changes again and again.
        side = self.fixed_tables.pop(index % len(self.fixed_tables))
        endpoint = self.talk.client if side is Side.REQUEST else self.talk.server
        endpoint.update_settings({1: size})
        self.flush()

    @rule()
    def deliver(self) -> None:
        self.flush()

    def _ended(self, stream_id: int, *, end: bool) -> None:
        item = self.wanted[stream_id]
        item.response_done = end
        if end and not item.request_done:
            # What a server does that does not want the rest.
            self.flush()
            self.talk.server.reset_stream(stream_id, 0)
            item.over = True
            self.flush()

    def teardown(self) -> None:
        if not hasattr(self, "talk"):
            return
        self.flush()
        exchanges = {exchange.stream_id: exchange for exchange in self.feeder.finish()}
        assert not self.feeder.analyzer.errors
        assert exchanges.keys() == self.wanted.keys()
        for stream_id, item in self.wanted.items():
            exchange = exchanges[stream_id]
            assert (exchange.method, exchange.path, exchange.host) == (item.method, item.path, item.host)
            assert (exchange.status, exchange.grpc_status) == (item.status, item.grpc_status)
            assert exchange.request_body_bytes == item.request_body
            assert exchange.response_body_bytes == item.response_body
            assert exchange.completeness is item.label


TestEndpoints = Endpoints.TestCase
TestEndpoints.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
