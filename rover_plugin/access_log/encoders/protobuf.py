# SPDX-License-Identifier: Apache-2.0
"""Fragments of EBPFAccessLogMessage: fields 3 and 4, to be concatenated with the connection (field 2).

What goes into each field, and why, is oap-contract.md §A.4, A.5 and K. Memory: upb never frees strings that are given
again on a live message, so only handles with nothing but numbers are kept; the HTTP log is a fresh message each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as pb
from rover_plugin.access_log.grpc_status import as_http
from rover_plugin.access_log.model import Completeness, Operation
from rover_plugin.capture.records import CallClass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.model import Call, Exchange

UNKNOWN_PATH: Final = "<unknown>"
MAX_PATH: Final = 150  # the OAP cuts endpoint names there
_CALLS_PER_MESSAGE: Final = 256

# The wire knows nine methods. Others go as the one that means most nearly the same: reads as Get, writes as Post.
_METHODS: Final = {
    "GET": pb.Get,
    "POST": pb.Post,
    "PUT": pb.Put,
    "DELETE": pb.Delete,
    "HEAD": pb.Head,
    "PATCH": pb.Patch,
    "OPTIONS": pb.Options,
    "TRACE": pb.Trace,
    "CONNECT": pb.Connect,
    "PROPFIND": pb.Get,
    "REPORT": pb.Get,
    "SEARCH": pb.Get,
    "QUERY": pb.Get,
    "PROPPATCH": pb.Patch,
    "COPY": pb.Put,
    "MOVE": pb.Put,
    "MKCOL": pb.Put,
    "MKCALENDAR": pb.Put,
    "UNBIND": pb.Delete,
    "UNLINK": pb.Delete,
}

_READ_SYSCALLS: Final = {
    CallClass.READ: pb.Read,
    CallClass.READV: pb.Readv,
    CallClass.PREADV2: pb.Readv,
    CallClass.RECVFROM: pb.RecvFrom,
    CallClass.RECVMSG: pb.RecvMsg,
    CallClass.RECVMMSG: pb.RecvMmsg,
}
_WRITE_SYSCALLS: Final = {
    CallClass.WRITE: pb.Write,
    CallClass.WRITEV: pb.Writev,
    CallClass.PWRITEV2: pb.Writev,
    CallClass.SENDTO: pb.SendTo,
    CallClass.SENDMSG: pb.SendMsg,
    CallClass.SENDMMSG: pb.SendMmsg,
    CallClass.SENDFILE: pb.SendFile,
    CallClass.SPLICE: pb.SendFile,
}


def _field(number: int, payload: bytes) -> bytes:
    # A length-delimited field (protobuf encoding, wire type 2) of a number below 16.
    size = len(payload)
    head = bytearray((number << 3 | 2,))
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + payload


class ProtobufEncoder:
    """Encodes for the `skywalking` output.

    Args:
        grpc_status_as_http: send a gRPC status other than OK as the HTTP status it maps to (`grpc_status`), since the
            backend knows no other and HTTP says 200 for almost every failed gRPC call.
    """

    def __init__(self, *, grpc_status_as_http: bool = True) -> None:
        self._grpc_status_as_http = grpc_status_as_http
        self._read, self._write = pb.AccessLogKernelLog(), pb.AccessLogKernelLog()
        read, write = self._read.read, self._write.write
        self._read_start, self._read_end = read.startTime.offset, read.endTime.offset
        self._write_start, self._write_end = write.startTime.offset, write.endTime.offset
        self._read_size, self._write_size = read.l2Metrics, write.l4Metrics
        # Segments cannot be counted from system calls; one call is one, as Rover has it.
        self._read_size.totalPackageCount = self._write_size.totalTransmitPackageCount = 1

    def set_clock(self, offset_ns: int) -> None:
        """Nothing to do: the wire carries CLOCK_MONOTONIC, and `node` carries its base."""

    def exchange(self, exchange: Exchange) -> tuple[bytes, int]:
        """Kernel logs and the HTTP log.

        Without a status there is no HTTP log: the OAP would count it as success. Nor is there one in a report of an
        open stream: the OAP would count it as a request of its own.
        """
        parts = [self._call(call) for call in exchange.calls]
        if exchange.status is None or exchange.completeness is Completeness.OPEN:
            return b"".join(parts), 0
        logs = pb.AccessLogProtocolLogs()
        http = logs.http
        http.startTime.offset.offset = exchange.start_ns
        http.endTime.offset.offset = max(exchange.end_ns, exchange.start_ns)
        http.version = pb.HTTP2 if exchange.version == 2 else pb.HTTP1
        request = http.request
        request.method = _METHODS.get(exchange.method or "GET", pb.Post)
        request.path = exchange.path[:MAX_PATH] if exchange.path else UNKNOWN_PATH
        if exchange.host:
            request.host = exchange.host
        request.sizeOfHeadersBytes = exchange.request_header_bytes
        request.sizeOfBodyBytes = exchange.request_body_bytes
        if exchange.trace is not None:
            trace = request.trace
            trace.provider = pb.SkyWalking if exchange.trace.provider == "skywalking" else pb.Zipkin
            trace.traceId = exchange.trace.trace_id
            trace.traceSegmentId = exchange.trace.segment_id
            trace.spanId = exchange.trace.span_id
        response = http.response
        response.statusCode = self._status(exchange.status, exchange.grpc_status)
        response.sizeOfHeadersBytes = exchange.response_header_bytes
        response.sizeOfBodyBytes = exchange.response_body_bytes
        parts.append(_field(4, logs.SerializeToString()))
        return b"".join(parts), 1

    def calls(self, calls: Sequence[Call]) -> list[tuple[bytes, int]]:
        """Kernel logs, up to 256 in one message."""
        result = []
        for start in range(0, len(calls), _CALLS_PER_MESSAGE):
            part = calls[start : start + _CALLS_PER_MESSAGE]
            result.append((b"".join([self._call(call) for call in part]), len(part)))
        return result

    def _status(self, status: int, grpc_status: int | None) -> int:
        if not grpc_status or not self._grpc_status_as_http:
            return status
        return as_http(grpc_status)

    def _call(self, call: Call) -> bytes:
        operation = call.operation
        end_ns = max(call.exit_ns, call.enter_ns)
        if operation is Operation.READ:
            self._read_start.offset = call.enter_ns
            self._read_end.offset = end_ns
            self._read_size.totalPackageSize = call.size
            self._read.read.syscall = _READ_SYSCALLS.get(call.syscall, pb.Read)  # type: ignore[call-overload]
            return _field(3, self._read.SerializeToString())
        if operation is Operation.WRITE:
            self._write_start.offset = call.enter_ns
            self._write_end.offset = end_ns
            self._write_size.totalPackageSize = call.size
            self._write.write.syscall = _WRITE_SYSCALLS.get(call.syscall, pb.Write)  # type: ignore[call-overload]
            return _field(3, self._write.SerializeToString())
        log = pb.AccessLogKernelLog()
        if operation is Operation.ACCEPT:
            log.accept.startTime.offset.offset = call.enter_ns
            log.accept.endTime.offset.offset = end_ns
        else:
            detail = log.connect if operation is Operation.CONNECT else log.close
            detail.startTime.offset.offset = call.enter_ns
            detail.endTime.offset.offset = end_ns
            detail.success = call.success
        return _field(3, log.SerializeToString())
