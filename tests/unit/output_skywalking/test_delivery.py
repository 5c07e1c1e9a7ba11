# SPDX-License-Identifier: Apache-2.0
"""Every log ends as exported, lost or filtered, exactly once, whatever the backend does (oap-contract K.1-K.9)."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rover_plugin.access_log.model import Endpoint, ResolvedConnection, Role
from rover_plugin.access_log.outputs import skywalking, skywalking_pace
from rover_plugin.access_log.outputs.skywalking import SkyWalkingOutput
from rover_plugin.backend.backoff import Backoff
from rover_plugin.backend.caller import Patience
from rover_plugin.discovery.model import Entity
from rover_plugin.telemetry.counters import Counters
from tests.support.backend import settings, started_core
from tests.support.oap import OapDouble
from tests.support.oap_messages import http, kernel_log, message
from tests.support.oap_process import OapProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire

UNITS = ("kernel", "protocol")
SHOP = Entity("OS_LINUX", "shop", "web-1", "nginx")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries within a tenth of a second."""
    monkeypatch.setattr(skywalking, "Backoff", lambda: Backoff(0.05, 0.1))
    monkeypatch.setattr(skywalking, "REFUSED_S", 0.1)


def resolved(remote: Entity | None = None, port: int = 40000) -> ResolvedConnection:
    ends = Endpoint("10.0.0.1", 80, SHOP, 1), Endpoint("10.0.0.2", port, remote)
    return ResolvedConnection(port, 1, *ends, Role.SERVER, tls=False)


def fragment(*operations: str, exchange: bool = True) -> bytes:
    now = time.monotonic_ns()
    sent: wire.EBPFAccessLogMessage = message(protocol=http(start=now, end=now + 10) if exchange else None)
    sent.kernelLogs.extend(kernel_log(operation, now, now + 5) for operation in operations)
    return sent.SerializeToString()


class Subject:
    """An output with its counters, and what it was given."""

    def __init__(self, output: SkyWalkingOutput, counters: Counters) -> None:
        self.output = output
        self.counters = counters
        self.given = dict.fromkeys(UNITS, 0)

    def give(self, count: int = 1, remote: Entity | None = None, *, flush: bool = False) -> None:
        prefix = self.output.connection_prefix(resolved(remote))
        sent = prefix + fragment("read", "write")
        for _ in range(count):
            self.output.write(sent, 2, 1)
        self.given["kernel"] += 2 * count
        self.given["protocol"] += count
        if flush:
            self.output._next_flush = 0
            self.output.tick()

    def counted(self, name: str, unit: str, reason: str | None = None) -> int:
        return sum(
            value
            for (counter, labels), value in self.counters.snapshot().items()
            if counter == name
            and ("output", "skywalking") in labels
            and ("unit", unit) in labels
            and (reason is None or ("reason", reason) in labels)
        )

    def exported(self, unit: str = "protocol") -> int:
        return self.counted("logs_exported", unit)

    def open(self) -> int:
        """Exchanges given and not yet accounted for."""
        return self.given["protocol"] - self.exported() - self.lost()

    def lost(self, unit: str = "protocol", reason: str | None = None) -> int:
        return self.counted("logs_lost", unit, reason)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Counters tell nobody that they change, so they are asked."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.counters.snapshot()
            time.sleep(0.01)

    def assert_balanced(self) -> None:
        for unit in UNITS:
            filtered = self.counted("logs_filtered", unit)
            assert self.given[unit] == self.exported(unit) + self.lost(unit) + filtered, self.counters.snapshot()


@contextmanager
def output_to(address: str, **values: object) -> Iterator[Subject]:
    """An output that is closed, and whose books are checked, at the end."""
    values = {"access_log__flush__max_count": 30, "core__backend__check_period": "50ms"} | values
    with started_core(address, **values) as core:
        counters = Counters()
        subject = Subject(SkyWalkingOutput(settings(**values), core, counters), counters)
        try:
            yield subject
        finally:
            subject.output.close(20)
            subject.assert_balanced()


def test_everything_arrives_with_node_first_and_connection_in_every_message() -> None:
    with OapDouble() as oap:
        with output_to(oap.address) as subject:
            subject.give(100)
        assert (subject.exported("kernel"), subject.exported("protocol")) == (200, 100)
        assert (oap.tally.kernel, oap.tally.protocol) == (200, 100)
        assert oap.clean, oap.report()
        assert len(oap.nodes) == oap.tally.streams
        assert all(log.connection.local.service == "shop" for log in oap.protocol_logs)


def test_times_at_the_oap_are_wall_clock_times_to_the_second() -> None:
    with OapDouble() as oap:
        before = time.time()
        with output_to(oap.address) as subject:
            subject.give()
        (exchange,) = oap.protocol_logs
        assert before - 0.6 <= exchange.start_ns / 1e9 <= time.time() + 0.6


def test_batch_is_sent_when_it_holds_max_count_logs_and_not_before() -> None:
    with OapDouble() as oap, output_to(oap.address, access_log__flush__period="1h") as subject:
        subject.give(9)
        subject.output.tick()
        assert subject.output._parcel.messages == 9
        subject.give(1)
        oap.wait_for(lambda: oap.tally.protocol == 10)


def test_batch_is_sent_when_the_period_has_passed() -> None:
    with OapDouble() as oap, output_to(oap.address) as subject:
        subject.give(1, flush=True)
        oap.wait_for(lambda: oap.tally.protocol == 1)


def test_waiting_parcels_share_a_call_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skywalking_pace, "FIRST_MESSAGES", 20)
    monkeypatch.setattr(skywalking_pace, "MOST_MESSAGES", 40)
    with OapDouble() as oap:
        oap.faults.may_reply.clear()
        with output_to(oap.address) as subject:
            subject.give(10)
            oap.wait_for(lambda: oap.tally.messages == 10)
            subject.give(100)
            oap.faults.may_reply.set()
        assert oap.messages_per_stream == [10, 40, 40, 20]


def test_same_service_at_both_ends_is_filtered_not_sent() -> None:
    with OapDouble() as oap:
        with output_to(oap.address) as subject:
            subject.give(5, remote=SHOP)
            subject.give(5)
        assert subject.counted("logs_filtered", "kernel", "same_service") == 10
        assert subject.counted("logs_filtered", "protocol", "same_service") == 5
        assert oap.tally.protocol == 5
        assert oap.clean


def test_message_beyond_a_megabyte_is_lost_and_counted() -> None:
    with OapDouble() as oap:
        with output_to(oap.address) as subject:
            subject.output.write(subject.output.connection_prefix(resolved()) + bytes(1 << 20), 7, 1)
            subject.given = {"kernel": 7, "protocol": 1}
        assert subject.lost("kernel", "message_too_large") == 7
        assert oap.tally.messages == 0


def test_message_without_logs_is_not_sent() -> None:
    with OapDouble() as oap:
        with output_to(oap.address) as subject:
            subject.output.write(subject.output.connection_prefix(resolved()), 0, 0)
        assert oap.tally.messages == 0


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_logs_wait_for_a_backend_that_comes_later() -> None:
    port = closed_port()
    with output_to(f"127.0.0.1:{port}") as subject:
        subject.give(100)
        with OapDouble(port=port) as oap:
            subject.wait_until(lambda: subject.exported() == 100)
            assert oap.clean, oap.report()
    assert subject.lost() == 0


def test_spool_keeps_the_newest_and_counts_what_it_drops() -> None:
    port = closed_port()
    with output_to(f"127.0.0.1:{port}", access_log__spool__max_bytes="64KB") as subject:
        subject.give(5000)
        assert subject.output._held_bytes <= 65536
        lost = subject.lost(reason="spool_full")
        assert lost > 4000
        with OapDouble(port=port) as oap:
            subject.wait_until(lambda: subject.exported() == 5000 - lost)
            assert oap.tally.protocol == 5000 - lost
    assert subject.lost() == lost


def test_closing_with_no_backend_is_quick_and_counts_all_as_shutdown() -> None:
    began = time.monotonic()
    with output_to(f"127.0.0.1:{closed_port()}") as subject:
        subject.give(100)
    assert time.monotonic() - began < 10
    assert subject.lost(reason="shutdown") == 100


def test_closing_on_a_backend_that_does_not_answer_ends_at_the_deadline() -> None:
    with OapDouble() as oap:
        oap.faults.may_reply.clear()
        with output_to(oap.address) as subject:
            subject.give(100)
            oap.wait_for(lambda: oap.tally.messages >= 10)
            subject.output.close(0.2)
            subject.assert_balanced()
            assert subject.exported() == 0
        assert subject.lost() == 100


@pytest.mark.parametrize("fault", ["unimplemented", "token"])
def test_refusals_lose_nothing_while_the_spool_has_room(fault: str) -> None:
    with OapDouble(token="t") as oap:
        oap.faults.unimplemented = fault == "unimplemented"
        with output_to(
            oap.address, core__backend__authentication="t" if fault == "unimplemented" else "bad"
        ) as subject:
            subject.give(100)
            oap.wait_for(lambda: oap.tally.refused >= 2)
            oap.faults.unimplemented = False
            oap._token = None
            subject.wait_until(lambda: subject.exported() == 100)
        assert (subject.exported(), subject.lost(), oap.tally.protocol) == (100, 0, 100)
        assert oap.clean


def test_circuit_breaker_costs_the_call_that_met_it_and_no_later_one() -> None:
    with OapDouble() as oap:
        oap.faults.watermark = True
        with output_to(oap.address) as subject:
            subject.give(10)
            subject.wait_until(lambda: subject.lost(reason="send_unconfirmed") == 10)
            subject.give(90)
            oap.wait_for(lambda: oap.tally.refused >= 3)
            oap.faults.watermark = False
            subject.wait_until(lambda: subject.exported() == 90)
        assert (subject.lost(), oap.tally.protocol) == (10, 90)
        assert oap.clean


def test_stream_cut_midway_is_never_sent_again() -> None:
    with OapDouble() as oap:
        with output_to(oap.address) as subject:
            oap.faults.reset_after = 5
            subject.give(10)
            subject.wait_until(lambda: subject.lost() == 10)
            oap.faults.reset_after = None
            subject.give(50)
            subject.wait_until(lambda: subject.exported() == 50)
        assert subject.lost(reason="send_unconfirmed") == 10
        assert oap.tally.protocol == 55


def test_backend_that_takes_no_more_gets_smaller_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skywalking, "PATIENCE", Patience(quiet=0.5, total=2))
    with OapDouble() as oap:
        oap.faults.may_reply.clear()
        with output_to(oap.address) as subject:
            subject.give(10)
            subject.wait_until(lambda: subject.lost(reason="send_unconfirmed") == 10)
            assert subject.output._pace.messages == skywalking_pace.FIRST_MESSAGES // 2
            oap.faults.may_reply.set()
            subject.give(10)
            subject.wait_until(lambda: subject.exported() == 10)
        assert oap.tally.protocol == 20


@pytest.mark.parametrize("logs_a_second", [75, 375, 2000])
def test_slow_backend_loses_nothing_that_it_takes_and_little_that_it_does_not(
    logs_a_second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The times of the product, ten times faster: a backend that takes 750 logs a second for one that takes 75.
    monkeypatch.setattr(skywalking, "PATIENCE", Patience(quiet=2, total=12, body=1))
    monkeypatch.setattr(skywalking_pace, "_SLOW_S", 0.3)
    monkeypatch.setattr(skywalking_pace, "_FAST_S", 0.1)
    with OapDouble(keep="counts", window=4096) as oap:
        oap.faults.delay_s = 3 / (10 * logs_a_second)
        oap.faults.may_read.clear()
        with output_to(oap.address, access_log__flush__max_count=2000, access_log__spool__max_bytes="8MB") as subject:
            subject.give(1000, flush=True)
            oap.faults.may_read.set()
            subject.wait_until(lambda: subject.exported() >= 600)
            oap.faults.delay_s = 0
            subject.wait_until(lambda: subject.open() == 0)
        assert subject.lost() == 0
        assert oap.tally.protocol == 1000


def test_call_whose_body_takes_too_long_is_closed_and_what_was_sent_is_answered_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(skywalking, "PATIENCE", Patience(quiet=20, total=120, body=0.2))
    monkeypatch.setattr(skywalking, "PARCEL_MESSAGES", 8)
    with OapDouble(keep="counts", window=1024) as oap:
        oap.faults.delay_s = 0.01
        with output_to(oap.address, access_log__flush__max_count=600) as subject:
            subject.give(200, flush=True)
            subject.wait_until(lambda: subject.exported() == 200)
        assert oap.tally.streams > 1
        assert (subject.lost(), oap.tally.protocol) == (0, 200)


def test_backend_killed_and_restarted_under_load_loses_only_what_it_counts(tmp_path: Path) -> None:
    with OapProcess(tmp_path, "--keep", "checks") as oap:
        with output_to(oap.address, access_log__flush__max_count=300) as subject:
            for _ in range(3):
                target = subject.exported() + 2000
                while subject.exported() < target:
                    subject.give(500)
                    subject.wait_until(lambda: subject.open() < 3000)
                oap.kill()
                subject.give(500)
                oap.start()
            subject.give(500, flush=True)
        assert subject.lost() == subject.lost(reason="send_unconfirmed")
        for unit in UNITS:
            applied = getattr(oap.tally, unit)
            assert subject.exported(unit) <= applied <= subject.exported(unit) + subject.lost(unit)
        assert (oap.tally.dropped, oap.tally.errors, oap.tally.anomalies) == (0, 0, 0)


def test_backend_stopped_between_calls_and_restarted_loses_nothing(tmp_path: Path) -> None:
    with OapProcess(tmp_path) as oap:
        with output_to(oap.address) as subject:
            for round_number in range(1, 4):
                subject.give(100, flush=True)
                subject.wait_until(lambda wanted=round_number: subject.exported() == 100 * wanted)
                oap.kill()
                oap.start()
        assert (subject.exported(), subject.lost(), oap.tally.protocol) == (300, 0, 300)


def test_losses_are_logged_in_one_line_with_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with output_to(f"127.0.0.1:{closed_port()}", access_log__spool__max_bytes="64KB") as subject:
        subject.give(5000)
    lines = [line for line in capsys.readouterr().out.splitlines() if "logs_lost" in line]
    assert 1 <= len(lines) <= 3
    assert "shutdown=" in lines[-1]
