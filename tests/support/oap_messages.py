# SPDX-License-Identifier: Apache-2.0
"""Valid access-log messages to start from."""

from __future__ import annotations

import time

from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire

HOUR_NS = 3_600_000_000_000


def node(name: str = "node-1", cluster: str = "") -> wire.EBPFAccessLogNodeInfo:
    """A node whose time base lies one hour back: offset HOUR_NS is now."""
    sent = wire.EBPFAccessLogNodeInfo(name=name, clusterName=cluster)
    sent.bootTime.seconds = int(time.time()) - 3600
    sent.netInterfaces.add(index=1, mtu=65536, name="lo")
    return sent


def connection(
    local: str = "shop.default", remote: str = "db.default", role: int = 1, pods: tuple[str, str] = ("shop-0", "db-0")
) -> wire.AccessLogConnection:
    sent = wire.AccessLogConnection(role=role, protocol=wire.HTTP_1)
    sent.local.kubernetes.serviceName, sent.local.kubernetes.podName = local, pods[0]
    sent.remote.kubernetes.serviceName, sent.remote.kubernetes.podName = remote, pods[1]
    return sent


def kernel_log(operation: str = "read", start: int = HOUR_NS, end: int = HOUR_NS + 1000) -> wire.AccessLogKernelLog:
    log = wire.AccessLogKernelLog()
    call = getattr(log, operation)
    call.startTime.offset.offset = start
    call.endTime.offset.offset = end
    if operation == "read":
        call.l2Metrics.totalPackageSize = 100
    if operation == "write":
        call.l4Metrics.totalPackageSize = 200
    if operation in {"connect", "close"}:
        call.success = True
    return log


def http(
    path: str = "/cart", status: int = 200, start: int = HOUR_NS, end: int = HOUR_NS + 2_500_000
) -> wire.AccessLogProtocolLogs:
    sent = wire.AccessLogProtocolLogs()
    sent.http.startTime.offset.offset = start
    sent.http.endTime.offset.offset = end
    sent.http.request.path = path
    sent.http.response.statusCode = status
    return sent


def message(
    *operations: str,
    node: wire.EBPFAccessLogNodeInfo | None = None,
    connection: wire.AccessLogConnection | None = None,
    protocol: wire.AccessLogProtocolLogs | None = None,
) -> wire.EBPFAccessLogMessage:
    logs = [kernel_log(operation) for operation in operations]
    return wire.EBPFAccessLogMessage(node=node, connection=connection, kernelLogs=logs, protocolLog=protocol)
