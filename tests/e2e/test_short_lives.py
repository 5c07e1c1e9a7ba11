# SPDX-License-Identifier: Apache-2.0
"""Processes that are born while the agent runs are seen from their first request on, however short they live."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.agent import Agent, only_with

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import Nginx

_FIFTY_MS = """
import socket, sys, time
end = time.monotonic() + 0.05
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.sendall(b"GET /short-life HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
s.recv(4096)
time.sleep(max(0, end - time.monotonic()))
"""

_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(203); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *a): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.handle_request()
"""


def test_a_process_that_lives_50_ms_is_logged(tmp_path: Path, nginx: Nginx) -> None:
    with Agent(tmp_path) as agent:
        subprocess.run([sys.executable, "-c", _FIFTY_MS, str(nginx.port)], check=True)
        (client,) = agent.wait_for_exchanges(lambda item: item["path"] == "/short-life" and item["role"] == "client")
        assert client["status"] == 200
        assert client["local"]["service"].startswith("python")


def test_a_server_started_under_the_agent_is_logged_from_its_first_request(tmp_path: Path) -> None:
    with Agent(tmp_path) as agent:
        server = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
        with server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}/first"], check=True)
        (item,) = agent.wait_for_exchanges(lambda item: item["path"] == "/first" and item["role"] == "server")
        assert item["status"] == 203
        assert item["local"]["pid"] == server.pid
        assert item["completeness"] == "complete"


def test_short_lived_clients_that_only_their_own_command_line_chooses_are_all_logged(
    tmp_path: Path, nginx: Nginx
) -> None:
    with Agent(tmp_path, "jsonl", only_with(nginx.port)) as agent:
        for number in range(40):
            subprocess.run(["sh", "-c", f"exec curl -s -o /dev/null {nginx.url(f'/{number}')}"], check=True)
        wanted = {f"/{number}" for number in range(40)}
        clients = agent.wait_for_exchanges(lambda item: item["path"] in wanted and item["role"] == "client", 40)
    assert {item["path"] for item in clients} == wanted
    assert {item["local"]["service"] for item in clients} == {"curl"}
    assert len({item["local"]["pid"] for item in clients}) == 40
