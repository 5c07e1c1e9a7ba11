# SPDX-License-Identifier: Apache-2.0
"""Real HTTP/2 servers and clients as processes of their own, which say what they served and got.

A server prints `{"port": …}`, then for each request what it received and answered; it ends when its standard input
does. It answers by path: `/status/N` with that status and no body, `/bytes/N` with so many bytes, `/pieces/N` (Go) with
so many in pieces of 100 000, `/trailers` with ten bytes and trailers, `/hints` with a 103 before 200, `/push` (Node)
with a pushed `/pushed`, `/reset` with RST_STREAM, anything else with 404. A client takes a list of requests on its
standard input and prints what it got for each.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.support.http2_conversation import seeded, traceparent

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).parent
Line = dict[str, Any]


def node_command() -> list[str]:
    """Node's peer, or skips the test."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    return [node, str(FOLDER / "peer.js")]


def go_command(folder: Path) -> list[str]:
    """Go's peer, built into `folder`, or skips the test."""
    go = shutil.which("go", path="/usr/local/go/bin:/usr/bin:/usr/local/bin")
    if go is None:
        pytest.skip("go is not installed")
    binary = folder / "gopeer"
    subprocess.run([go, "build", "-o", str(binary), "."], cwd=FOLDER, check=True)
    return [str(binary)]


def grpc_command() -> list[str]:
    """grpcio's peer."""
    return [sys.executable, str(FOLDER / "grpc_peer.py")]


def java_command(folder: Path) -> list[str]:
    """Undertow's peer (a server only), its libraries fetched into `folder`, or skips the test."""
    java, maven = shutil.which("java"), shutil.which("mvn")
    if java is None or maven is None:
        pytest.skip("java or mvn is not installed")
    copy = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
    pom = str(FOLDER / "java" / "pom.xml")
    # What was fetched before is there without a network.
    for offline in (["-o"], []):
        command = [maven, "-q", "-B", *offline, "-f", pom, copy, f"-DoutputDirectory={folder}/java"]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=240).returncode == 0:
            return [java, "-Xmx256m", "-cp", f"{folder}/java/*", str(FOLDER / "java" / "Peer.java")]
    pytest.skip("Undertow cannot be fetched from Maven Central")


class Server:
    """A peer's server.

    Attributes:
        port: on 127.0.0.1.
        served: what it says it received and answered, once it has ended.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = [*command, "server"]
        self.port = 0
        self.served: list[Line] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = json.loads(self._process.stdout.readline())["port"]
        return self

    def __exit__(self, *_: object) -> None:
        out, _ = self._process.communicate("", timeout=20)
        self.served = [json.loads(line) for line in out.splitlines()]


def ask(command: Sequence[str], port: int, requests: list[Line], concurrent: int = 1) -> list[Line]:
    """A peer's client: what it got, in the order the answers came."""
    arguments = [*command, "client", str(port), str(concurrent)]
    done = subprocess.run(
        arguments, input=json.dumps(requests), stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def request(method: str, path: str, body: int = 0, headers: dict[str, str] | None = None) -> Line:
    """One request for a client."""
    return {"method": method, "path": path, "body": body, "headers": headers or {}}


def made_up(count: int, seed: int) -> list[Line]:
    """Requests as a small service might see them: some paths again and again, some never, a trace on most."""
    source = seeded(seed)
    result = []
    for number in range(count):
        headers = {"user-agent": "made-up/1.0", "accept": "application/json"}
        if source.random() < 0.8:
            headers["traceparent"] = traceparent(source)
        if source.random() < 0.3:
            headers["cookie"] = f"session={source.randrange(10**6)}"
        path = source.choice(
            (
                f"/status/{source.choice((200, 204, 301, 404, 500))}",
                f"/bytes/{source.choice((1, 80, 300))}?page={source.randrange(20)}",
                f"/users/{number}",
                "/trailers",
            )
        )
        method = source.choice(("GET", "GET", "GET", "POST", "DELETE"))
        result.append(request(method, path, source.randrange(1, 60) if method == "POST" else 0, headers))
    return result
