# SPDX-License-Identifier: Apache-2.0
"""What no rule chooses costs those that are chosen nothing, and is written nowhere."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.agent import Agent, only_with
from tests.support.scrape import scrape, total
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.servers import Nginx

DOWNLOADS, SIZE = 60, 20_000_000
SECRET = "4111111111111111"

_DOWNLOAD = f"""
import socket, sys
for _ in range({DOWNLOADS}):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
        s.sendall(b"GET /large HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        left = {SIZE}
        while left:
            left -= len(s.recv(1 << 20))
"""


@contextmanager
def large_server() -> Iterator[int]:
    """Sends `SIZE` bytes to whoever asks. In this process, which is older than the agent and never chosen."""
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n".ljust(SIZE, b"x")

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                client.sendall(body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def totals_of(agent: Agent) -> dict[str, Any]:
    assert agent.stop() == 0, "".join(agent.text)
    return agent.wait_for_event("access_log_totals")


def test_downloads_of_an_unchosen_process_take_nothing_from_a_chosen_one(tmp_path: Path, nginx: Nginx) -> None:
    with large_server() as port, Agent(tmp_path, "jsonl", only_with(nginx.port)) as agent:
        flood = subprocess.Popen([sys.executable, "-c", _DOWNLOAD, str(port)])
        asked = 0
        while flood.poll() is None:
            subprocess.run(["curl", "-s", "-o", "/dev/null", nginx.url(f"/{asked}")], check=True)
            asked += 1
        assert flood.returncode == 0
        agent.wait_for_exchanges(lambda item: item["local"]["port"] == nginx.port, asked)
        totals = totals_of(agent)
    # Nothing but what was chosen has ever come into the shards' rings: all that was read of them became logs.
    assert not [name for name in totals if "filtered" in name or "lost_" in name.removeprefix("lost_")], totals
    assert totals["lost_ring"] == totals["imbalance"] == 0
    assert "kernel_ring_full" not in totals
    assert "logs_lost" not in "".join(agent.text)
    served = [item for item in agent.exchanges() if item["local"]["port"] == nginx.port]
    assert {item["completeness"] for item in served} == {"complete"}
    assert len(served) == asked
    assert all(item["local"]["service"] != "python3" for item in agent.exchanges())


def test_rules_by_executable_are_decided_in_the_kernel(tmp_path: Path, nginx: Nginx) -> None:
    curl = tmp_path / "curl-of-this-test"
    shutil.copy(shutil.which("curl") or "", curl)
    other = tmp_path / "curl-of-nobody"
    shutil.copy(curl, other)
    telemetry = f"127.0.0.1:{free_port()}"
    rules = f"process_discovery.local.include=exe={curl},exe=nothing-like-it && user=root"
    with Agent(tmp_path, "jsonl", rules, f"telemetry.listen={telemetry}") as agent:
        for number in range(20):
            subprocess.run([other, "-s", "-o", "/dev/null", nginx.url(f"/other/{number}")], check=True)
        before = scrape(f"http://{telemetry}")
        for number in range(20):
            subprocess.run([curl, "-s", "-o", "/dev/null", nginx.url(f"/chosen/{number}")], check=True)
        chosen = agent.wait_for_exchanges(lambda item: item["path"].startswith("/chosen/"), 20)
        totals = totals_of(agent)
    assert total(before, "rover_kernel_events_total", "provisional") == 0
    assert total(before, "rover_kernel_events_total", "records") == 0
    assert {item["completeness"] for item in chosen} == {"complete"}
    assert len(list(agent.exchanges())) == 20
    assert totals["provisional_not_chosen"] == totals["lost_ring"] == 0


@pytest.mark.parametrize("redact", [False, True])
def test_a_recording_holds_nothing_of_a_process_that_is_not_chosen(tmp_path: Path, nginx: Nginx, redact: bool) -> None:
    file = tmp_path / "traffic.rec"
    command = ("record", str(file), "--output", "jsonl", "--path", str(tmp_path / "access.jsonl"))
    command += ("--redact",) if redact else ()
    rules = (f"process_discovery.local.include=cmdline~=:{nginx.port}/chosen", "process_discovery.local.exclude=exe=sh")
    with Agent(tmp_path, "jsonl", *rules, command=command) as agent:
        for number in range(5):
            subprocess.run(["curl", "-s", "-d", f"CARD={SECRET}", nginx.url(f"/pay/{number}")], check=True)
            subprocess.run(["curl", "-s", nginx.url(f"/chosen/{number}")], check=True)
        agent.wait_for_exchanges(lambda item: "/chosen" in (item["path"] or ""), 5)
        assert agent.stop() == 0, "".join(agent.text)
    content = file.read_bytes()
    assert SECRET.encode() not in content
    assert b"/pay/" not in content
    assert redact or b"/chosen/4" in content
