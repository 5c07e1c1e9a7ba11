# SPDX-License-Identifier: Apache-2.0
"""A backend slower than what is produced, that also goes away in the middle: every log is exported, kept or counted.

Of what fails midway little is uncertain, and what is kept on the disk is delivered by the next run of the agent.
`ROVER_TEST_SLOW_SECONDS` makes it longer.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from rover_plugin.access_log.outputs.skywalking_pace import FIRST_MESSAGES
from tests.support.agent import Agent, oap_settings, only_with
from tests.support.oap_process import OapProcess
from tests.support.servers import Nginx, tool

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = int(os.environ.get("ROVER_TEST_SLOW_SECONDS", "12"))
REQUESTS_PER_SECOND = 200
# The kill of the backend, and the end of the agent, which waits 10 s for a backend that has more than that to do.
FAULTS = 2


def lost(totals: dict[str, Any]) -> dict[str, int]:
    prefix = "skywalking_protocol_lost_"
    return {name.removeprefix(prefix): count for name, count in totals.items() if name.startswith(prefix)}


@pytest.mark.timeout(240 + 4 * SECONDS)
@pytest.mark.parametrize("logs_per_second", [75, 375, 2000])
def test_nothing_is_lost_unsaid(tmp_path: Path, nginx: Nginx, logs_per_second: int) -> None:
    produced = f"-n{REQUESTS_PER_SECOND * SECONDS}"
    command = [tool("h2load"), "--h1", f"--rps={REQUESTS_PER_SECOND // 8}", "-c8", "-t1", produced, nginx.url()]
    with OapProcess(tmp_path, "--keep", "counts", "--logs-per-second", str(logs_per_second)) as oap:
        settings = (
            *oap_settings(oap.address),
            only_with(nginx.port),
            "access_log.flush.period=1s",
            "access_log.spool.max_bytes=256KB",
            f"access_log.spool.directory={tmp_path}/spool",
            "access_log.protocol_analyze.per_cpu_buffer=4MB",
        )
        with Agent(tmp_path, "skywalking", *settings) as agent:
            load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            oap.wait_for(lambda: oap.tally.protocol > 200)
            oap.kill()
            # The outage itself is the length of the test, not a wait for something.
            time.sleep(SECONDS / 4)
            at_restart = oap.tally.protocol
            oap.start()
            oap.wait_for(lambda: oap.tally.protocol > at_restart)
            printed, _ = load.communicate(timeout=60 + 2 * SECONDS)
            assert agent.stop() == 0, agent.text
        first = agent.wait_for_event("access_log_totals")
        oap.stop()

        oap.arguments = ("--keep", "counts")
        oap.start()
        kept = first.get("skywalking_protocol_kept_on_disk", 0)
        before = oap.tally.protocol
        with Agent(tmp_path, "skywalking", *settings) as agent:
            oap.wait_for(lambda: oap.tally.protocol >= before + kept, 60)
            assert agent.stop() == 0, agent.text
        second = agent.wait_for_event("access_log_totals")
        report = oap.stop()
    requests = int(re.search(r"(\d+) succeeded", printed)[1])  # type: ignore[index]
    print(f"{logs_per_second} logs/s, {requests} requests, kept {kept}, {lost(first)}, {first}, {second}, {report}")
    assert first["skywalking_protocol_exported"] + kept + sum(lost(first).values()) == 2 * requests
    assert first["imbalance"] == first["lost_ring"] == second["imbalance"] == 0
    assert lost(first).keys() <= {"send_unconfirmed", "shutdown"}
    uncertain = sum(lost(first).values())
    assert uncertain <= FAULTS * FIRST_MESSAGES
    assert second["skywalking_protocol_exported"] == kept
    assert sum(lost(second).values()) == second.get("skywalking_protocol_kept_on_disk", 0) == 0
    exported = 2 * requests - uncertain
    assert exported <= report["protocol"] <= exported + uncertain
    assert report["dropped"] == 0
