# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 servers and clients that say themselves what they read and wrote."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parent
_WAIT_S = 10.0


@dataclass(frozen=True)
class Said:
    """One exchange as a peer tells it; `None` is what it cannot tell."""

    method: str
    path: str
    host: str | None
    status: int | None
    request_body: int
    response_body: int
    request_header: int | None = None
    response_header: int | None = None
    completeness: str = "complete"

    def but(self, **changes: Any) -> Said:
        """The same with other fields."""
        return replace(self, **changes)


def program(name: str) -> str:
    """Path of a program, or skips the test."""
    path = shutil.which(name) or shutil.which(name, path="/usr/local/go/bin:/usr/sbin:/usr/bin:/usr/local/bin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


class ReportingServer:
    """A server process that prints its port and then one JSON line a request."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._said: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def reports(self, name: str, count: int) -> list[dict[str, Any]]:
        """What the server says of the scenario's requests."""

        def found() -> list[dict[str, Any]]:
            return [item for item in self._said if f"/{name}/" in item["target"]]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count, _WAIT_S)
        return found()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._said.append(json.loads(line))
                self._changed.notify_all()


class ScriptedServer:
    """Answers each connection with one function, in a thread; for what no well-behaved server does."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(_WAIT_S)

    def _serve(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        with peer:
            peer.settimeout(_WAIT_S)
            self._answer(peer)


def read_until(peer: socket.socket, end: bytes) -> bytes:
    """Reads on until what was read ends so."""
    data = b""
    while not data.endswith(end):
        part = peer.recv(65_536)
        assert part, data
        data += part
    return data


_WRITE_OUT = (
    '{"method":"%{method}","url":"%{url_effective}","status":%{http_code},"head":%{size_header},'
    '"received":%{size_download},"asked":%{size_request},"sent":%{size_upload}}\n'
)


def curl(*arguments: str, urls: tuple[str, ...], interim: int = 0) -> list[Said]:
    """What curl says of its transfers, one a URL.

    Args:
        arguments: for each of them.
        urls: all in one process, one after the other.
        interim: header bytes of interim responses, which curl adds to the final one's.
    """
    command = [program("curl"), "-sS"]
    for number, url in enumerate(urls):
        command += [*(["--next"] if number else []), "-o", "/dev/null", "-w", _WRITE_OUT, *arguments, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    said = []
    for item in map(json.loads, done.stdout.splitlines()):
        _, _, host, *path = item["url"].split("?")[0].split("/")
        said.append(
            Said(
                item["method"],
                "/" + "/".join(path),
                host,
                item["status"],
                item["sent"],
                item["received"],
                # curl counts content that it sends together with the header section as part of the latter.
                item["asked"] - (item["sent"] if item["asked"] > item["sent"] else 0),
                item["head"] - interim,
            )
        )
    return said


def talk(port: int, *parts: bytes, until: bytes | None = None) -> bytes:
    """A client by hand: sends parts, each as one call, then reads to the end of the stream or of what is expected."""
    with socket.create_connection(("127.0.0.1", port), _WAIT_S) as client:
        for part in parts:
            client.sendall(part)
        if until is not None:
            return read_until(client, until)
        client.shutdown(socket.SHUT_WR)
        data = b""
        while part := client.recv(65_536):
            data += part
        return data
