# SPDX-License-Identifier: Apache-2.0
"""Drives mover.c, the small program that moves bytes by every system call and tells the truth about it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SOURCE = Path(__file__).with_name("mover.c")


@dataclass(frozen=True)
class Moved:
    """One call as its caller saw it: bytes returned, bytes that can be captured, moments before and after."""

    size: int
    visible: int
    enter_ns: int
    exit_ns: int


@dataclass
class Truth:
    """What one scenario did; calls and unseen bytes of the sender (`s`, the client) and receiver (`r`, the server)."""

    client_port: int = 0
    server_port: int = 0
    calls: dict[str, list[Moved]] = field(default_factory=lambda: {"s": [], "r": []})
    unseen: dict[str, int] = field(default_factory=lambda: {"s": 0, "r": 0})
    failed: str = ""


def pattern(size: int) -> bytes:
    """The first bytes of every stream."""
    return bytes((at * 2654435761 >> 11) & 0xFF for at in range(size))


def build(source: Path, folder: Path, *flags: str) -> Path:
    """Compiles a C program."""
    program = folder / source.stem
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", program, source, "-lpthread", *flags], check=True)
    return program


class Mover:
    """The program while it runs."""

    def __init__(self, program: Path, wrapper: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*wrapper, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(10) == 0

    def move(
        self,
        family: int,
        sender: str,
        receiver: str,
        shape: str,
        size: int,
        *,
        blocking: bool = True,
        ready: Callable[[], object] | None = None,
    ) -> Truth:
        """Runs one scenario; calls `ready` once it is connected, before the first byte."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(
            f"{family} {sender} {receiver} {shape} {int(blocking)} {size} {int(ready is not None)}\n"
        )
        truth = Truth()
        for line in self._process.stdout:
            kind, *words = line.split()
            if kind == "end":
                return truth
            if kind == "ready" and ready:
                ready()
                self._process.stdin.write("go\n")
            elif kind == "ports":
                truth.client_port, truth.server_port = map(int, words)
            elif kind == "call":
                truth.calls[words[0]].append(Moved(*map(int, words[1:])))
            elif kind == "unseen":
                truth.unseen[words[0]] += int(words[1])
            else:
                truth.failed = line
        message = "the mover ended early"
        raise AssertionError(message)
