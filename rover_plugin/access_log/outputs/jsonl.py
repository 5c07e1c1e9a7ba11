# SPDX-License-Identifier: Apache-2.0
"""Output `jsonl`: one JSON object a line, to a file or standard output."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.access_log.outputs.lines import opening
from rover_plugin.errors import RoverError
from rover_plugin.telemetry.ledger import Logs, standing

if TYPE_CHECKING:
    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.telemetry.counters import Counters
    from rover_plugin.telemetry.ledger import Standing

log = structlog.get_logger(__name__)

_BUFFER_BYTES: Final = 1 << 18
_LOG_PERIOD_S: Final = 10.0


class JsonLinesOutput:
    """Writes lines, at least every tick.

    Args:
        path: file to append to, or "-" for standard output.

    Raises:
        RoverError: the file cannot be opened.
    """

    name = "jsonl"
    encoding = "json"

    def __init__(self, path: str, counters: Counters) -> None:
        self._counters = counters
        if path == "-":
            self._descriptor = os.dup(sys.stdout.fileno())
        else:
            try:
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise RoverError(
                    f"cannot write access logs to {path}: {error.strerror}",
                    hint="set access_log.jsonl.path to a file in a writable directory, or to - for standard output",
                    path=path,
                ) from error
        self._parts: list[bytes] = []
        self._size = 0
        self._kernel_logs = 0
        self._protocol_logs = 0
        self._complained_at = float("-inf")

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        """The beginning of the object."""
        return opening(connection)

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        """Buffers one line."""
        self._parts.append(message)
        self._size += len(message) + 1
        self._kernel_logs += kernel_logs
        self._protocol_logs += protocol_logs
        if self._size >= _BUFFER_BYTES:
            self.tick()

    def standing(self) -> Standing:
        """What is not written yet is held."""
        return standing(self._counters, self.name, Logs(self._kernel_logs, self._protocol_logs))

    def tick(self) -> None:
        """Writes what is buffered."""
        if not self._parts:
            return
        self._parts.append(b"")
        data = memoryview(b"\n".join(self._parts))
        counts = {"kernel": self._kernel_logs, "protocol": self._protocol_logs}
        self._parts, self._size, self._kernel_logs, self._protocol_logs = [], 0, 0, 0
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self._lost(counts, error)
            return
        for unit, count in counts.items():
            self._counters.add("logs_exported", count, output="jsonl", unit=unit)

    def close(self, deadline_s: float) -> None:  # noqa: ARG002 a file needs no deadline
        """Writes what is buffered and closes the file."""
        self.tick()
        os.close(self._descriptor)

    def _lost(self, counts: dict[str, int], error: OSError) -> None:
        # A part may have been written: better to count a log that is there as lost than the other way round.
        reason = "closed_pipe" if isinstance(error, BrokenPipeError) else "write_failed"
        for unit, count in counts.items():
            self._counters.add("logs_lost", count, output="jsonl", unit=unit, reason=reason)
        now = time.monotonic()
        if now - self._complained_at >= _LOG_PERIOD_S:
            self._complained_at = now
            log.warning("jsonl_write_failed", error=error.strerror, **counts)
