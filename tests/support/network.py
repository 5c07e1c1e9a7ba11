# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of the tests' own, and programs in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support import talk

if TYPE_CHECKING:
    from collections.abc import Iterator


def missing_tools() -> str:
    """Why there can be no network of our own, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in ("ip", "nft", "sysctl") if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    return ""


def run(command: str, *more: str, text: str = "") -> None:
    """Runs a command, `more` being arguments with spaces; what it says goes into the error if it fails."""
    done = subprocess.run([*command.split(), *more], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


class Network:
    """Namespaces by short name; they and all that runs in them end with the context.

    Args:
        prefix: makes their names this test's own.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}{os.getpid()}"
        self._stack = ExitStack()
        self._links = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _folder(self) -> str:
        if not self._links:
            self._links = self._stack.enter_context(tempfile.TemporaryDirectory())
        return self._links

    def _full(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def add(self, *names: str) -> None:
        """Makes namespaces with a loopback interface that is up."""
        for name in names:
            run(f"ip netns add {self._full(name)}")
            self._stack.callback(run, f"ip netns del {self._full(name)}")
            run(f"ip -n {self._full(name)} link set lo up")

    def join(self, first: str, address: str, second: str, other: str) -> None:
        """A cable between two namespaces, with an address at each end, such as 10.9.0.1/24."""
        names = (f"to-{second}", f"to-{first}")
        peer = f"peer name {names[1]} netns {self._full(second)}"
        run(f"ip link add {names[0]} netns {self._full(first)} type veth {peer}")
        for where, name, what in ((first, names[0], address), (second, names[1], other)):
            run(f"ip -n {self._full(where)} addr add {what} dev {name} {'nodad' if ':' in what else ''}")
            run(f"ip -n {self._full(where)} link set {name} up")

    def route(self, name: str, via: str) -> None:
        """The namespace's default route."""
        run(f"ip -n {self._full(name)} route add default via {via}")

    def set(self, name: str, setting: str) -> None:
        """Sets a sysctl of a namespace, such as net.ipv4.ip_forward=1."""
        run(f"ip netns exec {self._full(name)} sysctl -qw", setting)

    def rules(self, name: str, text: str) -> None:
        """Loads nftables rules in a namespace."""
        run(f"ip netns exec {self._full(name)} nft -f -", text=text)

    def path(self, name: str) -> str:
        """Where a namespace is kept."""
        return f"/run/netns/{self._full(name)}"

    def inside(self, name: str, *command: str) -> list[str]:
        """A command that runs another one in a namespace."""
        return ["ip", "netns", "exec", self._full(name), *command]

    def start(self, namespace: str, *arguments: object, name: str = "") -> subprocess.Popen[str]:
        """Starts `tests.support.talk` in a namespace; returns once it is ready.

        Args:
            namespace: where.
            arguments: the program's.
            name: a link to the program to start it by, for who is told by his command line.
        """
        program = talk.PATH
        if name:
            program = Path(self._folder()) / name
            if not program.exists():
                program.symlink_to(talk.PATH)
        command = self.inside(namespace, sys.executable, str(program), *map(str, arguments))
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.callback(end, process)
        assert process.stdout is not None
        assert process.stdout.readline() in {"ready\n", "open\n"}
        return process

    @contextmanager
    def serving(self, namespace: str, *arguments: object, name: str = "") -> Iterator[subprocess.Popen[str]]:
        """A server that ends with the context."""
        process = self.start(namespace, "serve", *arguments, name=name)
        try:
            yield process
        finally:
            end(process)

    def call(self, name: str, *arguments: object) -> dict[str, int]:
        """Makes connections and requests; returns the server's pid by path."""
        return said(self.start(name, "call", *arguments))


def said(client: subprocess.Popen[str]) -> dict[str, int]:
    """Lets a started client go on; returns the server's pid by path."""
    output, _ = client.communicate("\n", timeout=120)
    return dict(json.loads(output))


def end(process: subprocess.Popen[str]) -> None:
    """Kills a program and those it has forked."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    process.kill()
    for child in children.stdout.split():
        os.kill(int(child), 9)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
