# SPDX-License-Identifier: Apache-2.0
"""The backend is killed and comes back under load: memory stays bounded, losses are counted, logs flow again."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.agent import Agent, oap_settings, only_with
from tests.support.oap_process import OapProcess
from tests.support.servers import Nginx, tool

OUTAGE_S = int(os.environ.get("ROVER_TEST_OUTAGE_SECONDS", "30"))
FLUSH_S = 2
SPOOL = "2MB"


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.timeout(240)
def test_a_killed_backend_costs_only_what_is_counted(tmp_path: Path, nginx: Nginx) -> None:
    with OapProcess(tmp_path, "--keep", "counts") as oap:
        settings = (
            *oap_settings(oap.address),
            only_with(nginx.port),
            f"access_log.flush.period={FLUSH_S}s",
            f"access_log.spool.max_bytes={SPOOL}",
            "access_log.protocol_analyze.per_cpu_buffer=4MB",
        )
        with Agent(tmp_path, "skywalking", *settings) as agent:
            command = [tool("h2load"), "--h1", "--rps=100", "-c8", "-t1", f"-n{800 * (OUTAGE_S + 20)}", nginx.url()]
            load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            oap.wait_for(lambda: oap.tally.protocol > 1000)
            before = _rss(agent.pid)
            oap.kill()
            # The outage itself is the length of the test, not a wait for something.
            time.sleep(OUTAGE_S)
            grown = _rss(agent.pid) - before
            at_restart = oap.tally.protocol
            oap.start()
            began = time.monotonic()
            oap.wait_for(lambda: oap.tally.protocol > at_restart)
            flowing_after = time.monotonic() - began
            printed, _ = load.communicate(timeout=60)
            assert agent.stop() == 0, agent.text
        report = oap.stop()
    requests = int(re.search(r"(\d+) succeeded", printed)[1])  # type: ignore[index]
    totals = agent.wait_for_event("access_log_totals")
    exported = totals["skywalking_protocol_exported"]
    lost = {name: count for name, count in totals.items() if name.startswith("skywalking_protocol_lost")}
    print(f"requests {requests}, flowing after {flowing_after:.2f} s, grown {grown} bytes, {totals}, {report}")
    assert exported + sum(lost.values()) == 2 * requests
    # What the backend applied of a stream that was cut is counted as lost: it may have more, never less.
    unconfirmed = lost.get("skywalking_protocol_lost_send_unconfirmed", 0)
    assert exported <= report["protocol"] <= exported + unconfirmed
    assert lost.get("skywalking_protocol_lost_spool_full", 0) > 0, "the spool was to overflow"
    assert totals["imbalance"] == totals["held"] == totals["lost_ring"] == 0
    assert report["dropped"] == 0
    assert grown < 32 << 20
    assert flowing_after < 2 * FLUSH_S
