# SPDX-License-Identifier: Apache-2.0
"""Whatever floods one service, the log of the one beside it stays whole, and what is lost is counted."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.agent import ROOT, Agent
from tests.support.floods import KINDS
from tests.support.scrape import scrape, total

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.servers import Nginx

REQUESTS = 200
# From one request to the next: the flood is to last for all of them.
PACE_S = 0.01
LEAST_LOGGED = 0.95
# A connection takes as many; then the next one follows.
PER_CONNECTION = 25
DRAINED_S = 60


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.floods", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
            assert process.poll() is None, "it ended by itself"
        finally:
            process.kill()


class Log:
    """The lines of a jsonl file, each looked at once."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._read = 0

    def paths(self, prefix: bytes) -> Iterator[bytes]:
        """Lines with a path that begins so, of those written since the last time."""
        with self._agent.jsonl.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                if b'"path":"' + prefix in line.replace(b'": "', b'":"'):
                    yield line


def ask(nginx: Nginx, prefix: str) -> None:
    """REQUESTS of them, one after another."""
    for first in range(0, REQUESTS, PER_CONNECTION):
        with closing(http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)) as client:
            for number in range(first, first + PER_CONNECTION):
                client.request("GET", f"{prefix}{number}")
                client.getresponse().read()
                time.sleep(PACE_S)


@pytest.fixture(scope="module")
def sink() -> Iterator[int]:
    with running("sink") as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@pytest.mark.timeout(600)
def test_a_service_beside_each_flood_is_logged_and_every_loss_is_counted(
    tmp_path: Path, nginx: Nginx, sink: int
) -> None:
    settings = (f"process_discovery.local.include=port={nginx.port},port={sink}", "telemetry.listen=127.0.0.1:0")
    logged: dict[str, int] = {}
    with Agent(tmp_path, "jsonl", *settings) as agent:
        url = f"http://{agent.wait_for_event('telemetry_listening')['address']}"
        log = Log(agent)
        for place, kind in enumerate(KINDS):
            prefix = f"/beside/{place}/"
            with running(kind, str(sink)):
                ask(nginx, prefix)
            deadline = time.monotonic() + DRAINED_S
            logged[kind] = 0
            while logged[kind] < REQUESTS and time.monotonic() < deadline:
                drained = not total(scrape(url), "rover_ring_bytes")
                found = sum(1 for _ in log.paths(prefix.encode()))
                logged[kind] += found
                if drained and not found and logged[kind] >= LEAST_LOGGED * REQUESTS:
                    break
        values = scrape(url)
        assert agent.stop() == 0, "".join(agent.text)
    totals = agent.wait_for_event("access_log_totals")
    print(logged, totals)
    assert {kind: count for kind, count in logged.items() if count < LEAST_LOGGED * REQUESTS} == {}
    assert totals["imbalance"] == total(values, "rover_ledger_imbalance") == 0
    # The floods were more than was read, or this shows nothing.
    assert totals["lost_ring"] == totals["kernel_share"] + totals.get("kernel_ring_full", 0)
    assert totals["jsonl_kernel_lost_share"] == totals["kernel_share"] > 1000
