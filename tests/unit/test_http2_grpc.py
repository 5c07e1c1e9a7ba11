# SPDX-License-Identifier: Apache-2.0
"""gRPC over HTTP/2: its status and message from trailers or trailers-only, and what outputs make of them."""

from __future__ import annotations

import io
import json

import pytest

from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as pb
from rover_plugin.access_log.encoders.json import JsonEncoder
from rover_plugin.access_log.encoders.protobuf import ProtobufEncoder
from rover_plugin.access_log.model import Completeness, Exchange, Side
from rover_plugin.access_log.outputs.console import ConsoleOutput
from rover_plugin.telemetry.counters import Counters
from tests.support.http2_conversation import grpc
from tests.support.http2_wire import Wire, data, one, reset

MESSAGE = b"\0\0\0\0\x03abc"
ACCEPTED = [("content-type", "application/grpc")]


def _call(wire: Wire, stream_id: int, path: str = "/pkg.Service/Method") -> None:
    wire.up(wire.request(stream_id, grpc(path), end=False), data(stream_id, MESSAGE, end=True))


def test_a_unary_call_that_succeeds() -> None:
    wire = Wire()
    _call(wire, 1)
    wire.down(wire.response(1, 200, ACCEPTED, end=False), data(1, MESSAGE))
    wire.down(wire.response(1, None, [("grpc-status", "0"), ("grpc-message", "")]))
    exchange = one(wire.finish())
    assert (exchange.method, exchange.path, exchange.host) == ("POST", "/pkg.Service/Method", "svc:50051")
    assert (exchange.status, exchange.grpc_status, exchange.grpc_message) == (200, 0, "")
    assert (exchange.request_body_bytes, exchange.response_body_bytes) == (8, 8)
    assert exchange.completeness is Completeness.COMPLETE


@pytest.mark.parametrize("trailers_only", [True, False])
def test_an_error_in_trailers_or_trailers_only(trailers_only: bool) -> None:
    wire = Wire()
    _call(wire, 1)
    failed = [("grpc-status", "5"), ("grpc-message", "no caf%C3%A9 at 100%25 or %zz\u20ac")]
    if trailers_only:
        wire.down(wire.response(1, 200, ACCEPTED + failed))
    else:
        wire.down(wire.response(1, 200, ACCEPTED, end=False), data(1, MESSAGE), wire.response(1, None, failed))
    exchange = one(wire.finish())
    assert (exchange.status, exchange.grpc_status) == (200, 5)
    assert exchange.grpc_message == "no café at 100% or %zz€"
    assert exchange.completeness is Completeness.COMPLETE


@pytest.mark.parametrize("status", ["", "-1", "x", "1e3", "\u00b2", "9" * 30, "5 "])
def test_a_status_that_is_no_number_is_unknown(status: str) -> None:
    wire = Wire()
    _call(wire, 1)
    wire.down(wire.response(1, 200, [*ACCEPTED, ("grpc-status", status)]))
    assert one(wire.finish()).grpc_status is None


def test_a_deadline_that_passes_is_a_reset_without_response() -> None:
    wire = Wire()
    _call(wire, 1)
    wire.up(reset(1))
    exchange = one(wire.finish())
    assert (exchange.grpc_status, exchange.completeness) == (None, Completeness.NO_RESPONSE)


def test_streaming_calls_are_logged_when_both_sides_have_ended_them() -> None:
    wire = Wire()
    wire.up(wire.request(1, grpc("/s/Bidi"), end=False))
    wire.down(wire.response(1, 200, ACCEPTED, end=False))
    for _ in range(10):
        wire.up(data(1, MESSAGE))
        wire.down(data(1, MESSAGE), data(1, MESSAGE))
    wire.then(lambda feeder: _assert_none(feeder.analyzer.exchanges))
    wire.up(data(1, end=True))
    wire.then(lambda feeder: _assert_none(feeder.analyzer.exchanges))
    wire.down(wire.response(1, None, [("grpc-status", "0")]))
    exchange = one(wire.finish())
    assert (exchange.request_body_bytes, exchange.response_body_bytes) == (80, 160)
    assert len(exchange.calls) >= 23


def _assert_none(exchanges: list[Exchange]) -> None:
    assert not exchanges


def _failed(status: int, message: str | None = "no such cart") -> Exchange:
    return Exchange(
        2,
        "POST",
        "/s/M",
        "h",
        200,
        request_header_bytes=9,
        stream_id=1,
        grpc_status=status,
        grpc_message=message,
    )


def test_json_names_the_status() -> None:
    line = json.loads(b"{" + JsonEncoder().exchange(_failed(5))[0])
    assert line["status"] == 200
    assert (line["grpc_status"], line["grpc_status_name"], line["grpc_message"]) == (5, "NOT_FOUND", "no such cart")
    line = json.loads(b"{" + JsonEncoder().exchange(_failed(99, None))[0])
    assert (line["grpc_status"], line["grpc_status_name"], line["grpc_message"]) == (99, "99", None)


def _backend_status(exchange: Exchange, *, mapped: bool) -> int:
    fragment, logs = ProtobufEncoder(grpc_status_as_http=mapped).exchange(exchange)
    assert logs == 1
    return int(pb.EBPFAccessLogMessage.FromString(fragment).protocolLog.http.response.statusCode)


@pytest.mark.parametrize(
    ("grpc_status", "http_status"),
    [(0, 200), (1, 499), (3, 400), (4, 504), (5, 404), (7, 403), (8, 429), (12, 501), (13, 500), (14, 503), (16, 401),
     (99, 500)],
)  # fmt: skip
def test_the_backend_gets_an_http_status_unless_it_is_not_to(grpc_status: int, http_status: int) -> None:
    assert _backend_status(_failed(grpc_status), mapped=True) == http_status
    assert _backend_status(_failed(grpc_status), mapped=False) == 200


def test_the_console_shows_name_and_message_of_a_failed_call_only() -> None:
    shown = _console(_failed(14, "try\x1b[2J again"))
    assert "UNAVAILABLE: try\N{REPLACEMENT CHARACTER}[2J again" in shown
    assert "OK" not in _console(_failed(0))


def _console(exchange: Exchange) -> str:
    stream = io.StringIO()
    output = ConsoleOutput(Counters(), stream)
    end = '{"address":"127.0.0.1","port":1}'
    opening = f'{{"role":"server","protocol":"http/2","local":{end},"remote":{end},'.encode()
    output.write(opening + JsonEncoder().exchange(exchange)[0], 0, 1)
    output.tick()
    return stream.getvalue()


def test_an_unknown_grpc_status_in_a_block_with_unknown_fields_is_labelled() -> None:
    wire = Wire(joined=True, begins=False)
    encoder = wire.encoders[Side.RESPONSE]
    encoder.encode([("grpc-status", "13")])  # before the agent came
    wire.then(lambda feeder: feeder.feed(Side.REQUEST, b"".join(wire.request(n, grpc("/s/M")) for n in (1, 3, 5))))
    answers = [wire.response(n, 200, [("grpc-status", "13")]) for n in (1, 3, 5)]
    wire.then(lambda feeder: feeder.feed(Side.RESPONSE, b"".join(answers)))
    for exchange in wire.finish():
        assert exchange.grpc_status is None
        assert exchange.completeness is Completeness.LATE_JOIN
