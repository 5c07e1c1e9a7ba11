# SPDX-License-Identifier: Apache-2.0
"""Output `jsonl`: one JSON object a line, to a file or standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rover_plugin.access_log.outputs.line_writer import LineWriter
from rover_plugin.access_log.outputs.lines import opening
from rover_plugin.access_log.outputs.targets import FileTarget, StreamTarget, is_standard_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.telemetry.counters import Counters
    from rover_plugin.telemetry.ledger import Standing


class JsonLinesOutput:
    """Writes lines, at least every tick.

    Args:
        path: file to append to, or "-" for standard output.
        on_gone, patient: see `LineWriter`.

    Raises:
        RoverError: the file cannot be opened.
    """

    name = "jsonl"
    encoding = "json"

    def __init__(
        self, path: str, counters: Counters, on_gone: Callable[[], None] = lambda: None, *, patient: bool = False
    ) -> None:
        target = StreamTarget(sys.stdout) if is_standard_output(path) else FileTarget(path)
        self._writer = LineWriter(self.name, target, counters, on_gone, patient=patient)
        self._put = self._writer.put

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        """The beginning of the object."""
        return opening(connection)

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        """Takes one line."""
        self._put(message, kernel_logs, protocol_logs)

    def standing(self) -> Standing:
        """What is not written yet is held."""
        return self._writer.standing()

    def trouble(self) -> str:
        """Why nothing can be written, or an empty string."""
        return self._writer.trouble()

    def tick(self) -> None:
        """Writes what can be written."""
        self._writer.flush()

    def close(self, deadline_s: float) -> None:
        """Writes what can be written within the deadline, and closes the file."""
        self._writer.close(deadline_s)
