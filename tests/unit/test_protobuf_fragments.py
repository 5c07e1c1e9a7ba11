# SPDX-License-Identifier: Apache-2.0
"""Fragments for the backend say what the exchange said, however they are put together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire
from rover_plugin.access_log.encoders.protobuf import MAX_PATH, UNKNOWN_PATH, ProtobufEncoder
from rover_plugin.access_log.model import Call, Completeness, Exchange, Operation, ProtocolName, TraceContext
from rover_plugin.capture.records import CallClass
from tests.support.connections import exchange

U64 = st.integers(0, 2**64 - 1)
TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
TRACES = st.none() | st.builds(
    TraceContext, st.sampled_from(["skywalking", "zipkin"]), *(st.text("0123456789abcdef", max_size=32) for _ in "tss")
)
EXCHANGES = st.builds(
    Exchange,
    version=st.sampled_from([1, 2]),
    method=st.sampled_from(["GET", "POST", "PROPFIND", "BREW", None]),
    path=TEXT,
    host=TEXT,
    status=st.integers(100, 599),
    request_header_bytes=st.integers(1, 2**64 - 1),
    request_body_bytes=U64,
    response_header_bytes=U64,
    response_body_bytes=U64,
    start_ns=U64,
    end_ns=U64,
    trace=TRACES,
)


def sent(encoder: ProtobufEncoder, one: Exchange) -> wire.EBPFAccessLogMessage:
    fragment, logs = encoder.exchange(one)
    assert logs == 1
    return wire.EBPFAccessLogMessage.FromString(fragment)


@given(st.lists(EXCHANGES, min_size=1, max_size=8))
def test_every_field_arrives_and_none_stays_from_the_exchange_before(exchanges: list[Exchange]) -> None:
    encoder = ProtobufEncoder()
    for one in [*exchanges, *exchanges]:
        http = sent(encoder, one).protocolLog.http
        assert http.startTime.offset.offset == one.start_ns
        assert http.endTime.offset.offset == max(one.start_ns, one.end_ns)
        assert http.version == one.version - 1
        assert http.request.path == (one.path[:MAX_PATH] if one.path else UNKNOWN_PATH)
        assert http.request.host == (one.host or "")
        assert (http.request.sizeOfHeadersBytes, http.request.sizeOfBodyBytes) == (
            one.request_header_bytes,
            one.request_body_bytes,
        )
        assert http.response.statusCode == one.status
        assert (http.response.sizeOfHeadersBytes, http.response.sizeOfBodyBytes) == (
            one.response_header_bytes,
            one.response_body_bytes,
        )
        assert http.request.HasField("trace") == (one.trace is not None)
        if one.trace is not None:
            assert http.request.trace.traceId == one.trace.trace_id
            assert http.request.trace.traceSegmentId == one.trace.segment_id
            assert http.request.trace.spanId == one.trace.span_id


@pytest.mark.parametrize(
    ("method", "name"),
    [("GET", "Get"), ("DELETE", "Delete"), ("PROPFIND", "Get"), ("MKCOL", "Put"), ("BREW", "Post"), (None, "Get")],
)
def test_a_method_goes_as_the_nearest_the_wire_knows(method: str | None, name: str) -> None:
    request = sent(ProtobufEncoder(), exchange(method=method)).protocolLog.http.request
    assert wire.AccessLogHTTPProtocolRequestMethod.Name(request.method) == name


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(list(CallClass)), U64, U64, st.integers(1, 2**32 - 1))))
def test_every_call_arrives_with_its_times_and_size(made: list[tuple[bool, CallClass, int, int, int]]) -> None:
    calls = [
        Call(Operation.READ if reads else Operation.WRITE, kind, start, end, size)
        for reads, kind, start, end, size in made
    ]
    logs = sent(ProtobufEncoder(), exchange(calls=calls)).kernelLogs
    assert len(logs) == len(calls)
    for call, log in zip(calls, logs, strict=True):
        reads = call.operation is Operation.READ
        assert log.WhichOneof("operation") == ("read" if reads else "write")
        detail = log.read if reads else log.write
        assert detail.startTime.offset.offset == call.enter_ns
        assert detail.endTime.offset.offset == max(call.enter_ns, call.exit_ns)
        moved = log.read.l2Metrics.totalPackageSize if reads else log.write.l4Metrics.totalPackageSize
        assert moved == call.size


def test_words_are_forgotten_before_they_become_too_many() -> None:
    encoder = ProtobufEncoder()
    for number in range(10_000):
        assert sent(encoder, exchange(path=f"/{number}")).protocolLog.http.request.path == f"/{number}"
    assert len(encoder._words) <= 4096


@pytest.mark.parametrize(("version", "spoken"), [(1, wire.HTTP_1), (2, wire.HTTP_2)])
@pytest.mark.parametrize("before", [wire.TCP, wire.HTTP_1, wire.HTTP_2])
@pytest.mark.parametrize("status", [200, None])
def test_what_was_spoken_overrides_whatever_stands_in_front(
    version: int, spoken: int, before: wire.AccessLogProtocolType, status: int | None
) -> None:
    front = wire.EBPFAccessLogMessage(
        connection=wire.AccessLogConnection(protocol=before, tlsMode=wire.AccessLogConnectionTLSMode.TLS)
    )
    fragment, _ = ProtobufEncoder().exchange(exchange(version=version, status=status))
    message = wire.EBPFAccessLogMessage.FromString(front.SerializeToString() + fragment)
    assert message.connection.protocol == spoken
    assert message.connection.tlsMode == wire.AccessLogConnectionTLSMode.TLS


@pytest.mark.parametrize(
    ("protocol", "spoken"),
    [
        (ProtocolName.TCP, wire.TCP),
        (ProtocolName.TLS, wire.TCP),
        (ProtocolName.HTTP1, wire.HTTP_1),
        (ProtocolName.HTTP2, wire.HTTP_2),
    ],
)
def test_stand_alone_calls_say_what_was_spoken(protocol: ProtocolName, spoken: int) -> None:
    ((fragment, calls),) = ProtobufEncoder().calls(exchange().calls, protocol)
    message = wire.EBPFAccessLogMessage.FromString(fragment)
    assert (message.connection.protocol, len(message.kernelLogs), calls) == (spoken, 2, 2)


def test_an_exchange_without_calls_and_log_is_nothing_at_all() -> None:
    assert ProtobufEncoder().exchange(exchange(status=None, calls=[])) == (b"", 0)


def test_a_response_whose_request_nobody_saw_is_no_get_that_took_no_time() -> None:
    seen = exchange(method=None, path=None, request_header_bytes=0, completeness=Completeness.LATE_JOIN)
    fragment, logs = ProtobufEncoder().exchange(seen)
    message = wire.EBPFAccessLogMessage.FromString(fragment)
    assert (logs, message.HasField("protocolLog"), len(message.kernelLogs)) == (0, False, 2)


def test_without_a_status_there_are_only_kernel_logs() -> None:
    fragment, logs = ProtobufEncoder().exchange(exchange(status=None))
    message = wire.EBPFAccessLogMessage.FromString(fragment)
    assert logs == 0
    assert not message.HasField("protocolLog")
    assert len(message.kernelLogs) == 2
