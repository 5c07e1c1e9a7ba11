# SPDX-License-Identifier: Apache-2.0
"""The endpoint of a running agent says what really happened: known traffic, health, and the cost of the probes."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import psutil

from tests.support.agent import Agent
from tests.support.scrape import get, scrape, total
from tests.support.servers import free_port, tool

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.scrape import Values
    from tests.support.servers import Nginx

REQUESTS = 50
_LISTEN = "telemetry.listen=127.0.0.1:0"


def telemetry_url(agent: Agent) -> str:
    return f"http://{agent.wait_for_event('telemetry_listening')['address']}"


def settled(url: str, exported: int) -> Values:
    """A scrape that has at least so many exported exchanges; workers report once a second."""
    deadline = time.monotonic() + 20
    while True:
        values = scrape(url)
        if total(values, "rover_ledger_exported_total", "jsonl", "protocol") >= exported:
            return values
        assert time.monotonic() < deadline, values
        time.sleep(0.1)


def adds_up(values: Values, unit: str) -> bool:
    """The ledger's equation."""

    def sums(*names: str) -> float:
        return sum(total(values, f"rover_ledger_{name}", "jsonl", unit) for name in names)

    terms = ("bookkeeping_total", "exported_total", "filtered_total", "lost_total", "unparsed_total", "open")
    return sums("read_total", "ahead") == sums(*terms)


def test_known_traffic_is_what_the_endpoint_tells(tmp_path: Path, nginx: Nginx) -> None:
    with Agent(tmp_path, "jsonl", _LISTEN, f"process_discovery.local.include=port={nginx.port}") as agent:
        url = telemetry_url(agent)
        before = scrape(url)
        get(f"{url}/metrics?probes=1")
        # One connection: accept, a read and a write for each request, close.
        urls = f"http://127.0.0.1:{nginx.port}/[1-{REQUESTS}]"
        subprocess.run([tool("curl"), "-s", "-o", "/dev/null", urls], check=True)
        values = settled(url, REQUESTS)
        again = settled(url, REQUESTS)
        logged = [item for item in agent.items() if item["local"]["port"] == nginx.port]
        assert agent.stop() == 0, "".join(agent.text)
    assert total(values, "rover_ledger_exported_total", "jsonl", "protocol") == REQUESTS
    assert len([item for item in logged if item["kind"] == "exchange"]) == REQUESTS
    assert total(again, "rover_ledger_exported_total", "jsonl", "kernel") >= 2 * REQUESTS
    for found in (before, values, again):
        assert adds_up(found, "kernel")
        assert adds_up(found, "protocol")
        assert total(found, "rover_ledger_imbalance") == 0
    assert total(values, "rover_kernel_events_total", "ring_full") == 0
    made = sum(values["rover_kernel_events_total", ring] for ring in ("records", "provisional"))
    assert made >= total(values, "rover_worker_records_total")
    assert total(values, "rover_worker_exchanges_total") >= REQUESTS
    assert 0 < values["rover_bpf_map_entries", "threads"] < values["rover_bpf_map_max_entries", "threads"]
    assert values["rover_probe_attached", "sys_exit"] == 1
    assert total(values, "rover_probe_runs_total", "on_sys_exit") >= 2 * REQUESTS
    assert total(before, "rover_probe_runs_total") == 0
    assert total(values, "rover_ring_size_bytes") > 0
    assert total(values, "rover_capture_lag_seconds_count") >= 1
    assert values["rover_feed_state", "live"] == 1
    for process in ("main", "worker-0", "worker-1"):
        resident = values["rover_process_resident_bytes", process]
        assert 1 << 20 < values["rover_process_proportional_bytes", process] <= resident
        assert values["rover_process_cpu_seconds_total", process] > 0
    print({key: round(value / 2**20, 1) for key, value in values.items() if key[0].startswith("rover_process_")})


def test_health_names_a_backend_that_cannot_be_reached(tmp_path: Path) -> None:
    nowhere = f"core.backend.addr=127.0.0.1:{free_port()}"
    with Agent(tmp_path, "skywalking", _LISTEN, nowhere, "core.backend.check_period=1s") as agent:
        url = telemetry_url(agent)
        agent.wait_for_event("rover_started")
        agent.wait_for_event("backend_disconnected")
        status, _, body = get(f"{url}/healthz")
        assert status == 503
        reasons = json.loads(body)["reasons"]
        assert list(reasons) == ["backend"]
        assert reasons["backend"].startswith("disconnected")
        assert scrape(url)["rover_backend_state", "disconnected"] == 1


def test_idle_connections_beyond_the_bound_give_way_and_health_says_so(tmp_path: Path, nginx: Nginx) -> None:
    bound = "access_log.connections.max=64"
    with Agent(tmp_path, "jsonl", _LISTEN, f"process_discovery.local.include=port={nginx.port}", bound) as agent:
        url = telemetry_url(agent)
        assert get(f"{url}/healthz")[0] == 200
        idle = [socket.create_connection(("127.0.0.1", nginx.port)) for _ in range(100)]
        for connection in idle:
            connection.sendall(b"GET /idle HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096)
        settled(url, 20)
        for number in range(20):
            subprocess.run([tool("curl"), "-s", "-o", "/dev/null", nginx.url(f"/new/{number}")], check=True)
        new = agent.wait_for_exchanges(lambda item: (item["path"] or "").startswith("/new/"), 20)
        assert {item["completeness"] for item in new} == {"complete"}
        values = scrape(url)
        assert total(values, "rover_worker_connections") <= 56
        assert total(values, "rover_ledger_imbalance") == 0
        if total(values, "rover_kernel_events_total", "connections_full"):
            status, _, body = get(f"{url}/healthz")
            assert (status, "access_log.connections.max" in body) == (503, True)
        for connection in idle:
            connection.close()


def test_a_halted_worker_is_unhealthy(tmp_path: Path, nginx: Nginx) -> None:
    with Agent(tmp_path, "jsonl", _LISTEN, f"process_discovery.local.include=port={nginx.port}") as agent:
        url = telemetry_url(agent)
        assert get(f"{url}/healthz")[0] == 200
        worker = next(
            child
            for child in psutil.Process(agent.pid).children()
            if "rover_plugin.access_log.worker" in child.cmdline()
        )
        worker.suspend()
        status, _, body = get(f"{url}/healthz")
        worker.resume()
        assert status == 503
        assert "stands still" in body
        assert agent.stop() == 0
