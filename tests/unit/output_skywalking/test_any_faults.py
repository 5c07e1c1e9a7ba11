# SPDX-License-Identifier: Apache-2.0
"""Any order of faults of backend and disk, and of restarts: every log given is exported, kept or lost, exactly once."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from rover_plugin.access_log.outputs import skywalking
from rover_plugin.access_log.outputs.skywalking import SkyWalkingOutput
from rover_plugin.backend.backoff import Backoff
from rover_plugin.backend.caller import Patience
from rover_plugin.telemetry.counters import Counters
from tests.support.backend import settings, started_core
from tests.support.oap import OapDouble
from tests.support.oap_messages import http, kernel_log, message
from tests.unit.output_skywalking.test_delivery import resolved

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEPS = ("give", "give_much", "refuse", "reset", "silent", "well", "full", "freed", "restart")
SENT = message(protocol=http(start=1, end=10))
SENT.kernelLogs.extend(kernel_log(name, 1, 5) for name in ("read", "write"))


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k,mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skywalking, "Backoff", lambda: Backoff(0.01, 0.02))
    monkeypatch.setattr(skywalking, "REFUSED_S", 0.02)
    monkeypatch.setattr(skywalking, "PATIENCE", Patience(quiet=0.2, total=0.5, body=0.1))
    monkeypatch.setattr(skywalking, "FILE_BYTES", 20_000)


class Run:
    """An output after another, all with the same directory."""

    def __init__(self, oap: OapDouble, disk: Path) -> None:
        self.oap = oap
        self.disk = disk
        self.values: dict[str, object] = {
            "access_log__flush__max_count": 30,
            "access_log__spool__max_bytes": "64KB",
            "access_log__spool__directory": str(disk / "spool"),
            "core__backend__check_period": "50ms",
        }
        self.given = self.exported = self.lost = self.uncertain = self.kept = 0
        self.counters = Counters()
        self.start()

    def start(self) -> None:
        self.core = started_core(self.oap.address, **self.values)
        self.counters = Counters()
        self.output = SkyWalkingOutput(settings(**self.values), self.core.__enter__(), self.counters)
        assert self.output.standing().restored.protocol == self.kept

    def give(self, count: int) -> None:
        sent = self.output.connection_prefix(resolved()) + SENT.SerializeToString()
        for _ in range(count):
            self.output.write(sent, 2, 1)
        self.output._next_flush = 0
        self.output.tick()
        self.given += count

    def stop(self) -> None:
        self.output.close(0.3)
        self.kept = self.output.standing().kept.protocol
        for (counter, labels), value in self.counters.snapshot().items():
            if ("unit", "protocol") in labels:
                self.exported += value * (counter == "logs_exported")
                self.lost += value * (counter == "logs_lost")
                self.uncertain += value * (counter == "logs_lost" and _uncertain(dict(labels)["reason"]))
        self.core.__exit__(None, None, None)

    def step(self, name: str) -> None:
        faults = self.oap.faults
        if name == "give":
            self.give(20)
        elif name == "give_much":
            self.give(600)
        elif name == "well":
            faults.watermark, faults.reset_after = False, None
            faults.may_reply.set()
        elif name == "refuse":
            faults.watermark = True
        elif name == "reset":
            faults.reset_after = 7
        elif name == "silent":
            faults.may_reply.clear()
        elif name == "full":
            (self.disk / "filler").write_bytes(b"")
            with (self.disk / "filler").open("ab", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    return
        elif name == "freed":
            (self.disk / "filler").unlink(missing_ok=True)
        else:
            self.stop()
            self.start()


def _uncertain(reason: str) -> bool:
    # What is being sent when the agent ends is given up as well.
    return reason in {"send_unconfirmed", "shutdown"}


@pytest.mark.usefixtures("impatient")
@examples(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(STEPS), min_size=4, max_size=14))
def test_every_log_is_exported_kept_or_lost_once(small_disk: Path, steps: list[str]) -> None:
    with OapDouble(keep="counts") as oap:
        run = Run(oap, small_disk)
        try:
            for name in steps:
                run.step(name)
        finally:
            run.step("well")
            run.step("freed")
            run.stop()
            for file in (small_disk / "spool").iterdir():
                file.unlink()
        assert run.exported + run.lost + run.kept == run.given
        assert run.exported <= oap.tally.protocol <= run.exported + run.uncertain
