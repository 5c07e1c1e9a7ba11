# SPDX-License-Identifier: Apache-2.0
"""Both ends of a connection get names the OAP takes (oap-contract A.3, C, K.2-K.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin._generated.skywalking.common import Common_pb2 as common
from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire
from rover_plugin.access_log.model import Endpoint, ResolvedConnection, Role
from rover_plugin.access_log.outputs.skywalking_names import connection_prefix, cut_name, node_field
from rover_plugin.backend.node import ClockBase, Interface, NodeIdentity
from rover_plugin.discovery.model import Entity
from tests.support.oap_rules import Kubernetes, Stream

SHOP = Entity("OS_LINUX", "shop", "web-1", "nginx")
POD = Entity("K8S_SERVICE", "cart.default", "cart-0", "java", pod="cart-0", container="app", namespace="default")


def resolved(
    local: Entity | None = SHOP,
    remote: Entity | None = None,
    remote_host: str = "10.1.2.3",
    role: Role = Role.SERVER,
    *,
    tls: bool = False,
    ports: tuple[int, int] = (80, 40000),
) -> ResolvedConnection:
    ends = Endpoint("10.0.0.1", ports[0], local, 1), Endpoint(remote_host, ports[1], remote)
    return ResolvedConnection(7, 1, *ends, role, tls)


def sent(
    connection: ResolvedConnection, cluster: str = "", *, resolve_in_backend: bool = False
) -> wire.AccessLogConnection:
    prefix = connection_prefix(connection, cluster, "web-1", resolve_in_backend=resolve_in_backend)
    return wire.EBPFAccessLogMessage.FromString(prefix).connection


def test_named_ends_carry_service_pod_container_process_and_port() -> None:
    message = sent(resolved(SHOP, POD))
    local, remote = message.local.kubernetes, message.remote.kubernetes
    assert (local.serviceName, local.podName, local.processName, local.port) == ("shop", "web-1", "nginx", 80)
    assert (remote.serviceName, remote.podName, remote.containerName) == ("cart.default", "cart-0", "app")
    assert remote.port == 40000


def test_unknown_peer_is_named_by_its_address_and_the_oap_takes_it() -> None:
    message = sent(resolved())
    assert message.remote.kubernetes.serviceName == "10.1.2.3"
    assert message.remote.kubernetes.podName == ""
    stream = Stream(Kubernetes(reachable=False))
    outcome = stream.take(wire.EBPFAccessLogMessage(connection=message, kernelLogs=[wire.AccessLogKernelLog()]))
    assert outcome.accepted_kernel == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_unknown_loopback_peer_is_named_by_the_node(host: str) -> None:
    for resolve_in_backend in (False, True):
        message = sent(resolved(remote_host=host), resolve_in_backend=resolve_in_backend)
        assert message.remote.kubernetes.serviceName == "localhost@web-1"


def test_in_kubernetes_unknown_peers_are_left_to_the_oap() -> None:
    message = sent(resolved(POD), resolve_in_backend=True)
    assert message.remote.WhichOneof("address") == "ip"
    assert (message.remote.ip.host, message.remote.ip.port) == ("10.1.2.3", 40000)
    assert message.local.WhichOneof("address") == "kubernetes"


def test_cluster_is_put_before_services_that_carry_none() -> None:
    other = Entity("K8S_SERVICE", "green::db.default", "db-0", "postgres")
    message = sent(resolved(POD, other), cluster="blue")
    assert message.local.kubernetes.serviceName == "blue::cart.default"
    assert message.remote.kubernetes.serviceName == "green::db.default"


@pytest.mark.parametrize(
    ("role", "ports", "expected"),
    [
        (Role.CLIENT, (80, 40000), common.client),
        (Role.SERVER, (40000, 80), common.server),
        (Role.UNKNOWN, (80, 40000), common.server),
        (Role.UNKNOWN, (40000, 80), common.client),
    ],
)
def test_role_is_the_socket_s_and_told_by_ports_where_unknown(
    role: Role, ports: tuple[int, int], expected: int
) -> None:
    assert sent(resolved(role=role, ports=ports)).role == expected


def test_tls_is_told_and_the_protocol_is_left_to_the_fragments() -> None:
    message = sent(resolved(tls=True))
    assert (message.protocol, message.tlsMode) == (wire.TCP, wire.AccessLogConnectionTLSMode.TLS)
    assert sent(resolved()).tlsMode == wire.Plain


def test_same_service_at_both_ends_has_no_prefix() -> None:
    assert connection_prefix(resolved(SHOP, SHOP), "", "web-1", resolve_in_backend=False) == b""
    assert connection_prefix(resolved(SHOP, POD), "", "web-1", resolve_in_backend=False) != b""


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_cut_names_fit_and_stay_distinct(one: str, other: str) -> None:
    assert len(cut_name(one)) <= 70
    assert (cut_name(one) == cut_name(other)) == (one == other)


def test_short_names_are_left_alone() -> None:
    assert cut_name("s" * 70) == "s" * 70
    assert cut_name("s" * 70 + "a") != cut_name("s" * 70 + "b")


def test_node_names_interfaces_by_index_and_a_base_in_whole_seconds() -> None:
    node = NodeIdentity("web-1", "blue", (Interface(1, 65536, "lo"), Interface(7, 1500, "eth0")))
    message = wire.EBPFAccessLogMessage.FromString(node_field(node, ClockBase(1000, 5))).node
    assert (message.name, message.clusterName) == ("web-1", "blue")
    assert (message.bootTime.seconds, message.bootTime.nanos) == (1000, 0)
    assert [(item.index, item.mtu, item.name) for item in message.netInterfaces] == [
        (1, 65536, "lo"),
        (7, 1500, "eth0"),
    ]
