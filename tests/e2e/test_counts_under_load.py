# SPDX-License-Identifier: Apache-2.0
"""Every request a load generator counts is one access log at the backend, from each side, and nothing is dropped."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.agent import Agent, oap_settings, only_with
from tests.support.oap_process import OapProcess
from tests.support.servers import Nginx, tool

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = int(os.environ.get("ROVER_TEST_LOAD_SECONDS", "60"))
CLIENTS = 32
RATE = 5000


@pytest.mark.timeout(240)
def test_requests_at_a_fixed_rate_equal_the_logs_of_each_side(tmp_path: Path, nginx: Nginx) -> None:
    with OapProcess(tmp_path, "--keep", "counts") as oap:
        # Server, clients, agent and a double that costs more than all of them share the CPUs of a test machine, with
        # whatever else it does: room for a second, so that what is tested is the agent and not the scheduler.
        room = "access_log.protocol_analyze.per_cpu_buffer=4MB"
        settings = (*oap_settings(oap.address), "access_log.flush.period=1s", only_with(nginx.port), room)
        with Agent(tmp_path, "skywalking", *settings) as agent:
            load = [
                tool("h2load"),
                "--h1",
                f"--rps={RATE // CLIENTS}",
                f"-c{CLIENTS}",
                "-t1",
                # A number and not a duration: that would cut answers off, which the server has logged all the same.
                f"-n{SECONDS * RATE}",
                nginx.url(),
            ]
            printed = subprocess.run(load, capture_output=True, text=True, check=True).stdout
            requests = int(re.search(r"(\d+) succeeded", printed)[1])  # type: ignore[index]
            # The double may be behind: what is spooled is not to be lost to the haste of a shutdown.
            oap.wait_for(lambda: oap.tally.protocol >= 2 * requests, 90)
            assert agent.stop() == 0, agent.text
        report = oap.stop()
    totals = agent.wait_for_event("access_log_totals")
    print(f"requests {requests}, backend {report}, totals {totals}")
    assert requests == SECONDS * RATE, printed
    # h2load and nginx are both watched: each request is logged once by its client and once by its server.
    assert report["protocol"] == 2 * requests
    assert report["dropped"] == 0
    assert report["errors"] == 0
    assert report["refused"] == 0
    assert totals["skywalking_protocol_exported"] == report["protocol"]
    assert totals["skywalking_kernel_exported"] == report["kernel"]
    others = sum(count for name, count in totals.items() if name.startswith("skywalking_kernel_filtered"))
    assert totals["records"] == report["kernel"] + totals["bookkeeping"] + others
    assert totals["lost_ring"] == totals["held"] == totals["imbalance"] == 0
