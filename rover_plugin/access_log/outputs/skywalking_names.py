# SPDX-License-Identifier: Apache-2.0
"""How connections and this node are named to the OAP (oap-contract A.2, A.3, C, K.1-K.4).

The OAP takes `kubernetes` addresses as they stand and looks `ip` addresses up in Kubernetes; where there is none, an
`ip` costs the message. So both ends are sent as `kubernetes`, with one rule for local and remote:

- a process that discovery has named: its service, pod (else instance), container and process;
- anybody else: the address itself is the service name, without an instance. It is the same for whoever looks from this
  side, shows in the topology, and cannot meet a real service. Loopback means another host on every host, so there the
  name is `localhost@<node>`.
- in Kubernetes (`resolve_in_backend`), anybody else but loopback is left to the OAP: an `ip` address.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING, Final

from rover_plugin._generated.skywalking.common import Common_pb2 as common
from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire
from rover_plugin.access_log.model import Role

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Endpoint, ResolvedConnection
    from rover_plugin.backend.node import ClockBase, NodeIdentity

NAME_LIMIT: Final = 70  # characters; the OAP cuts there
_HASH_CHARACTERS: Final = 8


def cut_name(name: str) -> str:
    """At most 70 characters; what is cut off leaves a hash, so that different names stay different."""
    if len(name) <= NAME_LIMIT:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:_HASH_CHARACTERS]
    return f"{name[: NAME_LIMIT - _HASH_CHARACTERS - 1]}~{mark}"


def connection_prefix(connection: ResolvedConnection, cluster: str, node: str, *, resolve_in_backend: bool) -> bytes:
    """Serialises field 2 of EBPFAccessLogMessage, less the protocol, which every fragment brings along.

    Args:
        connection: both ends, role and TLS as known now.
        cluster: put before service names as `cluster::` unless they carry a cluster already; empty puts nothing.
        node: name of this node.
        resolve_in_backend: whether the OAP can look addresses up in Kubernetes.

    Returns:
        The field, or nothing if both ends have the same service name: the OAP drops all logs of such a connection
        without a word (oap-contract A.3).
    """
    message = wire.EBPFAccessLogMessage()
    sent = message.connection
    _fill(sent.local, connection.local, cluster, node, resolve_in_backend=False)
    _fill(sent.remote, connection.remote, cluster, node, resolve_in_backend=resolve_in_backend)
    if sent.local.kubernetes.serviceName == sent.remote.kubernetes.serviceName:
        return b""
    sent.role = _role(connection)
    sent.tlsMode = wire.AccessLogConnectionTLSMode.TLS if connection.tls else wire.AccessLogConnectionTLSMode.Plain
    return message.SerializeToString()


def node_field(node: NodeIdentity, clock: ClockBase) -> bytes:
    """Serialises field 1 of EBPFAccessLogMessage."""
    message = wire.EBPFAccessLogMessage()
    sent = message.node
    sent.name = node.name
    sent.clusterName = node.cluster
    sent.bootTime.seconds = clock.boot_seconds
    for interface in node.interfaces:
        sent.netInterfaces.add(index=interface.index, mtu=interface.mtu, name=interface.name)
    return message.SerializeToString()


def _fill(address: wire.ConnectionAddress, end: Endpoint, cluster: str, node: str, *, resolve_in_backend: bool) -> None:
    entity = end.entity
    if entity is None and resolve_in_backend and not _is_loopback(end.host):
        address.ip.host = end.host
        address.ip.port = end.port
        return
    named = address.kubernetes
    named.port = end.port
    if entity is None or not entity.service:
        named.serviceName = cut_name(f"localhost@{node}" if _is_loopback(end.host) else end.host)
        return
    named.serviceName = cut_name(_with_cluster(entity.service, cluster))
    named.podName = cut_name(entity.pod or entity.instance)
    named.containerName = entity.container
    named.processName = entity.process


def _role(connection: ResolvedConnection) -> common.DetectPoint:
    if connection.role is Role.UNKNOWN:
        # The wire knows no "unknown". Servers listen on low ports, clients are given high ones.
        return common.server if connection.local.port < connection.remote.port else common.client
    return common.server if connection.role is Role.SERVER else common.client


def _with_cluster(service: str, cluster: str) -> str:
    return f"{cluster}::{service}" if cluster and "::" not in service else service


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
