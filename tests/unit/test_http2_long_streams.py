# SPDX-License-Identifier: Apache-2.0
"""Long-lived streams: reported as open from time to time, bounded in memory, logged in full at their end."""

from __future__ import annotations

import json

from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.encoders.json import JsonEncoder
from rover_plugin.access_log.encoders.protobuf import ProtobufEncoder
from rover_plugin.access_log.model import Call, Completeness, Operation, Role, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from rover_plugin.access_log.protocols.http2.analyzer import MAX_CALLS
from rover_plugin.access_log.schedule import Schedule
from tests.support.http2_conversation import PREFACE, Feeder, get, grpc
from tests.support.http2_wire import Wire, data, one, settings

MESSAGE = b"\0\0\0\0\x03abc"


def _streaming() -> tuple[Wire, Feeder]:
    """A bidirectional stream under way, and the encoders to go on with."""
    wire = Wire(begins=False)
    feeder = Feeder(Http2Analyzer(joined=False))
    feeder.feed(Side.REQUEST, PREFACE + settings() + wire.request(1, grpc("/s/Watch"), end=False) + data(1, MESSAGE))
    feeder.feed(Side.RESPONSE, settings() + wire.response(1, 200, end=False))
    return wire, feeder


def test_an_open_stream_is_reported_with_what_it_has_done_so_far_and_logged_at_its_end() -> None:
    wire, feeder = _streaming()
    feeder.analyzer.report_open(feeder.now + 1)
    report = one(feeder.analyzer.exchanges)
    assert (report.path, report.status, report.request_body_bytes) == ("/s/Watch", 200, 8)
    assert report.completeness is Completeness.OPEN
    assert len(report.calls) == 2
    feeder.feed(Side.RESPONSE, data(1, MESSAGE))
    feeder.analyzer.report_open(feeder.now + 1)
    assert [len(exchange.calls) for exchange in feeder.analyzer.exchanges] == [2, 1]
    feeder.feed(Side.REQUEST, data(1, end=True))
    feeder.feed(Side.RESPONSE, wire.response(1, None, [("grpc-status", "0")]))
    final = feeder.finish()[-1]
    assert final.completeness is Completeness.COMPLETE
    assert (final.request_body_bytes, final.response_body_bytes, final.grpc_status) == (8, 8, 0)
    assert final.start_ns == report.start_ns
    assert report.response_body_bytes == 0  # a report is a copy


def test_only_streams_that_are_open_for_long_are_reported() -> None:
    wire, feeder = _streaming()
    feeder.now += 1000
    feeder.feed(Side.REQUEST, wire.request(3, get("/young")))
    feeder.analyzer.report_open(feeder.now - 100)
    assert [exchange.path for exchange in feeder.analyzer.exchanges] == ["/s/Watch"]


def test_a_stream_that_lives_is_not_expired() -> None:
    wire, feeder = _streaming()
    feeder.now += 10**12
    feeder.feed(Side.RESPONSE, data(1, MESSAGE))
    feeder.analyzer.expire(feeder.now - 10**9)
    assert not feeder.analyzer.exchanges
    feeder.feed(Side.RESPONSE, wire.response(1, None, [("grpc-status", "0")]))
    feeder.feed(Side.REQUEST, data(1, end=True))
    assert one(feeder.finish()).completeness is Completeness.COMPLETE


def test_a_stream_idle_in_the_middle_of_its_response_stays() -> None:
    _, feeder = _streaming()
    feeder.analyzer.expire(feeder.now + 10**12)
    assert not feeder.analyzer.exchanges
    feeder.feed(Side.RESPONSE, data(1, MESSAGE))
    assert one(feeder.finish()).response_body_bytes == 8


def test_an_exchange_keeps_a_bounded_number_of_calls_and_counts_every_byte() -> None:
    wire, feeder = _streaming()
    for _ in range(3 * MAX_CALLS):
        feeder.feed(Side.REQUEST, data(1, MESSAGE))
    feeder.feed(Side.REQUEST, data(1, end=True))
    last = feeder.feed(Side.RESPONSE, wire.response(1, None, [("grpc-status", "0")]))
    exchange = one(feeder.finish())
    assert len(exchange.calls) == MAX_CALLS
    assert exchange.request_body_bytes == 8 * (3 * MAX_CALLS + 1)
    assert exchange.end_ns == last.exit_ns


def test_a_report_is_shown_by_local_outputs_and_its_calls_go_to_the_backend() -> None:
    _, feeder = _streaming()
    feeder.analyzer.report_open(feeder.now + 1)
    report = one(feeder.analyzer.exchanges)
    line = json.loads(b"{" + JsonEncoder().exchange(report)[0])
    assert (line["completeness"], line["path"], len(line["calls"])) == ("open", "/s/Watch", 2)
    fragment, protocol_logs = ProtobufEncoder().exchange(report)
    assert protocol_logs == 0
    assert fragment


class _Shard:
    """Notes when it was asked for what."""

    def __init__(self) -> None:
        self.reports: list[int] = []

    def flush(self, now_ns: int) -> None: ...

    def expire(self, before_ns: int) -> None: ...

    def report_open(self, before_ns: int) -> None:
        self.reports.append(before_ns)


def test_the_schedule_asks_for_reports_by_the_configured_period() -> None:
    shard = _Shard()
    schedule = Schedule(shard, 60.0, open_report_s=5.0)  # type: ignore[arg-type]
    for tenth in range(1, 200):
        schedule.pass_time(10**12 + tenth * 10**8)
    assert len(shard.reports) == 4
    assert shard.reports[1] - shard.reports[0] == 5 * 10**9
    assert shard.reports[0] == 10**12 + 10**8 - 5 * 10**9


def test_a_conversation_reports_http_2_streams_and_no_http_1_messages() -> None:
    wire = Wire(begins=False)
    talk = Conversation(Role.SERVER)
    call = Call(Operation.READ, 0, 1, 2, 10)
    talk.receive(0, call, PREFACE + settings() + wire.request(1, get("/long")), 0)
    talk.report_open(100)
    assert [(e.path, e.completeness, e.calls) for e in talk.exchanges] == [("/long", Completeness.OPEN, [call])]
    other = Conversation(Role.SERVER)
    other.receive(0, Call(Operation.READ, 0, 1, 2, 10), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 0)
    other.report_open(100)
    assert other.exchanges == []
