# SPDX-License-Identifier: Apache-2.0
"""What `make run` shows: the console line of a curl to nginx, soon after start; and a flush at SIGTERM under load."""

from __future__ import annotations

import re
import subprocess
import time
from typing import TYPE_CHECKING

from tests.support.agent import Agent, only_with
from tests.support.servers import tool

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import Nginx


def test_the_console_shows_an_exchange_with_everything_a_person_wants(tmp_path: Path, nginx: Nginx) -> None:
    with Agent(tmp_path, "console,jsonl", only_with(nginx.port)) as agent:
        subprocess.run([tool("curl"), "-s", nginx.url("/hello?secret=1")], check=True, capture_output=True)
        agent.wait_for_exchanges(lambda item: item["path"] == "/hello", 2)
        assert agent.stop() == 0, agent.text
    text = agent.console.read_text()
    server = next(line for line in text.splitlines() if " server " in line and "/hello" in line)
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3} +nginx\[\d+\] +server +GET +/hello +200 +\d+(\.\d)? (µs|ms)", server)
    assert f"127.0.0.1:{nginx.port} ← 127.0.0.1:" in server
    assert re.search(r"curl\[\d+\]", server)
    assert "secret" not in text


def test_sigterm_under_load_hands_on_all_that_was_read(tmp_path: Path, nginx: Nginx) -> None:
    with Agent(tmp_path, "jsonl", only_with(nginx.port)) as agent:
        command = [tool("h2load"), "--h1", "--rps=200", "-c10", "-t1", "-D6", nginx.url()]
        load = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        agent.wait_for_exchanges(lambda item: item["path"] == "/", 2000)
        stopped_ns = time.monotonic_ns()
        assert agent.stop() == 0, agent.text
        load.wait(30)
    servers: dict[int, list[dict[str, int]]] = {}
    for item in agent.exchanges():
        if item["role"] == "server":
            servers.setdefault(item["connection"], []).append(item)
    # Evenly paced clients: what is missing at the end of any of them would be a hole before the moment of the signal.
    assert len(servers) == 10
    for items in servers.values():
        assert max(item["end_ns"] for item in items) > stopped_ns - 50_000_000
