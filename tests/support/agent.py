# SPDX-License-Identifier: Apache-2.0
"""The whole agent as a process, for end-to-end tests: started with a configuration, watched through what it writes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]
START_S = 150.0  # a build on shared cores takes a minute
ROVER_HOST = str(Path(sys.executable).parent / "rover-host")


class Agent:
    """`rover-host --modules access_log` with a folder of its own.

    Args:
        folder: for the feed socket and output files.
        outputs: value of access_log.outputs.
        settings: more `key=value` texts.
        command: what rover-host is told, before all settings.
        stdout: descriptor that becomes its standard output; None: the file `console`.
    """

    def __init__(
        self,
        folder: Path,
        outputs: str = "jsonl",
        *settings: str,
        command: Sequence[str] = ("--modules", "access_log"),
        stdout: int | None = None,
    ) -> None:
        self._stdout = stdout
        self._command = command
        self.jsonl = folder / "access.jsonl"
        self.console = folder / "console.txt"
        self._settings = [
            "access_log.active=true",
            f"access_log.outputs={outputs}",
            f"access_log.jsonl.path={self.jsonl}",
            f"process_discovery.feed.socket={folder}/feed.sock",
            "process_discovery.local.active=true",
            *settings,
        ]
        self.events: list[dict[str, Any]] = []
        self.text: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._changed = threading.Condition()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._process is not None and self._process.poll() is None:
                self.stop()
        finally:
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns once the access log has started."""
        command = [ROVER_HOST, *self._command]
        for setting in self._settings:
            command += ["--set", setting]
        with self.console.open("w") as console:
            stdout = console if self._stdout is None else self._stdout
            self._process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for_event("access_log_started", START_S)

    def stop(self, timeout_s: float = 40) -> int:
        """SIGTERM, and the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 40) -> int:
        """Waits for its end; returns the exit code."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        if self._reader is not None:
            self._reader.join(5)
        assert "Traceback (most recent call last):\n" not in self.text, "".join(self.text)
        return code

    def kill(self) -> None:
        """SIGKILL for the agent and everything it started, and waits for their ends."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            for one in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(started, 10)
        self._process.wait(10)

    def wait_for_event(self, name: str, timeout_s: float = 30) -> dict[str, Any]:
        """The first event of this name, waiting for it."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._find(name) or self._ended(), timeout_s)
        event = self._find(name)
        assert event is not None, f"no {name} (waited: {found}): {''.join(self.text[-40:])}"
        return event

    def exchanges(self) -> Iterator[dict[str, Any]]:
        """Exchanges written so far."""
        return (item for item in self.items() if item["kind"] == "exchange")

    def items(self) -> Iterator[dict[str, Any]]:
        """All lines written so far; one being written is left out."""
        if not self.jsonl.exists():
            return
        with self.jsonl.open() as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)

    def wait_for_exchanges(
        self, wanted: Callable[[dict[str, Any]], bool], count: int = 1, timeout_s: float = 15
    ) -> list[dict[str, Any]]:
        """At least `count` exchanges that are wanted; a file cannot be awaited, so it is read every 20 ms."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = [item for item in self.exchanges() if wanted(item)]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} of {count} exchanges after {timeout_s} s: {found[-3:]}"
            time.sleep(0.02)

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _find(self, name: str) -> dict[str, Any] | None:
        return next((event for event in self.events if event.get("event") == name), None)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.text.append(line)
                if line.startswith("{"):
                    self.events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


def oap_settings(address: str) -> tuple[str, ...]:
    """Settings that send to an OAP double, whose own side of that traffic is not to be logged."""
    return (f"core.backend.addr={address}", "process_discovery.local.exclude=cmdline~=tests.support.oap")


def only_with(port: int) -> str:
    """The setting that watches only the server on `port`, and clients whose command line names it: counts are exact."""
    return f"process_discovery.local.include=port={port},cmdline~=:{port}\\b"


def needs_bpf() -> str:
    """Why BPF tests cannot run here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "the kernel has no BTF"
    return ""
