# SPDX-License-Identifier: Apache-2.0
"""The OAP double treats each message as oap-contract A, B and C say the real one does."""

from __future__ import annotations

import time

import pytest

from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire
from tests.support.oap_messages import HOUR_NS, connection, http, kernel_log, message, node
from tests.support.oap_rules import Kubernetes, Stream


def stream(**kubernetes: object) -> Stream:
    return Stream(Kubernetes(**kubernetes), now=time.time)


def with_ips(local: str, remote: str) -> wire.AccessLogConnection:
    sent = wire.AccessLogConnection(role=1)
    sent.local.ip.host, sent.remote.ip.host = local, remote
    return sent


def test_node_and_connection_stay_until_replaced() -> None:
    subject = stream()
    assert subject.take(message("read", node=node("a"), connection=connection())).accepted_kernel == 1
    later = subject.take(message("write"))
    assert later.accepted_kernel == 1
    assert later.kernel_logs[0].connection.local.service == "shop.default"
    subject.take(message("read", node=node("b")))
    assert subject.node.name == "b"


def test_message_before_any_connection_is_dropped_with_all_its_logs() -> None:
    outcome = stream().take(message("read", "write", node=node(), protocol=http()))
    assert (outcome.dropped, outcome.drop_reason, outcome.accepted_kernel) == (3, "no connection", 0)


def test_unset_address_is_connection_loss() -> None:
    half = connection()
    half.ClearField("remote")
    assert stream().take(message("read", node=node(), connection=half)).drop_reason == "connection loss"


@pytest.mark.parametrize("name", ["shop.default", ""])
def test_equal_service_names_are_dropped(name: str) -> None:
    outcome = stream().take(message("read", node=node(), connection=connection(name, name)))
    assert (outcome.dropped, outcome.drop_reason) == (1, "same service")


def test_two_unknown_addresses_are_the_same_service() -> None:
    outcome = stream(reachable=True).take(message("read", node=node(), connection=with_ips("10.0.0.1", "10.0.0.2")))
    assert outcome.drop_reason == "same service"


def test_ip_without_an_api_server_throws_and_the_previous_connection_stays() -> None:
    subject = stream()
    subject.take(message("read", node=node(), connection=connection()))
    failed = subject.take(message("read", connection=with_ips("10.0.0.1", "10.0.0.2")))
    assert failed.error
    assert failed.accepted_kernel == 0
    assert subject.take(message("read")).kernel_logs[0].connection.local.service == "shop.default"


def test_ip_resolves_to_cluster_prefixed_names_but_kubernetes_names_are_verbatim() -> None:
    subject = stream(
        reachable=True, services={"10.96.0.1": "db.default"}, pods={"10.0.0.1": ("shop.default", "shop-0")}
    )
    sent = with_ips("10.0.0.1", "10.96.0.1")
    outcome = subject.take(message("read", node=node(cluster="blue"), connection=sent))
    ends = outcome.kernel_logs[0].connection
    assert (ends.local.service, ends.local.pod) == ("blue::shop.default", "shop-0")
    assert (ends.remote.service, ends.remote.pod) == ("blue::db.default", "")
    assert {source.scope for source in outcome.sources} == {"service", "instance", "relation"}


def test_ztunnel_outbound_replaces_the_remote_address() -> None:
    subject = stream(reachable=True, pods={"10.0.0.1": ("a.x", "a-0"), "10.0.0.9": ("b.x", "b-0")})
    sent = with_ips("10.0.0.1", "127.0.0.1")
    sent.attachment.zTunnel.real_destination_ip = "10.0.0.9"
    ends = subject.take(message("read", node=node(), connection=sent)).kernel_logs[0].connection
    assert ends.remote.service == "b.x"
    assert ends.components == (142, 162)


def test_minute_comes_from_truncated_seconds_and_ignores_nanos() -> None:
    sent = node()
    sent.bootTime.seconds, sent.bootTime.nanos = 119, 999_999_999
    log = kernel_log(start=999_999_999, end=10**9)
    outcome = stream().take(wire.EBPFAccessLogMessage(node=sent, connection=connection(), kernelLogs=[log]))
    assert outcome.kernel_logs[0].minute == 1


def test_missing_node_books_in_1970_and_is_an_anomaly() -> None:
    outcome = stream().take(message("read", connection=connection()))
    assert outcome.kernel_logs[0].minute == 60
    assert "first message of the stream has no node" in outcome.anomalies
    assert "kernel log read: time is more than 10 minutes from now" in outcome.anomalies


def test_server_exchange_feeds_service_instance_relations_and_endpoint() -> None:
    outcome = stream().take(message("read", "write", node=node(), connection=connection(), protocol=http()))
    rows = {(source.scope, source.kind): source for source in outcome.sources}
    assert {scope for scope, kind in rows if kind == "protocol"} == {
        "service",
        "instance",
        "relation",
        "instance_relation",
        "endpoint",
    }
    assert rows["relation", "protocol"].entity == ("db.default", "shop.default")
    assert rows["endpoint", "protocol"].entity == ("shop.default", "GET:/cart")
    assert rows["service", "protocol"].values["latency_ms"] == 2
    assert rows["service", "read"].values["size"] == 100
    assert rows["service", "write"].values["size"] == 200
    assert not outcome.anomalies


def test_client_exchange_makes_no_endpoint_and_points_from_local_to_remote() -> None:
    outcome = stream().take(message(node=node(), connection=connection(role=0), protocol=http()))
    scopes = {source.scope: source for source in outcome.sources}
    assert "endpoint" not in scopes
    assert scopes["relation"].entity == ("shop.default", "db.default")


def test_proxy_makes_endpoint_but_no_relation() -> None:
    outcome = stream().take(message(node=node(), connection=connection(role=2), protocol=http()))
    assert {source.scope for source in outcome.sources} == {"service", "instance", "endpoint"}


def test_names_equal_only_after_the_cut_lose_their_relation() -> None:
    outcome = stream().take(message("read", node=node(), connection=connection("s" * 70 + "a", "s" * 70 + "b")))
    assert {source.scope for source in outcome.sources} == {"service", "instance"}
    assert "local name longer than 70" in outcome.anomalies


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda sent: sent.ClearField("connection"), "message without connection"),
        (lambda sent: sent.kernelLogs.add(), "kernel log without operation"),
        (lambda sent: sent.kernelLogs.append(kernel_log("close", start=0)), "kernel log close: start 0"),
        (lambda sent: sent.kernelLogs.append(kernel_log("close", end=5)), "kernel log close: end before start"),
        (lambda sent: sent.protocolLog.ClearField("http"), "protocol log without protocol"),
        (lambda sent: sent.protocolLog.CopyFrom(http(status=0)), "http: status 0"),
        (lambda sent: sent.protocolLog.CopyFrom(http(path="/a?b=1")), "http: path with query"),
        (lambda sent: sent.protocolLog.CopyFrom(http(path="/" + "a" * 150)), "http: path longer than 150"),
        (lambda sent: sent.protocolLog.CopyFrom(http(start=HOUR_NS, end=1)), "http: end before start"),
        (lambda sent: sent.connection.local.ClearField("kubernetes"), "local address unset"),
        (lambda sent: sent.connection.remote.kubernetes.ClearField("serviceName"), "remote serviceName empty"),
        (lambda sent: sent.node.ClearField("bootTime"), "node without bootTime"),
        (lambda sent: (sent.ClearField("kernelLogs"), sent.ClearField("protocolLog")), "message without logs"),
        (
            lambda sent: sent.connection.local.kubernetes.__setattr__("containerName", "c" * 2**20),
            "message larger than 1 MB",
        ),
    ],
)
def test_odd_messages_are_anomalies(spoil: object, expected: str) -> None:
    sent = message("read", node=node(), connection=connection(), protocol=http())
    assert not stream().take(sent).anomalies
    spoil(sent)
    assert expected in stream().take(sent).anomalies
