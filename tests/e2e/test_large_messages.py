# SPDX-License-Identifier: Apache-2.0
"""Large messages of real software under the real agent: sizes are exact, whatever the calls."""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import socket
import subprocess
import time
from collections import Counter
from concurrent import futures
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.support.agent import Agent
from tests.support.http1_peers import program
from tests.support.http2_peers import Server, ask, go_command, node_command, request
from tests.support.servers import Nginx, free_port, tool, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 2_000_000
ROLES = ("server", "client")
_SPAWN = multiprocessing.get_context("spawn")
_GO = """
package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
)

func main() {
	body := bytes.Repeat([]byte("HTTP/1.1 200 OK\\r\\n"), 2000000/17+1)[:2000000]
	http.HandleFunc("/one", func(w http.ResponseWriter, r *http.Request) { w.Write(body) })
	http.HandleFunc("/copied", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(struct{ io.Writer }{w}, struct{ io.Reader }{bytes.NewReader(body)})
	})
	http.HandleFunc("/small", func(w http.ResponseWriter, r *http.Request) {
		for at := 0; at < len(body); at += 2000 {
			w.Write(body[at : at+2000])
		}
	})
	http.ListenAndServe(os.Args[1], nil)
}
"""
_NODE = """
const http = require('http'), agent = new http.Agent({keepAlive: true, maxSockets: 1});
const get = (left) => left && http.get(process.argv[1], {agent}, (r) => r.resume().on('end', () => get(left - 1)));
get(3); agent.on('free', () => {}); setTimeout(() => agent.destroy(), 3000);
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    # Go's server makes 13 000 calls for twelve answers: sizes are looked at here, not whether a busy machine keeps up.
    room = "access_log.protocol_analyze.per_cpu_buffer=8MB"
    with Agent(tmp_path_factory.mktemp("agent"), "jsonl", room) as running:
        yield running


def logged(agent: Agent, port: int, role: str, count: int) -> list[dict[str, Any]]:
    """The exchanges of one end of one server, at least `count`; a file cannot be awaited, so it is read again."""
    end = "local" if role == "server" else "remote"
    deadline = time.monotonic() + 30
    while True:
        found = [item for item in agent.exchanges() if item["role"] == role and item[end]["port"] == port]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"{role}: {len(found)} of {count}: {found}"
        time.sleep(0.1)


def serve_grpc(port: int) -> None:
    """gRPC's C core: answers with what it is sent."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    echo = grpc.unary_unary_rpc_method_handler(lambda message, _: message)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Unary": echo}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def ask_grpc(port: int, sizes: list[int]) -> None:
    """Unary calls of these sizes, one after the other."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for size in sizes:
            channel.unary_unary("/t.T/Unary")(bytes(size), wait_for_ready=True, timeout=30)


@pytest.mark.parametrize("size", [20_000, 100_000, 1_000_000, 3_000_000])
def test_one_large_grpc_message_among_small_ones(agent: Agent, size: int) -> None:
    port = free_port()
    sizes = [10, 10, 10, size] + [10] * 10
    server = _SPAWN.Process(target=serve_grpc, args=(port,))
    server.start()
    wait_for_port(port)
    client = _SPAWN.Process(target=ask_grpc, args=(port, sizes))
    client.start()
    client.join(60)
    server.terminate()
    server.join(10)
    for role in ROLES:
        found = logged(agent, port, role, len(sizes))
        kinds = Counter((item["path"], item["grpc_status"], item["completeness"]) for item in found)
        assert kinds == {("/t.T/Unary", 0, "complete"): len(sizes)}, role
        for part in ("request_body_bytes", "response_body_bytes"):
            assert sorted(item[part] for item in found) == sorted(size + 5 for size in sizes)  # five bytes of framing


@pytest.mark.parametrize("name", ["go", "node"])
def test_twelve_large_answers_in_ten_streams(agent: Agent, tmp_path: Path, name: str) -> None:
    client = go_command(tmp_path)  # Node's refuses streams beyond 10 MB at a time
    with Server(client if name == "go" else node_command()) as server:
        answers = ask(client, server.port, [request("GET", f"/bytes/{SIZE}")] * 12, 10)
        assert [answer["body"] for answer in answers] == [SIZE] * 12
        for role in ROLES:
            found = logged(agent, server.port, role, 12)
            kinds = Counter((item["status"], item["response_body_bytes"], item["completeness"]) for item in found)
            odd = [{**item, "calls": len(item["calls"])} for item in found if item["completeness"] != "complete"]
            assert kinds == {(200, SIZE, "complete"): 12}, (role, odd)


def test_twelve_large_answers_of_nginx_in_ten_streams(agent: Agent, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    nginx = Nginx(tmp_path / "nginx")
    config = tmp_path / "nginx" / "nginx.conf"
    config.write_text(config.read_text().replace(" backlog=1024;", " http2;"))
    (nginx.files / "2m").write_bytes(bytes(SIZE))
    with nginx:
        command = [tool("h2load"), "-n12", "-c1", "-m10", nginx.url("/files/2m")]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        for role in ROLES:
            found = logged(agent, nginx.port, role, 12)
            kinds = Counter((item["status"], item["response_body_bytes"], item["completeness"]) for item in found)
            assert kinds == {(200, SIZE, "complete"): 12}, role


def read_with_asyncio(port: int, path: str) -> None:
    """Three answers, each read in calls of up to 256 KB, as asyncio's streams and clients upon them do."""

    async def run() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            while size := int((await reader.readline()).strip() or b"0", 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        writer.close()

    asyncio.run(run())


def read_with_http_client(port: int, path: str) -> None:
    """Three answers, each read in calls of whatever http.client likes."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(3):
        connection.request("GET", path)
        connection.getresponse().read()
    connection.close()


def read_in_large_calls(port: int, path: str) -> None:
    """Three answers, each read when much of it is there."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(3):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            received = b""
            while not received.endswith(b"\r\n0\r\n\r\n"):
                time.sleep(0.01)  # the more comes together, the better
                received += connection.recv(1 << 20)


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Go's net/http, which answers in chunks: its port."""
    folder = tmp_path_factory.mktemp("chunks")
    (folder / "main.go").write_text(_GO)
    (folder / "go.mod").write_text("module chunks\ngo 1.19\n")
    subprocess.run([program("go"), "build", "-o", "server", "."], cwd=folder, check=True)
    port = free_port()
    server = subprocess.Popen([str(folder / "server"), f"127.0.0.1:{port}"])
    wait_for_port(port)
    yield port
    server.terminate()
    server.wait(10)


@pytest.mark.parametrize("path", ["/one", "/copied", "/small"])
@pytest.mark.parametrize("client", ["curl", "node", "asyncio", "http.client", "large calls"])
def test_two_megabytes_in_chunks(agent: Agent, chunks: int, client: str, path: str) -> None:
    marked = f"{path}?{client.replace(' ', '-')}"
    url = f"http://127.0.0.1:{chunks}{marked}"
    if client == "curl":
        subprocess.run([program("curl"), "-s", *["-o", "/dev/null", url] * 3], check=True, timeout=30)
    elif client == "node":
        subprocess.run([program("node"), "-e", _NODE, url], check=True, timeout=30)
    else:
        reads = {"asyncio": read_with_asyncio, "http.client": read_with_http_client, "large calls": read_in_large_calls}
        process = _SPAWN.Process(target=reads[client], args=(chunks, marked))
        process.start()
        process.join(30)
        assert process.exitcode == 0
    for role in ROLES:
        before = _SEEN[role]
        found = logged(agent, chunks, role, before + 3)[before:]
        _SEEN[role] += 3
        kinds = Counter((item["path"], item["response_body_bytes"], item["completeness"]) for item in found)
        assert kinds == {(path, SIZE, "complete"): 3}, json.dumps(found)[:2000]


_SEEN = dict.fromkeys(ROLES, 0)
"""Exchanges with the one server of chunks that earlier tests have looked at."""
