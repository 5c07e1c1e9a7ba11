# SPDX-License-Identifier: Apache-2.0
"""The OAP double over real gRPC: transport, credentials, faults, processes, restart (oap-contract D, E)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from rover_plugin._generated.skywalking.common import Command_pb2 as command
from rover_plugin._generated.skywalking.ebpf import accesslog_pb2_grpc
from rover_plugin._generated.skywalking.ebpf.profiling import Process_pb2 as process_wire
from rover_plugin._generated.skywalking.ebpf.profiling import Process_pb2_grpc
from tests.support.oap import OapDouble, ServerTls
from tests.support.oap_certificates import Authority
from tests.support.oap_messages import connection, http, message, node
from tests.support.oap_process import OapProcess

if TYPE_CHECKING:
    from pathlib import Path


def batch(count: int = 3) -> list[object]:
    return [message("read", node=node(), connection=connection(), protocol=http()) for _ in range(count)]


def send(address: str, messages: object, **options: object) -> object:
    with grpc.insecure_channel(address) as channel:
        return accesslog_pb2_grpc.EBPFAccessLogServiceStub(channel).collect(iter(messages), timeout=20, **options)


def failure(address: str, **options: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        send(address, batch(), **options)
    return caught.value.code()


def test_accepted_logs_are_counted_and_the_reply_is_empty() -> None:
    with OapDouble() as oap:
        assert send(oap.address, batch()).ByteSize() == 0
        assert (oap.tally.kernel, oap.tally.protocol, oap.tally.in_count) == (3, 3, 6)
        assert (oap.tally.streams, oap.tally.completed, oap.messages_per_stream) == (1, 1, [3])
        assert oap.count("service", "protocol", entity=("shop.default",)) == 3
        assert oap.clean


def test_dropped_logs_are_answered_ok_all_the_same() -> None:
    with OapDouble() as oap:
        send(oap.address, [message("read", node=node(), connection=connection("a", "a"))])
        assert oap.tally.dropped == 1
        assert oap.drop_reasons == {"same service": 1}
        assert not oap.clean


def test_light_modes_count_the_same_and_store_nothing() -> None:
    for keep in ("checks", "counts"):
        with OapDouble(keep=keep) as oap:
            send(oap.address, batch())
            assert (oap.tally.kernel, oap.tally.protocol, oap.kernel_logs) == (3, 3, [])


def test_wrong_or_missing_token_is_permission_denied() -> None:
    with OapDouble(token="s3cret") as oap:
        assert failure(oap.address) is grpc.StatusCode.PERMISSION_DENIED
        assert failure(oap.address, metadata=[("authentication", "x")]) is grpc.StatusCode.PERMISSION_DENIED
        send(oap.address, batch(), metadata=[("authentication", "s3cret")])
        assert oap.tally.protocol == 3


def test_faults_end_streams_with_their_status() -> None:
    with OapDouble() as oap:
        oap.faults.watermark = True
        assert failure(oap.address) is grpc.StatusCode.RESOURCE_EXHAUSTED
        oap.faults.watermark = False
        oap.faults.unimplemented = True
        assert failure(oap.address) is grpc.StatusCode.UNIMPLEMENTED
        oap.faults.unimplemented = False
        oap.faults.reset_after = 2
        assert failure(oap.address) is grpc.StatusCode.UNAVAILABLE
        assert oap.tally.protocol == 2


def test_mutual_tls_refuses_clients_without_a_certificate() -> None:
    authority = Authority()
    server, client = authority.issue("localhost", "127.0.0.1"), authority.issue("agent")
    with OapDouble(tls=ServerTls(server.certificate, server.key, authority.pem)) as oap:
        for key, certificate, accepted in ((None, None, False), (client.key, client.certificate, True)):
            credentials = grpc.ssl_channel_credentials(authority.pem, key, certificate)
            with grpc.secure_channel(oap.address, credentials) as channel:
                stub = accesslog_pb2_grpc.EBPFAccessLogServiceStub(channel)
                if accepted:
                    stub.collect(iter(batch()), timeout=20)
                else:
                    with pytest.raises(grpc.RpcError):
                        stub.collect(iter(batch()), timeout=20)
        assert oap.tally.protocol == 3


def entity(layer: str = "OS_LINUX", name: str = "nginx") -> process_wire.EBPFProcessEntityMetadata:
    return process_wire.EBPFProcessEntityMetadata(
        layer=layer, serviceName="web", instanceName="host-1", processName=name, labels=["l"]
    )


def test_process_ids_are_sha256_of_name_and_instance_and_entries_without_metadata_are_skipped() -> None:
    with OapDouble() as oap, grpc.insecure_channel(oap.address) as channel:
        stub = Process_pb2_grpc.EBPFProcessServiceStub(channel)
        request = process_wire.EBPFProcessReportList(ebpfAgentID="agent")
        request.processes.add().hostProcess.entity.CopyFrom(entity())
        request.processes.add()
        reply = stub.reportProcesses(request, timeout=20)
        assert len(reply.processes) == 1
        # printf '%s' nginx_d2Vi.1_aG9zdC0x | sha256sum
        assert reply.processes[0].processId == "095b97b52aee5ca40284997a67ceb7fa90f9a2bc7d022fdd92870b44f5e5eef8"
        assert reply.processes[0].hostProcess.entityMetadata == entity()
        assert oap.processes.by_id[reply.processes[0].processId].detect_type == "VM"


def test_unknown_layer_fails_the_heartbeat_after_applying_what_came_before() -> None:
    with OapDouble() as oap, grpc.insecure_channel(oap.address) as channel:
        stub = Process_pb2_grpc.EBPFProcessServiceStub(channel)
        good = process_wire.EBPFProcessPingPkg(entityMetadata=entity())
        bad = process_wire.EBPFProcessPingPkg(entityMetadata=entity(layer="VM", name="other"))
        assert stub.keepAlive(process_wire.EBPFProcessPingPkgList(processes=[good]), timeout=20) == command.Commands()
        with pytest.raises(grpc.RpcError) as caught:
            stub.keepAlive(process_wire.EBPFProcessPingPkgList(processes=[good, bad, good]), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert oap.processes.services == {("OS_LINUX", "web")}
        assert len(oap.processes.by_id) == 1


def test_killed_and_restarted_process_keeps_port_and_counters(tmp_path: Path) -> None:
    with OapProcess(tmp_path) as oap:
        send(oap.address, batch())
        address = oap.address
        oap.kill()
        assert oap.tally.protocol == 3
        oap.start()
        assert oap.address == address
        send(address, batch())
        assert oap.stop()["protocol"] == 6
