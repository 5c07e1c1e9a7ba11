# SPDX-License-Identifier: Apache-2.0
"""Bodies of megabytes, in calls of any size: every exchange complete, with exact sizes, at both ends, by default."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import http1_peers
from tests.support.agent import Agent
from tests.support.http2_peers import Server, ask, go_command, grpc_command, java_command, node_command, request
from tests.support.servers import free_port, tool, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROLES = ("server", "client")
SIZE = 2_000_000
STREAMS = 12
PARALLEL = 10
SMALL = 10
NGINX = """
user root; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; sendfile {sendfile};
  server {{ listen 127.0.0.1:{port} http2; root {folder}/www; }}
}}
"""


PEERS = http1_peers.FOLDER.parent


class Stage:
    """The agent, and the peers' servers."""

    def __init__(self, folder: Path, agent: Agent, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.agent = agent
        self._stack = stack
        self._commands: dict[str, list[str]] = {}
        self._ports: dict[str, int] = {}
        self._read = 0

    def command(self, name: str) -> list[str]:
        if name not in self._commands:
            makers = {
                "go": lambda: go_command(self.folder),
                "grpc": grpc_command,
                "java": lambda: java_command(self.folder),
                "node": node_command,
            }
            self._commands[name] = makers[name]()
        return self._commands[name]

    def server(self, name: str) -> int:
        """Port of a server, started when it is first wanted."""
        if name not in self._ports:
            if name.startswith("nginx"):
                self._ports[name] = self._nginx(name)
            else:
                self._ports[name] = self._stack.enter_context(Server(self.command(name))).port
        return self._ports[name]

    def _nginx(self, name: str) -> int:
        folder, port = self.folder / name.replace(" ", "-"), free_port()
        (folder / "www" / "bytes").mkdir(parents=True)
        (folder / "www" / "bytes" / str(SIZE)).write_bytes(b"f" * SIZE)
        sendfile = "on" if "sendfile" in name else "off"
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, sendfile=sendfile))
        command = [tool("nginx"), "-c", str(folder / "nginx.conf")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.terminate)
        wait_for_port(port)
        return port

    def logged(self, port: int, since_ns: int, count: int) -> dict[str, list[dict[str, Any]]]:
        """At least so many exchanges of each end; a file cannot be awaited, so it is read every 100 ms."""
        deadline = time.monotonic() + 30
        found: dict[str, list[dict[str, Any]]] = {role: [] for role in ROLES}
        while any(len(of_one_end) < count for of_one_end in found.values()):
            assert time.monotonic() < deadline, {role: len(of_one_end) for role, of_one_end in found.items()}
            time.sleep(0.1)
            for item in self._new_exchanges():
                end = "local" if item["role"] == "server" else "remote"
                if item[end]["port"] == port and item["start_ns"] >= since_ns:
                    found[item["role"]].append(item)
        return found

    def _new_exchanges(self) -> Iterator[dict[str, Any]]:
        """What was written since the last time. There are a thousand calls to one exchange: only these are parsed."""
        if not self.agent.jsonl.exists():
            return
        with self.agent.jsonl.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                if b'"kind":"exchange"' in line:
                    yield json.loads(line)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("large")
    for part in (folder, folder.parent, folder.parent.parent):
        part.chmod(0o755)
    # Nobody else's records: what this machine does besides must not fill the rings.
    ours = rf"process_discovery.local.include=cmdline~={re.escape(str(folder))}|{re.escape(str(PEERS))}/http[12]_peers"
    # Room for all calls of a test: what is tried is how they are read, not how much a busy machine can take.
    room = "access_log.protocol_analyze.per_cpu_buffer=8MB"
    with contextlib.ExitStack() as stack, Agent(folder, "jsonl", ours, room) as agent:
        servers = stack.enter_context(contextlib.ExitStack())
        yield Stage(folder, agent, servers)


@pytest.mark.parametrize("size", [20_000, 100_000, 1_000_000, 3_000_000])
def test_one_large_unary_call_of_grpcio_among_small_ones(stage: Stage, size: int) -> None:
    sizes = [SMALL, SMALL, SMALL, size, *[SMALL] * 10]
    calls = [{"kind": "unary", "method": "Mirror", "messages": 1, "deadline": 20, "size": one} for one in sizes]
    port, since_ns = stage.server("grpc"), time.monotonic_ns()
    answers = ask(stage.command("grpc"), port, calls)
    assert [answer["code"] for answer in answers] == [0] * len(sizes)
    expected = Counter(("POST", "/rover.test.Peer/UnaryMirror", 200, 0, one + 5, one + 5, "complete") for one in sizes)
    for role, found in stage.logged(port, since_ns, len(sizes)).items():
        assert expected == Counter(
            (
                item["method"], item["path"], item["status"], item["grpc_status"], item["request_body_bytes"],
                item["response_body_bytes"], item["completeness"],
            )
            for item in found
        ), role  # fmt: skip


SERVERS = ("go", "node", "java", "nginx", "nginx with sendfile")
PAIRS = [(client, server) for client in ("go", "node") for server in SERVERS]
PAIRS.remove(("go", "node"))  # Node reads 3600 WINDOW_UPDATE frames in one call: more than is copied


@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_parallel_streams_of_two_megabytes(stage: Stage, client: str, server: str) -> None:
    port, path = stage.server(server), f"/bytes/{SIZE}"
    command, since_ns = stage.command(client), time.monotonic_ns()
    answers = ask(command, port, [request("GET", path)] * STREAMS, PARALLEL)
    assert [(answer["status"], answer["body"]) for answer in answers] == [(200, SIZE)] * STREAMS
    for role, found in stage.logged(port, since_ns, STREAMS).items():
        seen = Counter(
            (item["path"], item["status"], item["response_body_bytes"], item["completeness"]) for item in found
        )
        assert seen == {(path, 200, SIZE, "complete"): STREAMS}, role


@pytest.mark.parametrize("server", ["go", "node", "java"])
@pytest.mark.parametrize("client", ["go", "node"])
def test_parallel_uploads_of_two_megabytes(stage: Stage, client: str, server: str) -> None:
    port = stage.server(server)
    command, since_ns = stage.command(client), time.monotonic_ns()
    answers = ask(command, port, [request("POST", "/bytes/7", SIZE)] * STREAMS, PARALLEL)
    assert [(answer["status"], answer["body"]) for answer in answers] == [(200, 7)] * STREAMS
    for role, found in stage.logged(port, since_ns, STREAMS).items():
        seen = Counter(
            (item["path"], item["request_body_bytes"], item["status"], item["completeness"]) for item in found
        )
        assert seen == {("/bytes/7", SIZE, 200, "complete"): STREAMS}, role


READERS = ("curl", "aiohttp", "httpx", "requests", "node")
TIMES = 3
_NODE = """
const http = require('http');
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const [url, count] = [process.argv[1], Number(process.argv[2])];
const sizes = [];
const next = () => http.get(url, { agent }, (response) => {
  let size = 0;
  response.on('data', (chunk) => { size += chunk.length; });
  response.on('end', () => {
    sizes.push(size);
    if (sizes.length < count) return next();
    console.log(JSON.stringify(sizes));
    agent.destroy();
  });
});
next();
"""


def _read(reader: str, url: str, folder: Path) -> list[int]:
    """Asks for the same again and again on one connection; the sizes that were read. `folder` names the process."""
    if reader == "curl":
        outputs = [part for _ in range(TIMES) for part in ("-o", f"{folder}/got", url)]
        command = [tool("curl"), "-s", "-w", "%{size_download},", *outputs]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        return json.loads(f"[{printed.rstrip(',')}]")
    if reader == "node":
        command = [*node_command()[:1], "-e", _NODE, url, str(TIMES), str(folder)]
    else:
        pytest.importorskip(reader)
        command = [sys.executable, str(http1_peers.FOLDER / "readers.py"), reader, url, str(TIMES)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("reader", READERS)
def test_chunked_answers_of_two_megabytes(stage: Stage, reader: str, kind: str) -> None:
    port, since_ns = stage.server("go"), time.monotonic_ns()
    assert _read(reader, f"http://127.0.0.1:{port}/{kind}/{SIZE}", stage.folder) == [SIZE] * TIMES
    for role, found in stage.logged(port, since_ns, TIMES).items():
        seen = Counter(
            (item["path"], item["status"], item["response_body_bytes"], item["completeness"]) for item in found
        )
        assert seen == {(f"/{kind}/{SIZE}", 200, SIZE, "complete"): TIMES}, role


def test_nothing_was_lost(stage: Stage) -> None:
    assert stage.agent.stop() == 0
    totals = stage.agent.wait_for_event("access_log_totals")
    assert totals["imbalance"] == 0, json.dumps(totals)
