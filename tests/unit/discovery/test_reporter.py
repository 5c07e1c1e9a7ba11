# SPDX-License-Identifier: Apache-2.0
"""Reports and heartbeats, against the double of the OAP."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rover_plugin._generated.skywalking.ebpf.profiling import Process_pb2
from rover_plugin.discovery import reporter as reporter_module
from rover_plugin.discovery.model import Entity, Process, ProcessKey
from rover_plugin.discovery.reporter import ProcessReporter, encode_entity, host_ip, process_id
from rover_plugin.discovery.table import ProcessTable
from rover_plugin.telemetry.counters import Counters
from tests.support.backend import started_core
from tests.support.oap import OapDouble
from tests.support.oap_processes import process_id as oap_process_id

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB = Entity("OS_LINUX", "web", "host-1", "nginx", ("edge", "public"))


def process(pid: int, *entities: Entity, **facts: object) -> Process:
    return replace(Process(ProcessKey(pid, pid), cmdline=("nginx", "-g", "x"), entities=entities), **facts)


@contextmanager
def reporting(address: str, **options: object) -> Iterator[tuple[ProcessReporter, ProcessTable, Counters]]:
    table, counters = ProcessTable(), Counters()
    settings = {"period_s": 0.05, "full_every": 3, **options}
    with started_core(address) as core:
        reporter = ProcessReporter(table, core.open_caller("reports"), "agent-1", counters, **settings)
        yield reporter, table, counters
        reporter.stop()


@pytest.fixture
def oap() -> Iterator[OapDouble]:
    with OapDouble() as double:
        yield double


def test_an_entity_is_stored_with_its_properties_and_becomes_visible_with_its_layer(oap: OapDouble) -> None:
    with reporting(oap.address) as (reporter, table, counters):
        table.update([process(7, WEB, container_id="c" * 64)])
        reporter.beat()
        row = oap.processes.by_id[process_id(WEB)]
        assert (row.detect_type, row.layer, row.pid, row.agent) == ("VM", "OS_LINUX", 7, "agent-1")
        assert row.labels == ("edge", "public")
        assert row.properties["command_line"] == "nginx -g x"
        assert row.properties["pid"] == "7"
        assert row.properties["container_id"] == "c" * 64
        assert not row.profiling_eligible
        assert oap.processes.instances == {("OS_LINUX", "web", "host-1")}
        assert counters.snapshot() == {}


def test_known_entities_are_kept_alive_and_fully_reported_every_so_many_beats(oap: OapDouble) -> None:
    with reporting(oap.address) as (reporter, table, _):
        table.update([process(7, WEB)])
        for _ in range(4):  # beats 0 and 3 are full
            reporter.beat()
        assert (oap.processes.reports, oap.processes.pings) == (2, 4)


def test_a_new_process_is_reported_with_the_next_beat(oap: OapDouble) -> None:
    with reporting(oap.address) as (reporter, table, _):
        reporter.beat()
        table.update([process(7, WEB)])
        reporter.beat()
        assert len(oap.processes.by_id) == 1


def test_workers_of_one_server_are_one_process_with_the_oldest_pid(oap: OapDouble) -> None:
    with reporting(oap.address) as (reporter, table, _):
        table.update([process(9, WEB), process(8, WEB), process(3, WEB, exited=True), process(4)])
        reporter.beat()
        assert [row.pid for row in oap.processes.by_id.values()] == [8]


def test_an_entity_without_living_process_is_no_longer_kept_alive(oap: OapDouble) -> None:
    with reporting(oap.address) as (reporter, table, _):
        table.update([process(7, WEB)])
        reporter.beat()
        table.update([process(7, WEB, exited=True)])
        reporter.beat()
        assert oap.processes.pings == 1


def test_a_layer_the_oap_does_not_know_is_not_sent(oap: OapDouble) -> None:
    with reporting(oap.address) as (reporter, table, counters):
        table.update([process(7, replace(WEB, layer="OS_TEMPLE"), WEB)])
        reporter.beat()
        assert {row.layer for row in oap.processes.by_id.values()} == {"OS_LINUX"}
        assert counters.snapshot() == {}


def test_many_entities_travel_in_several_calls(oap: OapDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "BATCH", 2)
    with reporting(oap.address) as (reporter, table, _):
        table.update(process(pid, replace(WEB, service=f"s{pid}")) for pid in range(1, 6))
        reporter.beat()
        assert (oap.processes.reports, oap.processes.pings, len(oap.processes.by_id)) == (3, 3, 5)


def test_what_the_oap_does_not_answer_for_is_reported_again(oap: OapDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oap.processes, "report", _no_reply)
    with reporting(oap.address, full_every=1000) as (reporter, table, counters):
        table.update([process(7, WEB)])
        for _ in range(3):
            reporter.beat()
        assert oap.calls["_no_reply"] == 3
        assert oap.calls["ping"] == 0
        assert counters.value("process_reports_unanswered") == 3


def test_an_unexpected_process_id_is_counted(oap: OapDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.oap_processes.process_id", lambda entity: f"id of {entity.processName}")
    with reporting(oap.address, full_every=1) as (reporter, table, counters):
        table.update([process(7, WEB)])
        reporter.beat()
        reporter.beat()
        assert counters.value("process_ids_unexpected") == 2


def test_the_process_id_is_the_oaps_for_any_name() -> None:
    odd = Entity("OS_LINUX", "größe::a.b", "host/1", "nginx: worker", ())
    assert process_id(odd) == oap_process_id(encode_entity(odd))


def test_a_backend_that_is_away_is_counted_and_met_again(oap: OapDouble) -> None:
    oap.faults.watermark = True
    with reporting(oap.address) as (reporter, table, counters):
        table.update([process(7, WEB)])
        reporter.beat()
        reporter.beat()
        assert counters.value("process_reports_failed", code="RESOURCE_EXHAUSTED") == 2
        oap.faults.watermark = False
        reporter.beat()
        assert process_id(WEB) in oap.processes.by_id


def test_the_thread_beats_until_it_is_stopped(oap: OapDouble) -> None:
    with reporting(oap.address) as (reporter, table, _):
        table.update([process(7, WEB)])
        reporter.start()
        oap.wait_for(lambda: oap.processes.pings >= 3)
        reporter.stop()
        calls = oap.calls.total()
    assert oap.calls.total() == calls


def test_a_stopped_reporter_gives_up_a_running_call_and_counts_no_failure() -> None:
    table, counters = ProcessTable(), Counters()
    table.update([process(7, WEB)])
    with socket.create_server(("127.0.0.1", 0)) as silent, started_core(f"127.0.0.1:{silent.getsockname()[1]}") as core:
        reporter = ProcessReporter(table, core.open_caller("reports"), "agent-1", counters, period_s=1, full_every=1)
        reporter.start()
        peer, _ = silent.accept()  # dropped, it would be closed
        with peer:
            reporter.stop()
            assert not reporter._thread.is_alive()
    assert counters.snapshot() == {}


def test_the_reported_address_is_not_a_loopback_one() -> None:
    address = host_ip()
    assert not address or not ipaddress.ip_address(address).is_loopback


def test_a_host_without_any_route_reports_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unroutable(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError(101, "Network is unreachable", address)

    monkeypatch.setattr(socket, "socket", Unroutable)
    assert host_ip() == ""


def _no_reply(_request: Process_pb2.EBPFProcessReportList) -> Process_pb2.EBPFReportProcessDownstream:
    return Process_pb2.EBPFReportProcessDownstream()
