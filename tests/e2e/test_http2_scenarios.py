# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 as real clients and servers speak it, under the real agent: both ends' logs say what both ends say.

One agent watches all of it. Each scenario is found again by its server's port and its time; at the end each server's
own list of what it served is compared with the logs of its side.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.agent import Agent
from tests.support.http2_peers import Server, ask, go_command, grpc_command, made_up, node_command, request
from tests.support.http2_rough_client import rough_requests
from tests.support.servers import free_port, tool, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROLES = ("server", "client")
_NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; http2_recv_buffer_size 256k; large_client_header_buffers 4 64k;
  server {{
    listen 127.0.0.1:{port} http2; root {folder}/www; client_max_body_size 64m; keepalive_requests 1000000;
    location / {{ return 200 "hello\\n"; }}
    location ~ /(up|rough) {{ proxy_pass http://127.0.0.1:{backend}; }}  # `return` resets a stream with a body
    location /status/204 {{ return 204; }}
    location /status/404 {{ return 404; }}
    location /status/500 {{ return 500; }}
    location /files/ {{ }}
  }}
  server {{ listen 127.0.0.1:{backend}; client_max_body_size 64m; location / {{ return 200 "hello\\n"; }} }}
}}
"""


@dataclass(frozen=True)
class Wanted:
    """What both ends' logs must say of one exchange; a field that is None is not compared."""

    method: str
    path: str
    status: int | None = 200
    request_body: int | None = 0
    response_body: int | None = 0
    grpc_status: int | None = None
    grpc_message: str | None = None
    completeness: str = "complete"

    def key(self, item: dict[str, Any]) -> tuple[object, ...]:
        """The same fields of a logged exchange."""
        return (
            item["method"], item["path"], item["status"],
            None if self.request_body is None else item["request_body_bytes"],
            None if self.response_body is None else item["response_body_bytes"],
            item.get("grpc_status"), item.get("grpc_message") or None, item["completeness"],
        )  # fmt: skip

    def __iter__(self) -> Iterator[object]:
        return iter((
            self.method, self.path, self.status, self.request_body, self.response_body, self.grpc_status,
            self.grpc_message, self.completeness,
        ))  # fmt: skip


class Stage:
    """The agent and the servers that it watches."""

    def __init__(self, folder: Path, agent: Agent, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.agent = agent
        self._stack = stack
        self._servers: dict[str, Server] = {}
        self._commands: dict[str, list[str]] = {}

    def command(self, name: str) -> list[str]:
        """How a peer is called; skips where its language is missing."""
        if name not in self._commands:
            made = {"node": node_command, "go": lambda: go_command(self.folder), "grpc": grpc_command}[name]()
            self._commands[name] = made
        return self._commands[name]

    def server(self, name: str) -> int:
        """Port of a peer's server, started when it is first wanted."""
        if name not in self._servers:
            self._servers[name] = self._stack.enter_context(Server(self.command(name)))
        return self._servers[name].port

    def foreign(self, command: list[str], port: int) -> int:
        """Starts a server that has no port of its own choice."""
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.terminate)
        wait_for_port(port)
        return port

    def stopped(self) -> dict[str, tuple[int, list[dict[str, Any]]]]:
        """Ends every server: its port, and what it says it served."""
        self._stack.close()
        return {name: (server.port, server.served) for name, server in self._servers.items()}

    def logged(self, port: int, role: str, since_ns: int = 0) -> list[dict[str, Any]]:
        """The exchanges of one side of one server so far."""
        end = "local" if role == "server" else "remote"
        return [
            item
            for item in self.agent.exchanges()
            if item["role"] == role and item[end]["port"] == port and item["start_ns"] >= since_ns
        ]

    def wait_for(self, port: int, role: str, since_ns: int, count: int) -> list[dict[str, Any]]:
        """At least so many exchanges of one end; a file cannot be awaited, so it is read every 20 ms."""
        deadline = time.monotonic() + 20
        while len(found := self.logged(port, role, since_ns)) < count:
            assert time.monotonic() < deadline, f"{role}: {len(found)} of {count}: {found}"
            time.sleep(0.02)
        return found

    def check(self, port: int, run: Callable[[], object], wanted: list[Wanted], host: str | None = None) -> None:
        """Runs a client; its exchanges, from both ends, are what is wanted and nothing else."""
        since_ns = time.monotonic_ns()
        run()
        expected = Counter(tuple(item) for item in wanted)  # a client's answers may have added to it
        by_role = {}
        for role in ROLES:
            by_role[role] = found = self.wait_for(port, role, since_ns, len(wanted))
            assert any(item["calls"] for item in found)
            assert Counter(wanted[0].key(item) for item in found) == expected, role
            for item in found:
                assert item["protocol"] == "http/2"
                assert item["host"] == (host or f"127.0.0.1:{port}")
                assert item["request_header_bytes"] > 0
                assert 0 <= item["end_ns"] - item["start_ns"] < 2 * 10**10
        sizes = [
            Counter((i["path"], i["request_header_bytes"], i["response_header_bytes"]) for i in found)
            for found in by_role.values()
        ]
        assert sizes[0] == sizes[1]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("http2")
    for part in (folder, folder.parent, folder.parent.parent):
        part.chmod(0o755)
    with (
        contextlib.ExitStack() as stack,
        Agent(folder, "jsonl") as agent,
    ):
        servers = stack.enter_context(contextlib.ExitStack())
        yield Stage(folder, agent, servers)


@pytest.fixture(scope="module")
def nginx(stage: Stage) -> int:
    folder, port = stage.folder / "nginx", free_port()
    (folder / "www" / "files").mkdir(parents=True)
    (folder / "www" / "files" / "300k").write_bytes(b"f" * 300_000)
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, backend=free_port()))
    return stage.foreign([tool("nginx"), "-c", str(folder / "nginx.conf")], port)


@pytest.fixture(scope="module")
def nghttpd(stage: Stage) -> int:
    port, root = free_port(), stage.folder / "nghttpd"
    root.mkdir()
    (root / "page").write_bytes(b"p" * 1000)
    (root / "style").write_bytes(b"s" * 200)
    push = "--push=/page=/style"
    return stage.foreign([tool("nghttpd"), "--no-tls", "-d", str(root), "--trailer=x-end: 1", push, str(port)], port)


def _curl(port: int, *arguments: str, paths: tuple[str, ...] = ("/",), folder: Path | None = None) -> None:
    urls = [part for path in paths for part in ("-o", "/dev/null", f"http://127.0.0.1:{port}{path}")]
    subprocess.run([tool("curl"), "-s", *arguments, *urls], check=True, cwd=folder, timeout=30)


PRIOR = "--http2-prior-knowledge"
CURL = {
    "get": ((), Wanted("GET", "/", 200, 0, 6)),
    "query": ((), Wanted("GET", "/", 200, 0, 6)),
    "head": (("--head",), Wanted("HEAD", "/", 200)),
    "no content": ((), Wanted("GET", "/status/204", 204)),
    "not found": ((), Wanted("GET", "/status/404", 404, 0, None)),
    "server error": ((), Wanted("GET", "/status/500", 500, 0, None)),
    "small body": (("-d", "a=1"), Wanted("POST", "/up", 200, 3, 6)),
    "put": (("-X", "PUT", "-d", "hello"), Wanted("PUT", "/up", 200, 5, 6)),
    "60 KB body": (("--data-binary", "@body"), Wanted("POST", "/up", 200, 60_000, 6)),
    "300 KB answer": ((), Wanted("GET", "/files/300k", 200, 0, 300_000)),
    "long headers": (("-H", f"X-Long: {'~' * 30_000}"), Wanted("GET", "/", 200, 0, 6)),
    "many headers": (tuple(p for n in range(50) for p in ("-H", f"X-{n}: {n * 7919}")), Wanted("GET", "/", 200, 0, 6)),
}


@pytest.mark.parametrize("name", CURL)
def test_curl_and_nginx_with_prior_knowledge(stage: Stage, nginx: int, name: str) -> None:
    arguments, wanted = CURL[name]
    (stage.folder / "body").write_bytes(b"b" * 60_000)
    path = wanted.path + ("?a=b&c" if name == "query" else "")
    stage.check(nginx, lambda: _curl(nginx, PRIOR, *arguments, paths=(path,), folder=stage.folder), [wanted])


def test_curl_and_nghttpd_with_prior_knowledge_and_trailers(stage: Stage, nghttpd: int) -> None:
    stage.check(nghttpd, lambda: _curl(nghttpd, PRIOR, paths=("/style",)), [Wanted("GET", "/style", 200, 0, 200)])


def test_curl_upgrades_and_asks_again_on_the_connection(stage: Stage) -> None:
    port = stage.server("go")
    wanted = [Wanted("GET", "/bytes/200", 200, 0, 200), Wanted("GET", "/missing", 404, 0, 9)]
    stage.check(port, lambda: _curl(port, "--http2", paths=("/bytes/200?1", "/missing")), wanted)


def test_nghttp_upgrades(stage: Stage) -> None:
    port = stage.server("go")
    stage.check(port, lambda: _nghttp(port, "--upgrade", path="/bytes/70"), [Wanted("GET", "/bytes/70", 200, 0, 70)])


def _nghttp(port: int, *arguments: str, path: str = "/style") -> None:
    command = [tool("nghttp"), "-n", "--no-dep", *arguments, f"http://127.0.0.1:{port}{path}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=30)


@pytest.mark.parametrize(
    "arguments",
    [("--padding=200",), ("--continuation",), ("--header-table-size=0",), ("--encoder-header-table-size=60",)],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_nghttp_and_nghttpd(stage: Stage, nghttpd: int, arguments: tuple[str, ...]) -> None:
    stage.check(nghttpd, lambda: _nghttp(nghttpd, *arguments), [Wanted("GET", "/style", 200, 0, 200)])


def test_nghttpd_pushes(stage: Stage, nghttpd: int) -> None:
    wanted = [Wanted("GET", "/page", 200, 0, 1000), Wanted("GET", "/style", 200, 0, 200)]
    stage.check(nghttpd, lambda: _nghttp(nghttpd, path="/page"), wanted)


def _h2load(port: int, *arguments: str, path: str) -> None:
    command = [tool("h2load"), *arguments, f"http://127.0.0.1:{port}{path}"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert re.search(r" 0 failed, 0 errored", printed), printed


@pytest.mark.parametrize(("clients", "streams"), [(1, 100), (10, 10)])
def test_h2load_and_nghttpd_with_many_streams_at_once(stage: Stage, nghttpd: int, clients: int, streams: int) -> None:
    arguments = ("-n1000", f"-c{clients}", f"-m{streams}")
    run = lambda: _h2load(nghttpd, *arguments, path="/style")  # noqa: E731 a name for what is run
    stage.check(nghttpd, run, [Wanted("GET", "/style", 200, 0, 200)] * 1000)


def test_h2load_and_nginx_with_100_streams_at_once(stage: Stage, nginx: int) -> None:
    stage.check(
        nginx, lambda: _h2load(nginx, "-n1000", "-c1", "-m100", path="/"), [Wanted("GET", "/", 200, 0, 6)] * 1000
    )


PEER_REQUESTS = {
    "no body": [request("GET", f"/status/{status}") for status in (200, 204, 304, 404, 500)],
    "head": [request("HEAD", "/status/200")],
    "bodies": [request("GET", "/bytes/1"), request("GET", "/bytes/40000"), request("GET", "/bytes/16384?q")],
    "uploads": [request("POST", "/status/200", 1), request("PUT", "/bytes/5", 40_000), request("PATCH", "/x", 16_384)],
    "trailers": [request("GET", "/trailers"), request("POST", "/trailers", 3)],
    "early hints": [request("GET", "/hints")],
    "reset": [request("GET", "/reset"), request("GET", "/bytes/3")],
    "made up": made_up(60, 9),
}


@pytest.mark.parametrize("name", PEER_REQUESTS)
@pytest.mark.parametrize(("client", "server"), [("node", "node"), ("go", "go"), ("node", "go"), ("go", "node")])
def test_node_and_go(stage: Stage, client: str, server: str, name: str) -> None:
    requests = PEER_REQUESTS[name]
    port = stage.server(server)
    # Node writes each piece of each frame as a segment of one call, and 256 segments of a call are copied.
    concurrent = 20 if len(requests) > 20 else 1
    answers: list[dict[str, Any]] = []
    wanted: list[Wanted] = []

    def run() -> None:
        answers.extend(ask(stage.command(client), port, requests, concurrent))
        wanted.extend(_wanted(requests, answers))

    stage.check(port, run, wanted)
    assert len(answers) == len(requests)


def _wanted(requests: list[dict[str, Any]], answers: list[dict[str, Any]]) -> list[Wanted]:
    """What the logs must say: the requests as asked, the answers as the client got them."""
    got = {answer["path"]: answer for answer in answers}
    result = []
    for item in requests:
        answer = got[item["path"]]
        path = item["path"].partition("?")[0]
        label = "no_response" if answer["status"] is None else "complete"
        body = 0 if item["method"] == "HEAD" or answer["status"] in {204, 304} else answer["body"]
        result.append(Wanted(item["method"], path, answer["status"], item["body"], body, completeness=label))
    return result


def test_node_pushes(stage: Stage) -> None:
    port = stage.server("node")
    wanted = [Wanted("GET", "/push", 200, 0, 3), Wanted("GET", "/pushed", 200, 0, 7)]
    stage.check(port, lambda: ask(stage.command("node"), port, [request("GET", "/push")]), wanted)


MESSAGE_BYTES = 55  # 5 bytes of framing, 50 of message; a streaming server is asked with one byte


def _call(kind: str, method: str = "Echo", messages: int = 1, deadline: float | None = 20) -> dict[str, Any]:
    return {"kind": kind, "method": method, "messages": messages, "deadline": deadline}


def _grpc(name: str, up: int, down: int, status: int | None = 0, message: str | None = None) -> Wanted:
    path = f"/rover.test.Peer/{name}"
    if status is None:
        return Wanted("POST", path, None, up * MESSAGE_BYTES, 0, completeness="no_response")
    return Wanted("POST", path, 200, up * MESSAGE_BYTES, down, status, message)


GRPC = {
    "unary": ([_call("unary")], [_grpc("UnaryEcho", 1, 55)], [0]),
    "unary, again and again": ([_call("unary")] * 9, [_grpc("UnaryEcho", 1, 55)] * 9, [0] * 9),
    "error": ([_call("unary", "Fail")], [_grpc("UnaryFail", 1, 0, 5, "no café at 100%")], [5]),
    "unknown method": ([_call("unary", "Missing")], [_grpc("UnaryMissing", 1, 0, 12, "Method not found!")], [12]),
    "client streaming": ([_call("client", messages=7)], [_grpc("ClientEcho", 7, 5 + 7 * 50)], [0]),
    "server streaming": ([_call("server", messages=9)],
                         [Wanted("POST", "/rover.test.Peer/ServerEcho", 200, 6, 9 * MESSAGE_BYTES, 0)], [0]),
    "bidirectional": ([_call("bidi", messages=12)], [_grpc("BidiEcho", 12, 12 * 55)], [0]),
    "error after a message": ([_call("server", "FailLate", 3)],
                              [Wanted("POST", "/rover.test.Peer/ServerFailLate", 200, 6, 55, 8, "after one")], [8]),
    "twenty at once": ([_call("unary"), _call("bidi", messages=2)] * 20,
                     [_grpc("UnaryEcho", 1, 55), _grpc("BidiEcho", 2, 110)] * 20, [0] * 40),
}  # fmt: skip


@pytest.mark.parametrize("name", GRPC)
def test_grpcio(stage: Stage, name: str) -> None:
    requests, wanted, codes = GRPC[name]
    port = stage.server("grpc")
    got: list[int] = []
    concurrent = 20 if len(requests) > 20 else 1

    def run() -> None:
        got.extend(answer["code"] for answer in ask(stage.command("grpc"), port, requests, concurrent))

    stage.check(port, run, wanted)
    assert got == codes


def test_grpcio_past_its_deadline(stage: Stage) -> None:
    port = stage.server("grpc")
    since_ns = time.monotonic_ns()
    (answer,) = ask(stage.command("grpc"), port, [_call("unary", "Slow", deadline=0.3)], 1)
    assert answer["code"] == 4
    # The client resets the stream while the server, whose clock has run out too, may be saying so already.
    outcomes = [_grpc("UnarySlow", 1, 0, None), _grpc("UnarySlow", 1, 0, 4, "Deadline Exceeded")]
    for role in ROLES:
        (item,) = stage.wait_for(port, role, since_ns, 1)
        assert outcomes[0].key(item) in map(tuple, outcomes), item


@pytest.mark.parametrize("server", ["nginx", "go"])
@pytest.mark.parametrize("cut", [1, 9, 1000])
def test_a_rough_client_that_splits_pads_and_packs(
    stage: Stage, request: pytest.FixtureRequest, server: str, cut: int
) -> None:
    port = request.getfixturevalue("nginx") if server == "nginx" else stage.server(server)
    statuses: list[int] = []
    wanted = [Wanted("POST", f"/rough/{number}", 404, number, None) for number in range(8)]
    if server == "nginx":
        wanted = [Wanted("POST", f"/rough/{number}", 200, number, 6) for number in range(8)]
    stage.check(port, lambda: statuses.extend(rough_requests(port, 8, cut)), wanted, "rough.test")
    assert statuses == [200 if server == "nginx" else 404] * 8


def test_at_the_end_each_server_says_what_its_side_s_logs_say(stage: Stage) -> None:
    for name, (port, served) in stage.stopped().items():
        if name == "grpc":
            continue
        logged = Counter(
            (i["method"], i["path"], i["host"], i["request_body_bytes"], i["status"])
            for i in stage.logged(port, "server")
        )
        said = Counter((s["method"], s["path"], s["host"], s["request_body"], s["status"]) for s in served)
        assert logged == said, name
        assert served
    assert stage.agent.stop() == 0
    totals = stage.agent.wait_for_event("access_log_totals")
    assert totals["imbalance"] == 0, json.dumps(totals)
