# SPDX-License-Identifier: Apache-2.0
"""Real clients and servers of HTTP/1 under the real agent: the log of both ends says what both ends say themselves.

Each scenario asks for paths below its own name, so that its exchanges are found among the others'.
"""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import subprocess
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.agent import Agent
from tests.support.http1_peers import (
    FOLDER,
    ReportingServer,
    Said,
    ScriptedServer,
    curl,
    program,
    read_until,
    talk,
)
from tests.support.servers import Nginx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CONTINUE = len(b"HTTP/1.1 100 Continue\r\n\r\n")
_LOCATIONS = """
    large_client_header_buffers 4 64k;
    location / { return 200 "hello\\n"; }
    location ~ /status/204$ { return 204; }
    location ~ /status/302$ { return 302 /elsewhere; }
    location ~ /status/500$ { return 500; }
    location ~ /file$ { rewrite ^ /files/300k break; }
    location ~ /gzip$ { gzip on; gzip_min_length 1; gzip_types *; rewrite ^ /files/300k break; }
"""


@dataclass
class World:
    """The agent, and the servers that were started."""

    agent: Agent
    folder: Path
    nginx: Nginx
    older: socket.socket  # a connection to it that is older than the agent

    def node(self) -> ReportingServer:
        return self._started("node", lambda: (program("node"), str(FOLDER / "server.mjs")))

    def go(self) -> ReportingServer:
        return self._started("go", lambda: (self.go_program(),))

    def go_program(self) -> str:
        path = self.folder / "peer"
        if not path.exists():
            subprocess.run([program("go"), "build", "-o", str(path), str(FOLDER / "peer.go")], check=True)
        return str(path)

    def _started(self, name: str, command: Callable[[], tuple[str, ...]]) -> ReportingServer:
        if name not in self.servers:
            self.servers[name] = self.stack.enter_context(ReportingServer(*command()))
        return self.servers[name]

    def __post_init__(self) -> None:
        self.servers: dict[str, ReportingServer] = {}
        self.stack = ExitStack()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("http1")
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)
    with Nginx(folder / "nginx", locations=_LOCATIONS) as nginx:
        (nginx.files / "300k").write_bytes(b"f" * 300_000)
        older = socket.create_connection(("127.0.0.1", nginx.port))
        ask(older, "/before/plain")
        # Room for bursts while other tests keep this host busy: a lost record would be labelled, and not be equal.
        room = "access_log.protocol_analyze.per_cpu_buffer=8MB"
        with Agent(folder, "jsonl", "access_log.flush.period=100ms", room) as agent:
            world = World(agent, folder, nginx, older)
            with world.stack, older:
                yield world


def ask(connection: socket.socket, path: str) -> Said:
    """One request and its answer on a connection that stays."""
    request = f"GET {path} HTTP/1.1\r\nHost: o\r\n\r\n".encode()
    connection.sendall(request)
    answer = http.client.HTTPResponse(connection, method="GET")
    answer.begin()
    body = answer.read()
    return Said("GET", path, "o", answer.status, 0, len(body), len(request))


def _logged(item: dict[str, Any], wanted: Said) -> Said:
    """An exchange of the log in a peer's words; what the peer cannot tell is left out."""
    return Said(
        item["method"],
        item["path"],
        item["host"] if wanted.host is not None else None,
        item["status"],
        item["request_body_bytes"],
        item["response_body_bytes"],
        item["request_header_bytes"] if wanted.request_header is not None else None,
        item["response_header_bytes"] if wanted.response_header is not None else None,
        item["completeness"],
    )


def check(world: World, name: str, said: list[Said], roles: tuple[str, ...] = ("client", "server")) -> None:
    """Each end's log has these exchanges, in this order, and no others."""
    found = world.agent.wait_for_exchanges(lambda item: f"/{name}/" in (item["path"] or ""), len(said) * len(roles))
    for role in roles:
        mine = sorted((item for item in found if item["role"] == role), key=lambda item: item["start_ns"])
        assert [_logged(item, wanted) for item, wanted in zip(mine, said, strict=True)] == said, role
        assert mine[0]["calls"]  # of pipelined messages, a call belongs to the first
        assert all(item["start_ns"] <= item["end_ns"] for item in mine)
    assert len(found) == len(said) * len(roles)


def check_reports(reports: list[dict[str, Any]], said: list[Said]) -> None:
    """The server says the same as the client."""
    assert [
        (item["method"], item["target"].split("?")[0], item["host"], item["status"], item["received"], item["sent"])
        for item in reports
    ] == [(one.method, one.path, one.host, one.status, one.request_body, one.response_body) for one in said]


# -- curl and nginx --

NGINX = {
    "http10": (("--http1.0",), ("plain",)),
    "get": ((), ("plain",)),
    "head": (("--head",), ("file",)),
    "keep-alive": ((), ("one", "two", "three", "file", "four")),
    "connection-close": (("-H", "Connection: close"), ("plain",)),
    "range": (("-r", "1000-1999"), ("file",)),
    "last-bytes": (("-r", "-500"), ("file",)),
    "unsatisfiable": (("-r", "999999-"), ("file",)),
    "not-modified": (("-z", "2099-01-01"), ("file",)),
    "gzip": (("-H", "Accept-Encoding: gzip"), ("gzip",)),
    "no-content": ((), ("status/204",)),
    "redirect": ((), ("status/302",)),
    "server-error": ((), ("status/500",)),
    "sendfile": ((), ("file", "file")),
    "put-refused": (("-X", "PUT", "-d", "hello"), ("file",)),
    "delete": (("-X", "DELETE"), ("plain",)),
    "report": (("-X", "REPORT", "-d", "<x/>"), ("plain",)),
    "large-request-head": (("-H", "X-Large: " + "v" * 16_000), ("plain", "plain")),
    "many-fields": (tuple(part for n in range(60) for part in ("-H", f"X-{n}: {'v' * 60}")), ("plain",)),
    "query": ((), ("plain?a=/b/c#d",)),
    "percent": ((), ("a%20b%2Fc",)),
}


@pytest.mark.parametrize("name", NGINX)
def test_curl_and_nginx(world: World, name: str) -> None:
    arguments, paths = NGINX[name]
    said = curl(*arguments, urls=tuple(world.nginx.url(f"/{name}/{path}") for path in paths))
    check(world, name, said)


def test_files_on_a_connection_that_is_older_than_the_agent(world: World) -> None:
    said = [ask(world.older, f"/older/{name}") for name in ("file", "plain", "file", "file", "plain")]
    assert [one.response_body for one in said] == [300_000, 6, 300_000, 300_000, 6]
    check(world, "older", said)


@pytest.mark.parametrize(
    ("status", "framing"),
    [(401, "Content-Length: 12"), (417, "Content-Length: 1000000"), (413, "Transfer-Encoding: chunked")],
)
def test_content_that_was_declined(world: World, status: int, framing: str) -> None:
    """The next request of the same connection comes where the content would have been."""

    def serve(peer: socket.socket) -> None:
        read_until(peer, b"\r\n\r\n")
        peer.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
        read_until(peer, b"\r\n\r\n")
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        peer.recv(1)

    name = f"declined-{status}"
    offer = f"POST /{name}/offer HTTP/1.1\r\nHost: d\r\n{framing}\r\nExpect: 100-continue\r\n\r\n".encode()
    following = f"GET /{name}/next HTTP/1.1\r\nHost: d\r\n\r\n".encode()
    with ScriptedServer(serve) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        for request, end in ((offer, b"\r\n\r\n"), (following, b"ok")):
            client.sendall(request)
            read_until(client, end)
    said = [
        Said("POST", f"/{name}/offer", "d", status, 0, 0, len(offer)),
        Said("GET", f"/{name}/next", "d", 200, 0, 2, len(following)),
    ]
    check(world, name, said)


def test_a_response_that_is_cut_says_by_whom(world: World) -> None:
    def serve(peer: socket.socket) -> None:
        read_until(peer, b"\r\n\r\n")
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"a" * 500)

    with ScriptedServer(serve) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /cut/x HTTP/1.1\r\nHost: c\r\n\r\n")
        while client.recv(65_536):
            pass
    found = world.agent.wait_for_exchanges(lambda item: item["path"] == "/cut/x", 2)
    assert {(item["role"], item["completeness"], item["ended_by"]) for item in found} == {
        ("client", "truncated", "remote"),
        ("server", "truncated", "local"),
    }
    assert [item["response_body_bytes"] for item in found] == [500, 500]


def test_curl_waits_for_100_continue_of_nginx(world: World) -> None:
    body = world.folder / "60k"
    body.write_bytes(b"b" * 60_000)
    arguments = ("-H", "Expect: 100-continue", "--data-binary", f"@{body}")
    said = curl(*arguments, urls=(world.nginx.url("/expect/plain"),))
    # nginx does not read what it does not need before it answers `return`.
    check(world, "expect", [one.but(response_header=None) for one in said])
    assert (said[0].status, said[0].request_body) == (200, 60_000)


def test_a_proxy_is_asked_in_absolute_form(world: World) -> None:
    proxy = f"http://127.0.0.1:{world.nginx.port}"
    said = curl("-x", proxy, urls=("http://elsewhere.example/absolute/plain?q",))
    assert said[0].host == "elsewhere.example"
    check(world, "absolute", said)


def test_asterisk_form(world: World) -> None:
    answer = talk(world.nginx.port, b"OPTIONS * HTTP/1.1\r\nHost: asterisk\r\nConnection: close\r\n\r\n")
    found = world.agent.wait_for_exchanges(lambda item: item["host"] == "asterisk", 2)
    status = int(answer.split()[1])
    assert {(item["method"], item["path"], item["status"]) for item in found} == {("OPTIONS", "*", status)}


def test_requests_pipelined_to_nginx_in_one_call(world: World) -> None:
    requests = [
        b"%s /pipelined/%d HTTP/1.1\r\nHost: p\r\n%s\r\n" % (method, n, b"Connection: close\r\n" if n == 4 else b"")
        for n, method in enumerate((b"GET", b"HEAD", b"GET", b"HEAD", b"GET"))
    ]
    answer = talk(world.nginx.port, b"".join(requests))
    assert answer.count(b"HTTP/1.1 200") == 5
    said = [
        Said("HEAD" if n % 2 else "GET", f"/pipelined/{n}", "p", 200, 0, 0 if n % 2 else 6, len(request))
        for n, request in enumerate(requests)
    ]
    check(world, "pipelined", said)


def test_bare_line_feeds_and_empty_lines(world: World) -> None:
    answer = talk(world.nginx.port, b"\r\n\r\nGET /bare/lf HTTP/1.1\nHost: b\nConnection: close\n\n")
    head = answer.index(b"\r\n\r\n") + 4
    check(world, "bare", [Said("GET", "/bare/lf", "b", 200, 0, len(answer) - head, None, head)])


# -- curl and Node --

NODE: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "node-keep-alive": ((), ("plain", "chunked", "plain"), 0),
    "node-head": (("--head",), ("plain", "chunked"), 0),
    "node-empty-chunked": ((), ("empty-chunked", "plain"), 0),
    "node-trailers": ((), ("trailers", "plain"), 0),
    "node-until-close": ((), ("until-close",), 0),
    "node-204": ((), ("204", "plain"), 0),
    "node-304": ((), ("304", "plain"), 0),
    "node-put": (("-X", "PUT", "-d", "x" * 3000), ("upload", "upload"), 0),
    "node-upload-100k": (("--data-binary", "@100k", "-H", "Expect:"), ("upload",), 0),
    "node-patch": (("-X", "PATCH", "-d", "x"), ("upload",), 0),
    "node-expect": (("-d", "x" * 2000, "-H", "Expect: 100-continue"), ("upload",), _CONTINUE),
    "node-expect-refused": (("-d", "x" * 2000, "-H", "Expect: 100-continue"), ("refused",), 0),
    "node-processing": ((), ("processing",), 2 * len(b"HTTP/1.1 102 Processing\r\n\r\n")),
    "node-hints": ((), ("hints",), len(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")),
}


@pytest.mark.parametrize("name", NODE)
def test_curl_and_node(world: World, name: str) -> None:
    arguments, paths, interim = NODE[name]
    server = world.node()
    (world.folder / "100k").write_bytes(b"b" * 100_000)
    arguments = tuple(part.replace("@100k", f"@{world.folder}/100k") for part in arguments)
    said = curl(*arguments, urls=tuple(server.url(f"/{name}/{path}") for path in paths), interim=interim)
    if name == "node-trailers":  # curl adds the trailer section's bytes
        said[0] = said[0].but(response_header=None)
    if name == "node-expect-refused":  # curl keeps its promise not to send it
        assert said[0].status == 417
    check_reports(server.reports(name, len(said)), said)
    check(world, name, said)


def test_heads_of_60_kilobytes_in_many_calls(world: World) -> None:
    fields = b"".join(b"X-%d: " % n + b"v" * 990 + b"\r\n" for n in range(60))
    request = b"GET /long-heads/x HTTP/1.1\r\n" + fields + b"Host: l\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 2\r\n\r\n"

    def serve(peer: socket.socket) -> None:
        left = len(request)
        while left:
            left -= len(peer.recv(min(left, 8000)))
        for at in range(0, len(head), 8000):
            peer.sendall(head[at : at + 8000])
        peer.sendall(b"ok")

    with ScriptedServer(serve) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        for at in range(0, len(request), 8000):
            client.sendall(request[at : at + 8000])
        left = len(head) + 2
        while left:
            left -= len(client.recv(min(left, 8000)))
    check(world, "long-heads", [Said("GET", "/long-heads/x", "l", 200, 0, 2, len(request), len(head))])


def test_a_head_that_one_call_carries_beyond_what_is_copied_of_a_call(world: World) -> None:
    server = world.node()
    said = curl(urls=tuple(server.url(f"/large-head/{path}") for path in ("large-head", "plain")))
    found = world.agent.wait_for_exchanges(lambda item: "/large-head/" in (item["path"] or ""), 4)
    for role in ("client", "server"):
        large, plain = sorted((item for item in found if item["role"] == role), key=lambda item: item["start_ns"])
        assert (large["path"], large["status"]) == (said[0].path, 200)
        assert large["completeness"] in {"complete", "truncated"}
        assert (large["completeness"] == "complete") == (large["response_header_bytes"] == said[0].response_header)
        assert _logged(plain, said[1]) == said[1]


def test_a_chunked_upload_in_several_calls(world: World) -> None:
    server = world.node()
    head = b"POST /chunked-upload/upload HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    parts = [head, b"5;ext=1\r\nhello\r\n", b"3E8\r\n" + b"x" * 1000 + b"\r\n", b"0\r\nTrailer: t\r\n\r\n"]
    answer = talk(server.port, *parts)
    said = [Said("POST", "/chunked-upload/upload", "c", 200, 1005, 6, len(head), answer.index(b"\r\n\r\n") + 4)]
    check_reports(server.reports("chunked-upload", 1), said)
    check(world, "chunked-upload", said)


def test_an_early_response_during_an_upload(world: World) -> None:
    server = world.node()
    head = b"POST /early/early HTTP/1.1\r\nHost: e\r\nContent-Length: 20000\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head + b"u" * 5000)
        answer = read_until(client, b"large")
        client.sendall(b"u" * 15_000)
        assert client.recv(1000) == b""
    # Whether the server reads the rest before it closes is its affair; the client wrote it.
    said = Said("POST", "/early/early", "e", 413, 20_000, 5, len(head), answer.index(b"\r\n\r\n") + 4)
    found = world.agent.wait_for_exchanges(lambda item: item["path"] == "/early/early", 2)
    client_side = next(item for item in found if item["role"] == "client")
    assert _logged(client_side, said) == said
    server_side = next(item for item in found if item["role"] == "server")
    assert (server_side["status"], server_side["response_body_bytes"]) == (413, 5)


def test_a_request_that_is_abandoned(world: World) -> None:
    server = world.node()
    request = b"GET /abandoned/abandoned HTTP/1.1\r\nHost: a\r\n\r\n"
    assert talk(server.port, request) == b""
    check(
        world,
        "abandoned",
        [Said("GET", "/abandoned/abandoned", "a", None, 0, 0, len(request), completeness="no_response")],
    )


def test_web_socket_frames_are_calls_of_a_tunnel(world: World) -> None:
    server = world.node()
    request = (
        b"GET /websocket/echo HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        port = client.getsockname()[1]
        client.sendall(request)
        head = read_until(client, b"\r\n\r\n")
        for number in range(5):
            client.sendall(b"\x81\x82\0\0\0\0G%d" % number)
            read_until(client, b"G%d" % number)
    check(world, "websocket", [Said("GET", "/websocket/echo", "w", 101, 0, 0, len(request), len(head))])

    def frames() -> int:
        calls = [item for item in world.agent.items() if item["kind"] == "call"]
        return sum(port in {item["local"]["port"], item["remote"]["port"]} and item.get("bytes") == 8 for item in calls)

    _await(lambda: frames() == 20, lambda: f"{frames()} of 20 calls carried frames")


def test_a_tunnel_by_connect(world: World) -> None:
    server = world.node()
    target = f"127.0.0.1:{world.nginx.port}"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        request = b"CONNECT %s HTTP/1.1\r\nHost: tunnel\r\n\r\n" % target.encode()
        client.sendall(request)
        read_until(client, b"established\r\n\r\n")
        client.sendall(b"GET /tunnelled/plain HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        answer = read_until(client, b"hello\n")
    found = world.agent.wait_for_exchanges(lambda item: item["method"] == "CONNECT" and item["host"] == target, 2)
    assert {(item["status"], item["path"], item["request_header_bytes"]) for item in found} == {(200, "", len(request))}
    # What goes through it is between the proxy and nginx, once.
    head = answer.index(b"\r\n\r\n") + 4
    check(world, "tunnelled", [Said("GET", "/tunnelled/plain", "t", 200, 0, 6, None, head)])


def test_pipelining_to_node_with_a_cut_in_the_middle(world: World) -> None:
    server = world.node()
    one = b"POST /cut/upload?1 HTTP/1.1\r\nHost: c\r\nContent-Length: 4\r\n\r\nbody"
    two = b"GET /cut/chunked HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n"
    answer = talk(server.port, one + two[:9], two[9:])
    assert answer.count(b"HTTP/1.1 200") == 2
    said = [Said("POST", "/cut/upload", "c", 200, 4, 6), Said("GET", "/cut/chunked", "c", 200, 0, 1003)]
    check_reports(server.reports("cut", 2), said)
    check(world, "cut", said)


# -- Go --


def test_gos_client_and_server(world: World) -> None:
    server = world.go()
    command = [world.go_program(), server.url(""), "go"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    said = [
        Said(item["method"], item["target"].split("?")[0], item["host"], item["status"], item["sent"], item["received"])
        for item in map(json.loads, done.stdout.splitlines())
    ]
    assert len(said) == 13
    check_reports(server.reports("go", len(said)), said)
    check(world, "go", said)


def test_gos_client_and_node(world: World) -> None:
    server = world.node()
    command = [world.go_program(), server.url(""), "go-node"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    said = [
        Said(item["method"], item["target"].split("?")[0], item["host"], item["status"], item["sent"], item["received"])
        for item in map(json.loads, done.stdout.splitlines())
    ]
    check_reports(server.reports("go-node", len(said)), said)
    check(world, "go-node", said)


def test_curl_and_go(world: World) -> None:
    server = world.go()
    paths = ("plain", "chunked", "large", "trailers", "204", "plain")
    said = curl(urls=tuple(server.url(f"/curl-go/{path}") for path in paths))
    said[3] = said[3].but(response_header=None)  # curl adds the trailer section's bytes
    check_reports(server.reports("curl-go", len(said)), said)
    check(world, "curl-go", said)


# -- Python --


class _Handler(http.server.BaseHTTPRequestHandler):
    """Closes to end its content, as HTTP/1.0 does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"part one, ")
        self.wfile.write(b"part two")

    def log_message(self, *_: object) -> None:
        pass


def test_pythons_client_and_server(world: World) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        client = http.client.HTTPConnection("127.0.0.1", port)
        client.request("GET", "/python/old", headers={"Accept": "*/*"})
        assert client.getresponse().read() == b"part one, part two"
        client.close()
        server.shutdown()
    check(world, "python", [Said("GET", "/python/old", f"127.0.0.1:{port}", 200, 0, 18)])


def test_folded_fields_and_repeated_lengths(world: World) -> None:
    request = b"POST /folded/x HTTP/1.1\r\nHost:\r\n folded\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"
    answer = b"HTTP/1.1 200 OK\r\nX-Fold: a\r\n b\r\nTransfer-Encoding: gzip,\r\n\tchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"

    def serve(peer: socket.socket) -> None:
        read_until(peer, b"abc")
        peer.sendall(answer)

    with ScriptedServer(serve) as server:
        talk(server.port, request, until=b"0\r\n\r\n")
    check(world, "folded", [Said("POST", "/folded/x", "folded", 200, 3, 2, len(request) - 3, answer.index(b"2\r\nok"))])


def test_many_interim_responses_and_the_final_one_in_a_single_call(world: World) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def serve(peer: socket.socket) -> None:
        read_until(peer, b"\r\n\r\n")
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 3 + answer)

    with ScriptedServer(serve) as server:
        talk(server.port, b"GET /interim/x HTTP/1.1\r\nHost: i\r\n\r\n", until=b"ok")
    check(world, "interim", [Said("GET", "/interim/x", "i", 200, 0, 2, None, len(answer) - 2)])


def test_a_head_that_comes_byte_by_byte(world: World) -> None:
    request = b"GET /slow/x HTTP/1.1\r\nHost: s\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def serve(peer: socket.socket) -> None:
        for _ in request:
            peer.recv(1)
        for byte in answer:
            peer.sendall(bytes((byte,)))

    with ScriptedServer(serve) as server:
        talk(server.port, *(bytes((byte,)) for byte in request), until=b"ok")
    check(world, "slow", [Said("GET", "/slow/x", "s", 200, 0, 2, len(request), len(answer) - 2)])


def test_two_responses_in_one_call(world: World) -> None:
    requests = [b"GET /together/%d HTTP/1.1\r\nHost: t\r\n\r\n" % number for number in range(2)]
    answers = [b"HTTP/1.1 20%d X\r\nContent-Length: %d\r\n\r\n" % (n, n + 1) + b"x" * (n + 1) for n in range(2)]

    def serve(peer: socket.socket) -> None:
        read_until(peer, requests[1])
        peer.sendall(b"".join(answers))

    with ScriptedServer(serve) as server:
        talk(server.port, *requests, until=answers[1])
    said = [
        Said("GET", f"/together/{n}", "t", 200 + n, 0, n + 1, len(requests[n]), len(answers[n]) - n - 1)
        for n in range(2)
    ]
    check(world, "together", said)


def upgrade_to_http2(peer: socket.socket) -> None:
    """A server's side of an upgrade (RFC 7540 §3.2)."""
    head = read_until(peer, b"\r\n\r\n")
    settings = next(line.split()[1] for line in head.split(b"\r\n") if line.startswith(b"HTTP2-Settings"))
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_upgrade_connection(settings)
    peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    bodiless = head.startswith(b"HEAD ")
    connection.send_headers(1, [(":status", "200"), ("server", "h2")], end_stream=bodiless)
    if not bodiless:
        connection.send_data(1, b"hello\n", end_stream=True)
    peer.sendall(connection.data_to_send())
    with suppress(ConnectionError):  # the client has what it wants and goes
        while data := peer.recv(65_536):
            connection.receive_data(data)
            peer.sendall(connection.data_to_send())


def test_curl_upgrades_to_http2(world: World) -> None:
    with ScriptedServer(upgrade_to_http2) as server:
        (said,) = curl("--http2", urls=(f"http://127.0.0.1:{server.port}/h2c/x",))
    assert (said.status, said.response_body) == (200, 6)
    found = world.agent.wait_for_exchanges(lambda item: item["path"] == "/h2c/x", 2)
    for item in found:
        assert (item["method"], item["status"], item["response_body_bytes"]) == ("GET", 200, 6)
        assert (item["protocol"], item["completeness"]) == ("http/2", "complete")


@pytest.mark.parametrize("client", ["curl", "java"])
def test_a_head_request_upgrades_to_http2(world: World, client: str) -> None:
    path = f"/h2c-head-{client}/x"
    with ScriptedServer(upgrade_to_http2) as server:
        url = f"http://127.0.0.1:{server.port}{path}"
        if client == "curl":
            assert curl("--http2", "--head", urls=(url,))[0].status == 200
        else:
            command = [program("java"), str(FOLDER / "Head.java"), url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout.split() == ["HTTP_2", "200"]
    found = world.agent.wait_for_exchanges(lambda item: item["path"] == path, 2)
    assert {(item["role"], item["method"], item["status"], item["completeness"]) for item in found} == {
        (role, "HEAD", 200, "complete") for role in ("client", "server")
    }
    of_these = {item["connection"] for item in found}
    assert len(world.agent.wait_for_exchanges(lambda item: item["connection"] in of_these, 2)) == 2


# -- not HTTP --


def test_openssls_traffic_is_tls_and_no_exchange(world: World) -> None:
    key, chain = world.folder / "key.pem", world.folder / "chain.pem"
    openssl = program("openssl")
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            key,
            "-out",
            chain,
            "-subj",
            "/CN=localhost",
        ],
        check=True,
        capture_output=True,
    )
    for version in ("-tls1_2", "-tls1_3"):
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        command = [openssl, "s_server", "-accept", str(port), "-key", key, "-cert", chain, "-www", version, "-quiet"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _await(lambda port=port: _listens(port), lambda: "openssl does not listen")
            done = subprocess.run(
                [program("curl"), "-sk", f"https://127.0.0.1:{port}/secret/x"],
                capture_output=True,
                check=True,
                timeout=30,
            )
            assert b"s_server" in done.stdout
        finally:
            server.terminate()
            server.wait(10)

        def lines(port: int = port) -> list[dict[str, Any]]:
            return [item for item in world.agent.items() if port in {item["local"]["port"], item["remote"]["port"]}]

        _await(lambda lines=lines: any(item["tls"] for item in lines()), lambda: "no connection is known as TLS")
        assert not any(item["kind"] == "exchange" for item in lines())


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _await(done: Callable[[], bool], complaint: Callable[[], str], timeout_s: float = 10) -> None:
    """What is written to a file cannot be awaited, so it is looked at every 20 ms."""
    waiting = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if done():
            return
        waiting.wait(0.02)
    pytest.fail(complaint())
