# SPDX-License-Identifier: Apache-2.0
"""Trouble with one output of the running agent is that output's own: counted, named by /healthz, and no obstacle."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from tests.support.agent import Agent, oap_settings, only_with
from tests.support.oap import OapDouble
from tests.support.servers import free_port, tool

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import Nginx

HTTP = 49  # the OAP's component of an edge (oap_rules)


def load(nginx: Nginx, requests: int) -> None:
    subprocess.run(
        [tool("h2load"), "--h1", f"-n{requests}", "-c2", "-t1", nginx.url()], check=True, capture_output=True
    )


def test_a_reader_of_standard_output_that_leaves_ends_an_agent_without_other_outputs(
    tmp_path: Path, nginx: Nginx
) -> None:
    read_end, write_end = os.pipe()
    with Agent(tmp_path, "console", only_with(nginx.port), stdout=write_end) as agent:
        os.close(write_end)
        load(nginx, 20)
        assert b" /" in os.read(read_end, 1 << 16)
        os.close(read_end)
        load(nginx, 20)
        assert agent.wait() == 0
    assert agent.wait_for_event("output_reader_left")["stopping"] is True
    totals = agent.wait_for_event("access_log_totals")
    assert totals["imbalance"] == 0
    assert totals["console_protocol_exported"] + totals["console_protocol_lost_closed_pipe"] == totals["exchanges_out"]


def test_a_reader_that_stops_reading_costs_its_own_output_and_delays_nothing(tmp_path: Path, nginx: Nginx) -> None:
    read_end, write_end = os.pipe()
    port = free_port()
    settings = only_with(nginx.port), f"telemetry.listen=127.0.0.1:{port}"
    with Agent(tmp_path, "console,jsonl", *settings, stdout=write_end) as agent:
        os.close(write_end)
        load(nginx, 2000)  # some hundred lines fill a pipe
        agent.wait_for_exchanges(lambda item: item["role"] == "server", 2000)
        agent.wait_for_event("output_stands_still")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10)
            health = ""
        except urllib.error.HTTPError as error:
            health = error.read().decode()
        assert "output console" in health
        began = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - began < 20
    os.close(read_end)
    totals = agent.wait_for_event("access_log_totals")
    assert totals["imbalance"] == 0
    assert totals["console_protocol_lost_stalled"] > 0
    assert totals["jsonl_protocol_exported"] == totals["exchanges_out"]


def test_a_file_that_cannot_grow_any_more_is_left_with_whole_lines(tmp_path: Path, nginx: Nginx) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        path = small / "log.jsonl"
        with Agent(tmp_path, "jsonl", only_with(nginx.port), f"access_log.jsonl.path={path}") as agent:
            load(nginx, 500)
            agent.wait_for_event("output_stands_still")
            assert agent.stop() == 0
        totals = agent.wait_for_event("access_log_totals")
        lines = path.read_text().splitlines(keepends=True)
        assert all(line.endswith("}\n") for line in lines)
        kept = sum('"kind":"exchange"' in line for line in lines)
        assert kept == totals["jsonl_protocol_exported"]
        assert kept + totals["jsonl_protocol_lost_write_failed"] == totals["exchanges_out"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_no_edge_of_an_http_connection_is_tcp(tmp_path: Path, nginx: Nginx) -> None:
    with OapDouble() as oap:
        settings = *oap_settings(oap.address), only_with(nginx.port), "access_log.flush.period=100ms"
        with Agent(tmp_path, "skywalking", *settings) as agent:
            for _ in range(3):  # each a connection of its own, an accept and a connect
                load(nginx, 4)
            oap.wait_for(lambda: oap.tally.protocol >= 24)
            assert agent.stop() == 0
        assert {log.connection.components for log in oap.kernel_logs} == {(HTTP,)}
        assert {log.operation for log in oap.kernel_logs} >= {"accept", "connect", "close"}
        assert oap.anomalies == {}
