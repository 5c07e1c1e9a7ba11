# SPDX-License-Identifier: Apache-2.0
"""What the OAP's access-log handler does with a stream of messages, without any transport (oap-contract A, B, C).

`Stream.take(message)` is the handler's `onNext`: it keeps the sticky node and connection, resolves addresses, applies
the validity rules and returns what the message became.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rover_plugin._generated.skywalking.common import Common_pb2 as common
from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

UNKNOWN = "Unknown"
NAME_LIMIT = 70  # characters of a service or instance name
ENDPOINT_LIMIT = 150
MESSAGE_LIMIT = 1 << 20  # oap-contract K.8
SECOND = 1_000_000_000
FAR_SECONDS = 600

SOURCE_SYSCALLS = {"read": wire.AccessLogKernelReadSyscall, "write": wire.AccessLogKernelWriteSyscall}


Keep = Literal["all", "checks", "counts"]


class KubernetesUnreachableError(Exception):
    """The pod lookup failed; the OAP does not catch it (oap-contract C)."""


@dataclass
class Kubernetes:
    """Stands for the API server the OAP asks about `ip` addresses.

    Attributes:
        services: cluster IP to `name.namespace`.
        pods: pod IP to (`service.namespace`, pod name).
        reachable: without it the list of services is empty, and every lookup raises.
    """

    services: Mapping[str, str] = field(default_factory=dict)
    pods: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    reachable: bool = False

    def resolve(self, host: str) -> tuple[str, str]:
        """(service, pod) of an address; the pod is empty for a cluster IP; both `Unknown` where nothing matches."""
        if not self.reachable:
            message = f"cannot list pods with status.podIP={host}"
            raise KubernetesUnreachableError(message)
        if host in self.services:
            return self.services[host], ""
        return self.pods.get(host, (UNKNOWN, UNKNOWN))


@dataclass(frozen=True)
class Node:
    """The sticky node of a stream; the default is what a first message without `node` installs."""

    name: str = ""
    boot_seconds: int = 0
    cluster: str = ""
    interfaces: Mapping[int, str] = field(default_factory=dict)

    def instant(self, offset: int) -> int:
        """Nanoseconds since the epoch; `bootTime.nanos` is never read (oap-contract B)."""
        return self.boot_seconds * SECOND + offset

    def minute(self, offset: int) -> int:
        """The minute bucket: both parts are truncated to seconds first."""
        return (self.boot_seconds + offset // SECOND) // 60


@dataclass(frozen=True)
class Address:
    """One resolved end, names as sent."""

    service: str
    pod: str = ""
    container: str = ""
    process: str = ""
    host: str = ""
    port: int = 0
    kind: str = "kubernetes"


@dataclass(frozen=True)
class Connection:
    """The sticky connection of a stream after resolution."""

    local: Address | None
    remote: Address | None
    role: str
    tls: bool
    protocol: str
    components: tuple[int, ...]
    ztunnel: bool = False

    @property
    def drop_reason(self) -> str:
        """Why all logs on this connection are dropped; empty when they are not (oap-contract A.3)."""
        if self.local is None or self.remote is None:
            return "connection loss"
        if self.local.service == self.remote.service:
            return "same service"
        return ""

    def ends(self) -> tuple[Address, Address]:
        """(source, destination) of the relation."""
        assert self.local is not None
        assert self.remote is not None
        return (self.remote, self.local) if self.role == "server" else (self.local, self.remote)


@dataclass(frozen=True)
class KernelLog:
    """One accepted kernel log. Times are nanoseconds since the epoch, `size` bytes."""

    connection: Connection
    operation: str
    syscall: str
    start_ns: int
    end_ns: int
    minute: int
    success: bool
    size: int
    packets: int
    in_exchange: bool
    raw: wire.AccessLogKernelLog


@dataclass(frozen=True)
class ProtocolLog:
    """One accepted HTTP exchange with the kernel logs that travelled in the same message."""

    connection: Connection
    start_ns: int
    end_ns: int
    minute: int
    version: str
    method: str
    path: str
    host: str
    status: int
    request_header_bytes: int
    request_body_bytes: int
    response_header_bytes: int
    response_body_bytes: int
    kernel_logs: tuple[KernelLog, ...]
    raw: wire.AccessLogHTTPProtocol

    @property
    def endpoint(self) -> str:
        return f"{self.method.upper()}:{self.path}"[:ENDPOINT_LIMIT]

    @property
    def latency_ms(self) -> int:
        return int((self.end_ns - self.start_ns) / 1e6)


@dataclass(frozen=True)
class Source:
    """One row handed to the OAL: what metrics are made from.

    `scope` is service, instance, relation, instance_relation, endpoint, or mesh (ztunnel traffic); `entity` its names,
    two for relations; `kind` the operation, or protocol; `values` the numbers the OAL reads.
    """

    scope: str
    entity: tuple[str, ...]
    kind: str
    detect_point: str
    minute: int
    values: Mapping[str, int | bool]
    components: tuple[int, ...] = ()


@dataclass
class Outcome:
    """What became of one message."""

    kernel_logs: list[KernelLog] = field(default_factory=list)
    protocol_logs: list[ProtocolLog] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    accepted_kernel: int = 0
    accepted_protocol: int = 0
    dropped: int = 0
    drop_reason: str = ""
    error: str = ""
    anomalies: list[str] = field(default_factory=list)


class Stream:
    """The handler's state for one `collect` stream (oap-contract A.1).

    Args:
        kubernetes: answers for `ip` addresses.
        keep: `all` fills everything; `checks` leaves logs and sources empty; `counts` the anomalies too.
        now: seconds since the epoch, for the anomaly "time far from now"; None switches that one off.
    """

    def __init__(self, kubernetes: Kubernetes, *, keep: Keep = "all", now: Callable[[], float] | None = None) -> None:
        self._kubernetes = kubernetes
        self._keep = keep
        self._now = now
        self._first = True
        self._resolved: dict[bytes, Connection] = {}
        self.node = Node()
        self.connection: Connection | None = None

    def take(self, message: wire.EBPFAccessLogMessage) -> Outcome:
        """Applies one message; never raises for what the OAP survives."""
        outcome = Outcome()
        try:
            self._take(message, outcome)
        except KubernetesUnreachableError as error:
            outcome.error = str(error)  # the previous connection stays current: oap-contract §0.3
        return outcome

    def _take(self, message: wire.EBPFAccessLogMessage, outcome: Outcome) -> None:
        if self._keep != "counts":
            outcome.anomalies += message_anomalies(message, first=self._first)
        if self._first or message.HasField("node"):
            self._first = False
            self.node = node_of(message.node)
        if message.HasField("connection"):
            self.connection = self._resolve(message.connection)
        kernel, protocol = len(message.kernelLogs), int(message.HasField("protocolLog"))
        outcome.drop_reason = self.connection.drop_reason if self.connection else "no connection"
        if outcome.drop_reason:
            outcome.dropped = kernel + protocol
            return
        outcome.accepted_kernel = kernel
        outcome.accepted_protocol = protocol
        if self._keep != "counts":
            outcome.anomalies += self._time_anomalies(message)
        if self._keep == "all":
            self._record(message, outcome)

    def _resolve(self, sent: wire.AccessLogConnection) -> Connection:
        key = sent.SerializeToString(deterministic=True) + self.node.cluster.encode()
        known = self._resolved.get(key)
        if known is None or (known.local and known.local.kind == "ip") or (known.remote and known.remote.kind == "ip"):
            known = self._resolved[key] = connection_of(sent, self.node, self._kubernetes)
        return known

    def _record(self, message: wire.EBPFAccessLogMessage, outcome: Outcome) -> None:
        assert self.connection is not None
        in_exchange = message.HasField("protocolLog")
        for raw in message.kernelLogs:
            log = kernel_log(raw, self.connection, self.node, in_exchange=in_exchange)
            outcome.kernel_logs.append(log)
            outcome.sources += kernel_sources(log)
        if in_exchange:
            exchange = protocol_log(message.protocolLog.http, self.connection, self.node, tuple(outcome.kernel_logs))
            outcome.protocol_logs.append(exchange)
            outcome.sources += protocol_sources(exchange)

    def _time_anomalies(self, message: wire.EBPFAccessLogMessage) -> Iterator[str]:
        if self._now is None:
            return
        now = int(self._now()) - self.node.boot_seconds
        for log in message.kernelLogs:
            operation = log.WhichOneof("operation")
            if operation and abs(now - offset(getattr(log, operation).startTime) // SECOND) > FAR_SECONDS:
                yield f"kernel log {operation}: time is more than 10 minutes from now"
        http_start = offset(message.protocolLog.http.startTime) if message.HasField("protocolLog") else None
        if http_start is not None and abs(now - http_start // SECOND) > FAR_SECONDS:
            yield "http: time is more than 10 minutes from now"


def node_of(sent: wire.EBPFAccessLogNodeInfo) -> Node:
    interfaces: dict[int, str] = {}
    for interface in sent.netInterfaces:
        interfaces.setdefault(interface.index, interface.name)
    return Node(sent.name, sent.bootTime.seconds, sent.clusterName, interfaces)


def connection_of(sent: wire.AccessLogConnection, node: Node, kubernetes: Kubernetes) -> Connection:
    """Resolves both ends, remote address replacement by a ztunnel attachment included (oap-contract A.6)."""
    ztunnel = sent.attachment.WhichOneof("environment") == "zTunnel"
    attachment = sent.attachment.zTunnel
    outbound = ztunnel and attachment.by == wire.ZTUNNEL_OUTBOUND_FUNC
    local = address_of(sent.local, node, kubernetes)
    remote = address_of(sent.remote, node, kubernetes, attachment.real_destination_ip if outbound else "")
    protocol = wire.AccessLogProtocolType.Name(sent.protocol)
    tls = sent.tlsMode == wire.AccessLogConnectionTLSMode.TLS
    if ztunnel:
        components = (142, 162) if attachment.security_policy == wire.MTLS else (162,)
    elif protocol == "TCP":
        components = (130,) if tls else (110,)
    else:
        components = (129,) if tls else (49,)
    return Connection(local, remote, common.DetectPoint.Name(sent.role), tls, protocol, components, ztunnel)


def address_of(sent: wire.ConnectionAddress, node: Node, kubernetes: Kubernetes, real_host: str = "") -> Address | None:
    kind = sent.WhichOneof("address")
    if kind == "kubernetes":
        end = sent.kubernetes
        return Address(end.serviceName, end.podName, end.containerName, end.processName, port=end.port)
    if kind == "ip":
        host = real_host or sent.ip.host
        service, pod = kubernetes.resolve(host)
        if service != UNKNOWN and node.cluster:
            service = f"{node.cluster}::{service}"
        return Address(service, pod, host=host, port=sent.ip.port, kind="ip")
    return None


def offset(stamp: wire.EBPFTimestamp) -> int:
    return stamp.offset.offset


def kernel_log(raw: wire.AccessLogKernelLog, connection: Connection, node: Node, *, in_exchange: bool) -> KernelLog:
    operation = raw.WhichOneof("operation") or ""
    if not operation:
        return KernelLog(
            connection, "", "", 0, 0, 0, success=False, size=0, packets=0, in_exchange=in_exchange, raw=raw
        )
    call = getattr(raw, operation)
    size = packets = 0
    syscall = operation
    if operation in SOURCE_SYSCALLS:
        syscall = SOURCE_SYSCALLS[operation].Name(call.syscall)
        if operation == "read":
            size, packets = call.l2Metrics.totalPackageSize, call.l2Metrics.totalPackageCount
        else:
            size, packets = call.l4Metrics.totalPackageSize, call.l4Metrics.totalTransmitPackageCount
    start, end = offset(call.startTime), offset(call.endTime)
    return KernelLog(
        connection,
        operation,
        syscall,
        node.instant(start),
        node.instant(end),
        node.minute(start),
        success=bool(getattr(call, "success", True)),
        size=size,
        packets=packets,
        in_exchange=in_exchange,
        raw=raw,
    )


def protocol_log(
    http: wire.AccessLogHTTPProtocol, connection: Connection, node: Node, kernel_logs: tuple[KernelLog, ...]
) -> ProtocolLog:
    start, end = offset(http.startTime), offset(http.endTime)
    return ProtocolLog(
        connection,
        node.instant(start),
        node.instant(end),
        node.minute(start),
        wire.AccessLogHTTPProtocolVersion.Name(http.version),
        wire.AccessLogHTTPProtocolRequestMethod.Name(http.request.method),
        http.request.path,
        http.request.host,
        http.response.statusCode,
        http.request.sizeOfHeadersBytes,
        http.request.sizeOfBodyBytes,
        http.response.sizeOfHeadersBytes,
        http.response.sizeOfBodyBytes,
        kernel_logs,
        http,
    )


def four_sources(connection: Connection, kind: str, minute: int, values: Mapping[str, int | bool]) -> Iterator[Source]:
    """Service, instance, relation and instance relation, where the names allow them (oap-contract A.4)."""
    local = connection.local
    assert local is not None
    role = connection.role
    service, pod = local.service[:NAME_LIMIT] or "_blank", local.pod[:NAME_LIMIT]
    if service != UNKNOWN:
        yield Source("service", (service,), kind, role, minute, values, connection.components)
        if pod and pod != UNKNOWN:
            yield Source("instance", (service, pod), kind, role, minute, values, connection.components)
    if role == "proxy":
        return
    source, destination = ((end.service[:NAME_LIMIT], end.pod[:NAME_LIMIT]) for end in connection.ends())
    if source[0] == destination[0]:
        return
    yield Source("relation", (source[0], destination[0]), kind, role, minute, values, connection.components)
    if source[1] not in {"", UNKNOWN} and destination[1] not in {"", UNKNOWN}:
        entity = (*source, *destination)
        yield Source("instance_relation", entity, kind, role, minute, values, connection.components)


def kernel_sources(log: KernelLog) -> Iterator[Source]:
    values = {
        "duration_ns": log.end_ns - log.start_ns,
        "success": log.success,
        "size": log.size,
        "packets": log.packets,
    }
    yield from four_sources(log.connection, log.operation, log.minute, values)


def protocol_sources(log: ProtocolLog) -> Iterator[Source]:
    values = {
        "latency_ms": log.latency_ms,
        "status": log.status,
        "success": log.status < 500,
        "request_header_bytes": log.request_header_bytes,
        "request_body_bytes": log.request_body_bytes,
        "response_header_bytes": log.response_header_bytes,
        "response_body_bytes": log.response_body_bytes,
    }
    yield from four_sources(log.connection, "protocol", log.minute, values)
    assert log.connection.local is not None
    service = log.connection.local.service[:NAME_LIMIT]
    if log.connection.role != "client" and service != UNKNOWN:
        yield Source("endpoint", (service, log.endpoint), "protocol", log.connection.role, log.minute, values)
    if log.connection.ztunnel:
        ends = tuple(end.service[:NAME_LIMIT] for end in log.connection.ends())
        yield Source("mesh", ends, "protocol", log.connection.role, log.minute, values, log.connection.components)


def message_anomalies(message: wire.EBPFAccessLogMessage, *, first: bool) -> Iterator[str]:
    """What the OAP would take in silence although the agent should never send it (oap-contract K)."""
    if first and not message.HasField("node"):
        yield "first message of the stream has no node"
    if message.HasField("node"):
        if not message.node.bootTime.seconds:
            yield "node without bootTime"
        if message.node.bootTime.nanos:
            yield "bootTime with nanos: the OAP ignores them"
    if not message.HasField("connection"):
        yield "message without connection"
    else:
        yield from address_anomalies("local", message.connection.local)
        yield from address_anomalies("remote", message.connection.remote)
    if not message.kernelLogs and not message.HasField("protocolLog"):
        yield "message without logs"
    if message.ByteSize() > MESSAGE_LIMIT:
        yield "message larger than 1 MB"
    for log in message.kernelLogs:
        operation = log.WhichOneof("operation")
        if operation is None:
            yield "kernel log without operation"
        else:
            yield from times_anomalies(f"kernel log {operation}", getattr(log, operation))
    if message.HasField("protocolLog"):
        yield from http_anomalies(message.protocolLog)


def address_anomalies(end: str, address: wire.ConnectionAddress) -> Iterator[str]:
    kind = address.WhichOneof("address")
    if kind is None:
        yield f"{end} address unset"
    elif kind == "kubernetes":
        if not address.kubernetes.serviceName:
            yield f"{end} serviceName empty"
        if len(address.kubernetes.serviceName) > NAME_LIMIT or len(address.kubernetes.podName) > NAME_LIMIT:
            yield f"{end} name longer than {NAME_LIMIT}"


def times_anomalies(
    what: str,
    timed: wire.AccessLogHTTPProtocol
    | wire.AccessLogKernelAcceptOperation
    | wire.AccessLogKernelCloseOperation
    | wire.AccessLogKernelConnectOperation
    | wire.AccessLogKernelReadOperation
    | wire.AccessLogKernelWriteOperation,
) -> Iterator[str]:
    start, end = offset(timed.startTime), offset(timed.endTime)
    if not start:
        yield f"{what}: start 0"
    if end < start:
        yield f"{what}: end before start"


def http_anomalies(sent: wire.AccessLogProtocolLogs) -> Iterator[str]:
    if sent.WhichOneof("protocol") is None:
        yield "protocol log without protocol"
        return
    http = sent.http
    yield from times_anomalies("http", http)
    if not http.response.statusCode:
        yield "http: status 0"
    if "?" in http.request.path:
        yield "http: path with query"
    if len(http.request.path) > ENDPOINT_LIMIT:
        yield f"http: path longer than {ENDPOINT_LIMIT}"
    if not http.request.path:
        yield "http: path empty"
