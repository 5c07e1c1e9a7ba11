# SPDX-License-Identifier: Apache-2.0
"""Hours in small: under churn of connections and processes memory stays flat, maps empty themselves, nothing is lost.

ROVER_TEST_SOAK_SECONDS sets how long: 120 unless set; 1800 is the full one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from statistics import linear_regression
from typing import TYPE_CHECKING

import psutil
import pytest

from rover_plugin.discovery.observer import GRACE_S
from tests.support.agent import ROOT, Agent
from tests.support.scrape import scrape, total

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.scrape import Values
    from tests.support.servers import Nginx

SECONDS = int(os.environ.get("ROVER_TEST_SOAK_SECONDS", "120"))
CONNECTIONS_A_SECOND = 200
PROCESSES_A_SECOND = 10
# Memory may grow by this much in the second half, all processes of the agent together. What still fills then has a
# bound: the process feed's history of 8192 changes takes minutes, and ended processes are listed for one. A leak of 200
# bytes a connection is 2.4 MB a minute.
MOST_GROWTH = 3 << 20
# What the rest of the host may have in the maps at any moment: new processes are watched until the feed judges them.
ELSEWHERE = 128
MAPS = ("connections", "policies", "processes", "threads")

pytestmark = pytest.mark.timeout(SECONDS + 300)


class LogCounter(threading.Thread):
    """Reads the agent's log from a pipe and counts what our own traffic made: by path and role, and by completeness."""

    def __init__(self, pipe: Path) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        with self._pipe.open("rb") as lines:
            for line in lines:
                if b'"path":"/soak/' in line:
                    item = json.loads(line)
                    self.counts[f"{item['path'].removeprefix('/soak/')} {item['role']}"] += 1
                    self.counts[item["completeness"]] += 1


def test_memory_and_maps_stay_flat_under_churn(tmp_path: Path, nginx: Nginx) -> None:
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    counter = LogCounter(pipe)
    counter.start()
    settings = (
        f"access_log.jsonl.path={pipe}",
        f"process_discovery.local.include=port={nginx.port},cmdline~=tests[.]support[.]churn.*\\b{nginx.port}\\b",
        "telemetry.listen=127.0.0.1:0",
    )
    with Agent(tmp_path, "jsonl", *settings) as agent:
        url = f"http://{agent.wait_for_event('telemetry_listening')['address']}"
        agent.wait_for_event("rover_started")
        processes = agent_processes(agent)
        at_first = maps(scrape(url))
        samples = soak(nginx.port, processes)
        at_last = settled_maps(url, at_first)
        values = scrape(url)
        assert agent.stop() == 0, "".join(agent.text)
    counter.join(30)
    totals = agent.wait_for_event("access_log_totals")

    growth = sum(print_memory(name, samples, name) for name in processes)
    print(f"maps at first {at_first}, at last {at_last}")
    print(f"requests {samples.answered}, logged {dict(counter.counts)}")
    cpu = {key[1]: value for key, value in values.items() if key[0] == "rover_process_cpu_seconds_total"}
    print(f"cpu seconds {cpu} in {SECONDS} s, totals {totals}")

    assert samples.answered["connection"] > SECONDS * CONNECTIONS_A_SECOND * 0.8, "the machine was too slow for this"
    assert totals["imbalance"] == 0
    assert "ledger_out_of_balance" not in "".join(agent.text)
    assert totals["lost_ring"] == totals.get("kernel_ring_full", 0) + totals.get("kernel_share", 0)
    for name in MAPS:
        assert at_last[name] <= at_first[name] + ELSEWHERE, name
    assert total(values, "rover_worker_held_calls") == 0
    assert total(values, "rover_hub_connections") <= ELSEWHERE
    if totals["lost_ring"] == 0:
        # Known fault, its cause not found yet: under this churn about one exchange in ten thousand is
        # `truncated` or has a line at one end only, beside records counted as `unknown_connection`.
        answered = 2 * (samples.answered["connection"] + samples.answered["process"])
        logged = sum(
            counter.counts[f"{kind} {role}"] for kind in ("connection", "process") for role in ("server", "client")
        )
        assert answered * 0.999 <= logged <= answered
        assert counter.counts["complete"] >= logged * 0.999
    assert growth < MOST_GROWTH


class Samples:
    """Resident bytes of each process over time, and how many requests were answered meanwhile."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.resident: dict[str, list[int]] = {}
        self.answered: dict[str, int] = {}


def agent_processes(agent: Agent) -> dict[str, psutil.Process]:
    main = psutil.Process(agent.pid)
    children = [child for child in main.children() if "rover_plugin.access_log.worker" in child.cmdline()]
    return {"main": main} | {f"worker-{number}": child for number, child in enumerate(children)}


def soak(port: int, processes: dict[str, psutil.Process]) -> Samples:
    """Churns for SECONDS, looking at memory all the while: the length is the test, not a wait for something."""
    samples = Samples()
    command = [
        sys.executable,
        "-m",
        "tests.support.churn",
        str(port),
        str(CONNECTIONS_A_SECOND),
        str(PROCESSES_A_SECOND),
    ]
    churn = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < SECONDS:
        samples.times.append(elapsed)
        for name, process in processes.items():
            samples.resident.setdefault(name, []).append(process.memory_info().rss)
        time.sleep(max(1.0, SECONDS / 300))
        assert churn.poll() is None
    printed, _ = churn.communicate("", timeout=60)
    samples.answered = json.loads(printed)
    return samples


def maps(values: Values) -> dict[str, int]:
    return {name: int(values["rover_bpf_map_entries", name]) for name in MAPS}


def settled_maps(url: str, at_first: dict[str, int]) -> dict[str, int]:
    """The maps' entries once they are back and everything held is out, or as they are long after they should be."""
    deadline = time.monotonic() + GRACE_S + 30
    while True:
        values = scrape(url)
        now = maps(values)
        back = all(now[name] <= at_first[name] + ELSEWHERE for name in MAPS)
        if (back and not total(values, "rover_worker_held_calls")) or time.monotonic() > deadline:
            return now
        time.sleep(0.5)


def print_memory(name: str, samples: Samples, process: str) -> float:
    """Prints a process's memory; returns what the fit over the second half says it grew by in that time."""
    half = len(samples.times) // 2
    times, resident = samples.times[half:], samples.resident[process][half:]
    slope = linear_regression(times, resident).slope
    growth = slope * (times[-1] - times[0])
    megabytes = [value / 2**20 for value in samples.resident[process]]
    print(
        f"{name}: RSS {megabytes[0]:.1f} MB at first, {megabytes[half]:.1f} at half, {megabytes[-1]:.1f} at last; "
        f"second half {slope:+.0f} B/s, {growth / 2**20:+.2f} MB"
    )
    return growth
