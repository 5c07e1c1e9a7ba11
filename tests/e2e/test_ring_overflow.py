# SPDX-License-Identifier: Apache-2.0
"""A ring that overflows: what is lost is known to the record, hits only those who spoke meanwhile, and passes."""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections import Counter
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import psutil

from rover_plugin.capture.bpf import possible_cpus
from tests.support.agent import Agent
from tests.support.scrape import scrape, total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.support.servers import Nginx

LOUD = QUIET = 6  # connections of each kind; neighbours land in different shards
BURST = 1500  # exchanges of each loud connection while nobody reads: some MB, for rings of 64 KB
AFTER = 5


class Client:
    """One keep-alive connection to nginx, known by its port."""

    def __init__(self, nginx: Nginx) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
        self._connection.connect()
        self.port: int = self._connection.sock.getsockname()[1]

    def get(self, path: str) -> None:
        self._connection.request("GET", path)
        assert self._connection.getresponse().read() == b"hello\n"

    def close(self) -> None:
        self._connection.close()


def workers(agent: Agent) -> list[int]:
    """Process ids of the agent's workers."""
    children = psutil.Process(agent.pid).children()
    return [child.pid for child in children if "rover_plugin.access_log.worker" in child.cmdline()]


def wait_until(url: str, true: Callable[[dict[tuple[str, ...], float]], bool]) -> dict[tuple[str, ...], float]:
    """A scrape of which it is true; workers report once a second."""
    deadline = time.monotonic() + 60
    while True:
        values = scrape(url)
        if true(values):
            return values
        assert time.monotonic() < deadline, values
        time.sleep(0.1)


def by_client(items: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for item in items:
        found.setdefault(item["remote"]["port"], []).append(item)
    return found


def test_what_an_overflowing_ring_loses_is_counted_and_stays_where_it_happened(tmp_path: Path, nginx: Nginx) -> None:
    settings = (
        f"process_discovery.local.include=port={nginx.port}",
        f"access_log.protocol_analyze.per_cpu_buffer={max(4096, (128 << 10) // possible_cpus())}",
        "telemetry.listen=127.0.0.1:0",
    )
    with Agent(tmp_path, "jsonl", *settings) as agent, ExitStack() as stack:
        url = f"http://{agent.wait_for_event('telemetry_listening')['address']}"
        loud = [stack.enter_context(closing(Client(nginx))) for _ in range(LOUD)]
        quiet = [stack.enter_context(closing(Client(nginx))) for _ in range(QUIET)]
        for client in (*loud, *quiet):
            client.get("/before")
        agent.wait_for_exchanges(lambda item: item["path"] == "/before", LOUD + QUIET)
        before = wait_until(url, lambda found: total(found, "rover_ledger_exported_total", "protocol") >= LOUD + QUIET)

        stopped = workers(agent)
        assert len(stopped) == 2
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(BURST):
                for client in loud:
                    client.get(f"/burst/{number}")
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

        def drained(found: dict[tuple[str, ...], float]) -> bool:
            each = [("rover_worker_records_total", shard) for shard in ("0", "1")]
            return all(found[key] > before[key] for key in each) and not total(found, "rover_ring_bytes")

        wait_until(url, drained)
        for number in range(AFTER):
            for client in (*loud, *quiet):
                client.get(f"/after/{number}")
        agent.wait_for_exchanges(lambda item: item["path"] == f"/after/{AFTER - 1}", LOUD + QUIET)
        for client in (*loud, *quiet):
            client.close()
        values = wait_until(url, lambda found: not total(found, "rover_worker_connections"))
        assert agent.stop() == 0, "".join(agent.text)
    totals = agent.wait_for_event("access_log_totals")
    print(totals)
    items = by_client(item for item in agent.items() if item["local"]["port"] == nginx.port)

    # The ledger: every record the kernel made was read, or is lost and known to be.
    assert totals["imbalance"] == 0
    assert total(values, "rover_ledger_imbalance") == total(values, "rover_ledger_worker_imbalance") == 0
    assert "ledger_out_of_balance" not in "".join(agent.text)
    assert totals["lost_ring"] == totals.get("kernel_ring_full", 0) + totals["kernel_share"] > LOUD * BURST
    assert totals["jsonl_kernel_lost_share"] == totals["kernel_share"]
    assert 0 < total(values, "rover_worker_lost_records_total") <= totals["lost_ring"]
    # Lost records leave gaps of a known size: each request and each response of the burst that is not logged.
    assert total(values, "rover_worker_gap_bytes_total") > LOUD * BURST * 100

    for client in quiet:
        exchanges = [item for item in items[client.port] if item["kind"] == "exchange"]
        assert [item["path"] for item in exchanges] == ["/before", *(f"/after/{number}" for number in range(AFTER))]
        assert {item["completeness"] for item in exchanges} == {"complete"}
        calls = Counter(call["call"] for item in exchanges for call in item["calls"])
        assert sum(calls.values()) == 2 * len(exchanges)
        alone = Counter(item["call"] for item in items[client.port] if item["kind"] == "call")
        assert (alone["accept"], alone["close"]) == (1, 1), alone
    for client in loud:
        exchanges = [item for item in items[client.port] if item["kind"] == "exchange"]
        resumed = [item for item in exchanges if (item["path"] or "").startswith("/after")]
        assert [item["path"] for item in resumed] == [f"/after/{number}" for number in range(AFTER)]
        assert {item["completeness"] for item in resumed} == {"complete"}, [item["completeness"] for item in resumed]
