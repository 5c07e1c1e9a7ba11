# SPDX-License-Identifier: Apache-2.0
"""Fragments of EBPFAccessLogMessage: fields 3 and 4, to be put behind the connection (field 2).

What goes into each field, and why, is oap-contract.md §A.4, A.5 and K.

Setting numbers on messages that are kept is the cheapest way to serialise them. Strings cannot be set there: upb never
frees what was set before. So an HTTP log travels as two fields 4, numbers in one and words in the other; a receiver
merges them, as it must a message field that comes more than once (protobuf encoding, "Last One Wins"). In the same way
each fragment ends with a field 2 of its own that holds nothing but `protocol`: the connection in front has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as pb
from rover_plugin.access_log.grpc_status import as_http
from rover_plugin.access_log.model import Completeness, Operation, ProtocolName
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

_READS: Final = {
    CallClass.READ: pb.Read,
    CallClass.READV: pb.Readv,
    CallClass.PREADV2: pb.Readv,
    CallClass.RECVFROM: pb.RecvFrom,
    CallClass.RECVMSG: pb.RecvMsg,
    CallClass.RECVMMSG: pb.RecvMmsg,
}
_WRITES: Final = {
    CallClass.WRITE: pb.Write,
    CallClass.WRITEV: pb.Writev,
    CallClass.PWRITEV2: pb.Writev,
    CallClass.SENDTO: pb.SendTo,
    CallClass.SENDMSG: pb.SendMsg,
    CallClass.SENDMMSG: pb.SendMmsg,
    CallClass.SENDFILE: pb.SendFile,
    CallClass.SPLICE: pb.SendFile,
}
# By call class; what is none of these moved bytes in some way of its own.
_READ_SYSCALLS: Final = tuple(_READS.get(call, pb.Read) for call in CallClass)
_WRITE_SYSCALLS: Final = tuple(_WRITES.get(call, pb.Write) for call in CallClass)

_READ: Final = Operation.READ
_WRITE: Final = Operation.WRITE

# Words that come again and again are serialised once; when there are too many different ones, all are forgotten. An
# entry holds what the backend keeps of a path and a host, twice: at most some 2 KB, 8 MB in all.
_MOST_WORDS: Final = 4096


# How fields 3 and 4 begin (wire type 2, length-delimited), by their size; of numbers alone there are never more bytes.
_KERNEL_LOG: Final = tuple(bytes((3 << 3 | 2, size)) for size in range(128))
_PROTOCOL_LOG: Final = tuple(bytes((4 << 3 | 2, size)) for size in range(128))


# connection { protocol }; TCP is 0, which proto3 does not send.
_SPOKEN: Final = {
    ProtocolName.TCP: b"",
    ProtocolName.TLS: b"",
    ProtocolName.HTTP1: pb.EBPFAccessLogMessage(connection={"protocol": pb.HTTP_1}).SerializeToString(),
    ProtocolName.HTTP2: pb.EBPFAccessLogMessage(connection={"protocol": pb.HTTP_2}).SerializeToString(),
}


def _field(number: int, payload: bytes) -> bytes:
    # A length-delimited field of a number below 16.
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
        self._read_log, self._write_log = read, write = self._read.read, self._write.write
        self._read_start, self._read_end = read.startTime.offset, read.endTime.offset
        self._write_start, self._write_end = write.startTime.offset, write.endTime.offset
        self._read_size, self._write_size = read.l2Metrics, write.l4Metrics
        # Segments cannot be counted from system calls; one call is one, as Rover has it.
        self._read_size.totalPackageCount = self._write_size.totalTransmitPackageCount = 1
        self._numbers = pb.AccessLogProtocolLogs()
        self._http = http = self._numbers.http
        self._http_start, self._http_end = http.startTime.offset, http.endTime.offset
        self._request, self._response = http.request, http.response
        self._words: dict[tuple[str | None, str | None], bytes] = {}

    def set_clock(self, offset_ns: int) -> None:
        """Nothing to do: the wire carries CLOCK_MONOTONIC, and `node` carries its base."""

    def exchange(self, exchange: Exchange) -> tuple[bytes, int]:
        """Kernel logs and the HTTP log.

        Without a status there is no HTTP log: the OAP would count it as success. Nor is there one where nothing of the
        request was seen: the OAP would count a `GET` that took no time. Nor in a report of an open stream: the OAP
        would count it as a request of its own.
        """
        parts = [self._call(call) for call in exchange.calls]
        spoken = _SPOKEN[exchange.protocol]
        if exchange.status is None or not exchange.request_header_bytes or exchange.completeness is Completeness.OPEN:
            if parts:
                parts.append(spoken)
            return b"".join(parts), 0
        http, request, response = self._http, self._request, self._response
        self._http_start.offset = exchange.start_ns
        self._http_end.offset = max(exchange.end_ns, exchange.start_ns)
        http.version = pb.HTTP2 if exchange.version == 2 else pb.HTTP1
        request.method = _METHODS.get(exchange.method or "GET", pb.Post)
        request.sizeOfHeadersBytes = exchange.request_header_bytes
        request.sizeOfBodyBytes = exchange.request_body_bytes
        response.statusCode = self._status(exchange.status, exchange.grpc_status)
        response.sizeOfHeadersBytes = exchange.response_header_bytes
        response.sizeOfBodyBytes = exchange.response_body_bytes
        numbers = self._numbers.SerializeToString()
        parts += (_PROTOCOL_LOG[len(numbers)], numbers)
        if exchange.trace is None:
            path = exchange.path
            names = path[:MAX_PATH] if path and len(path) > MAX_PATH else path, exchange.host
            words = self._words.get(names)
            if words is None:
                if len(self._words) >= _MOST_WORDS:
                    self._words.clear()
                words = self._words[names] = _words(exchange)
        else:
            words = _words(exchange)
        parts += (words, spoken)
        return b"".join(parts), 1

    def calls(self, calls: Sequence[Call], protocol: ProtocolName) -> list[tuple[bytes, int]]:
        """Kernel logs, up to 256 in one message."""
        result = []
        for start in range(0, len(calls), _CALLS_PER_MESSAGE):
            part = calls[start : start + _CALLS_PER_MESSAGE]
            result.append((b"".join([*map(self._call, part), _SPOKEN[protocol]]), len(part)))
        return result

    def _status(self, status: int, grpc_status: int | None) -> int:
        if not grpc_status or not self._grpc_status_as_http:
            return status
        return as_http(grpc_status)

    def _call(self, call: Call) -> bytes:
        operation = call.operation
        start_ns = call.enter_ns
        end_ns = call.exit_ns
        if end_ns < start_ns:  # noqa: PLR1730 max() is a call
            end_ns = start_ns
        if operation is _READ:
            self._read_start.offset = start_ns
            self._read_end.offset = end_ns
            self._read_size.totalPackageSize = call.size
            self._read_log.syscall = _READ_SYSCALLS[call.syscall]
            payload = self._read.SerializeToString()
            return _KERNEL_LOG[len(payload)] + payload
        if operation is _WRITE:
            self._write_start.offset = start_ns
            self._write_end.offset = end_ns
            self._write_size.totalPackageSize = call.size
            self._write_log.syscall = _WRITE_SYSCALLS[call.syscall]
            payload = self._write.SerializeToString()
            return _KERNEL_LOG[len(payload)] + payload
        log = pb.AccessLogKernelLog()
        if operation is Operation.ACCEPT:
            log.accept.startTime.offset.offset = start_ns
            log.accept.endTime.offset.offset = end_ns
        else:
            detail = log.connect if operation is Operation.CONNECT else log.close
            detail.startTime.offset.offset = start_ns
            detail.endTime.offset.offset = end_ns
            detail.success = call.success
        return _field(3, log.SerializeToString())


def _words(exchange: Exchange) -> bytes:
    """The strings of an HTTP log, as a field 4 of its own."""
    logs = pb.AccessLogProtocolLogs()
    request = logs.http.request
    request.path = exchange.path[:MAX_PATH] if exchange.path else UNKNOWN_PATH
    if exchange.host:
        request.host = exchange.host
    if exchange.trace is not None:
        trace = request.trace
        trace.provider = pb.SkyWalking if exchange.trace.provider == "skywalking" else pb.Zipkin
        trace.traceId = exchange.trace.trace_id
        trace.traceSegmentId = exchange.trace.segment_id
        trace.spanId = exchange.trace.span_id
    return _field(4, logs.SerializeToString())
