# SPDX-License-Identifier: Apache-2.0
"""The OAP double in a process of its own: can be killed and restarted on the same port under load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.oap_tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


class OapProcess:
    """Counters continue over restarts and survive `kill`.

    Args:
        folder: where report.json and tally.bin are kept.
        arguments: more options of `python -m tests.support.oap`; may be changed between two starts.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.tally_path = folder / "tally.bin"
        self.report_path = folder / "report.json"
        self.tally = Tally(self.tally_path)
        self.port = 0
        self.arguments = arguments
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns once it listens: on a free port the first time, on the same one ever after."""
        files = ["--report", str(self.report_path), "--tally", str(self.tally_path)]
        command = [sys.executable, "-m", "tests.support.oap", "--port", str(self.port), *files, *self.arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("listening "), "the OAP double did not start"
        self.port = int(line.split()[1])

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        """Asks `condition` (about `tally`) every 20 ms: another process cannot signal a change of a mapped file."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {self.tally.as_dict()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: streams are cut without a word."""
        assert self._process is not None
        self._process.kill()
        self._reap()

    def stop(self) -> dict[str, Any]:
        """SIGTERM; returns the final report."""
        assert self._process is not None
        self._process.terminate()
        self._reap()
        return json.loads(self.report_path.read_text(encoding="utf-8"))

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
