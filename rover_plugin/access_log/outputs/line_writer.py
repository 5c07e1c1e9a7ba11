# SPDX-License-Identifier: Apache-2.0
"""Lines on their way to a file, pipe or terminal that nobody waits for; each log is counted by what became of its line.

A line that was begun is ended before the next, however long that takes. What cannot be written now waits, up to a bound
in bytes; what comes beyond it is lost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from rover_plugin.telemetry.ledger import Logs, standing

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.outlet import Outlet
    from rover_plugin.telemetry.counters import Counters
    from rover_plugin.telemetry.ledger import Standing

log = structlog.get_logger(__name__)

MOST_WAITING_BYTES: Final = 8 << 20
# When so much waits it is written, before the next tick; a pipe takes 64 KiB unless its owner made it larger (pipe(7)).
_BLOCK_BYTES: Final = 1 << 18
_BLOCK_LINES: Final = 4096
# While nothing can be written, the next try comes after so many more bytes, or at the next tick.
_RETRY_BYTES: Final = 1 << 15
_LOG_PERIOD_S: Final = 10.0
# A reader that takes nothing for so long is not waited for at the end; `docker stop` gives 10 s to everything.
_STANDSTILL_S: Final = 2.0
_READER_S: Final = 0.05

STALLED: Final = "stalled"
WRITE_FAILED: Final = "write_failed"
CLOSED_PIPE: Final = "closed_pipe"
SHUTDOWN: Final = "shutdown"


# A line without its end, and the kernel and protocol logs in it.
_Line = tuple[bytes, int, int]


class Target(Protocol):
    """What lines are written to, which may not be there all the time."""

    def outlet(self) -> Outlet | None:
        """Where the next line goes; None while there is no reader.

        Raises:
            OSError: it is not open, or cannot be opened.
        """

    def broken(self) -> bool:
        """Its reader has left. Returns whether another may come."""

    def cut(self, written: int) -> None:
        """Only the first `written` bytes of a line got there, and the rest will not."""

    def close(self) -> None:
        """Frees it."""


@dataclass(slots=True)
class _Block:
    """Lines that are written at once."""

    lines: list[_Line]
    data: memoryview
    written: int = 0


class LineWriter:
    """Counts as exported only what was written.

    Args:
        name: the output's, for counters and log events.
        on_gone: called once, from `tick` or `put`, when nobody will ever read what is written.
        patient: wait for the reader instead of losing anything; for what is not live.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        counters: Counters,
        on_gone: Callable[[], None] = lambda: None,
        *,
        patient: bool = False,
    ) -> None:
        self._name = name
        self._target = target
        self._counters = counters
        self._on_gone = on_gone
        self._patient = patient
        self._lines: list[_Line] = []
        self._block: _Block | None = None
        self._outlet: Outlet | None = None  # what the block goes to
        self._waiting = 0  # bytes of lines and block
        self._look_at = _BLOCK_BYTES  # when so many wait, there is more to do than to take a line
        self._gone = False
        self._trouble = ""  # why nothing can be written now
        self._reason = STALLED  # and what lines that find no room are lost to
        self._lost_since_said = 0
        self._said_at = float("-inf")

    def put(self, text: bytes, kernel_logs: int, protocol_logs: int) -> None:
        """Takes a line without its end."""
        waiting = self._waiting + len(text) + 1
        if waiting >= self._look_at:
            if waiting > MOST_WAITING_BYTES:
                self.flush()
                waiting = self._waiting + len(text) + 1
            if self._gone or waiting > MOST_WAITING_BYTES:
                self._lose(kernel_logs, protocol_logs, self._reason)
                return
        self._waiting = waiting
        self._lines.append((text, kernel_logs, protocol_logs))
        if waiting >= self._look_at:
            self.flush()

    def leave_out(self, kernel_logs: int, reason: str) -> None:
        """Counts kernel logs that this output does not show."""
        self._count("logs_filtered", kernel_logs, 0, reason=reason)

    def standing(self) -> Standing:
        """What is not wholly written yet is held."""
        lines = [*(self._block.lines if self._block is not None else ()), *self._lines]
        return standing(self._counters, self._name, _logs(lines))

    def trouble(self) -> str:
        """Why nothing can be written, or an empty string."""
        return self._trouble

    def flush(self) -> None:
        """Writes what can be written now."""
        try:
            self._write(float("inf") if self._patient else 0.0)
        except OSError as error:
            self._failed(error)
        if not self._gone:
            self._look_at = min(max(_BLOCK_BYTES, self._waiting + _RETRY_BYTES), MOST_WAITING_BYTES)
        if self._trouble and self._waiting:
            self._say()

    def close(self, deadline_s: float) -> None:
        """Writes what waits; the rest is lost, which the totals at the end tell.

        Unless patient it takes `deadline_s` seconds at most, and gives up earlier on a reader that does not read.
        """
        until = float("inf") if self._patient else time.monotonic() + deadline_s
        try:
            self._write(until)
        except OSError as error:
            self._failed(error)
        self._give_up(self._reason if self._trouble else SHUTDOWN)
        self._target.close()

    # -- writing --

    def _write(self, until: float) -> None:
        """Writes until nothing waits, or nothing can be written; waits for that up to the moment `until`."""
        progress = time.monotonic()
        while self._block is not None or self._lines:
            if self._block is None or not self._block.written:
                self._outlet = self._target.outlet()
            if self._outlet is None:
                self._trouble, self._reason = "nobody reads it", CLOSED_PIPE
                if not self._patient:
                    return
                time.sleep(_READER_S)
                continue
            block = self._block or self._next_block()
            written = self._outlet.write(block.data)
            if written:
                self._trouble = ""
                progress = time.monotonic()
                self._advance(block, written)
                continue
            self._trouble, self._reason = "its reader has stopped reading", STALLED
            left_s = min(until, progress + _STANDSTILL_S if not self._patient else until) - time.monotonic()
            if left_s <= 0:
                return
            self._outlet.wait(min(left_s, _STANDSTILL_S))

    def _next_block(self) -> _Block:
        lines = self._lines[:_BLOCK_LINES]
        del self._lines[:_BLOCK_LINES]
        self._block = _Block(lines, memoryview(b"\n".join([*[line[0] for line in lines], b""])))
        return self._block

    def _advance(self, block: _Block, written: int) -> None:
        block.data = block.data[written:]
        block.written += written
        if not block.data:
            self._block = None
            self._settle(block.lines)

    def _settle(self, lines: list[_Line], lost: str = "") -> None:
        kernel_logs, protocol_logs = _logs(lines)
        self._waiting -= sum([len(line[0]) for line in lines]) + len(lines)
        if lost:
            self._lose(kernel_logs, protocol_logs, lost)
        else:
            self._count("logs_exported", kernel_logs, protocol_logs)

    # -- trouble --

    def _failed(self, error: OSError) -> None:
        if isinstance(error, (BrokenPipeError, ConnectionError)):
            self._trouble, self._reason = "nobody reads it any more", CLOSED_PIPE
            self._part_block()
            if not self._target.broken():
                self._gone = True
                self._look_at = 0
                self._give_up(CLOSED_PIPE)
                self._on_gone()
            return
        self._trouble, self._reason = error.strerror or repr(error), WRITE_FAILED

    def _part_block(self) -> None:
        """What the last reader did not get whole it will not get; the lines behind it may find another."""
        block, self._block = self._block, None
        if block is None:
            return
        at, done = 0, 0
        for text, _, _ in block.lines:
            if at + len(text) + 1 > block.written:
                break
            at += len(text) + 1
            done += 1
        self._settle(block.lines[:done])
        begun = block.written - at
        if begun:
            self._target.cut(begun)
            self._settle(block.lines[done : done + 1], self._reason)
            done += 1
        self._lines[:0] = block.lines[done:]

    def _give_up(self, reason: str) -> None:
        self._reason = reason
        self._part_block()
        lines, self._lines = self._lines, []
        self._settle(lines, reason)

    # -- counting --

    def _lose(self, kernel_logs: int, protocol_logs: int, reason: str) -> None:
        self._count("logs_lost", kernel_logs, protocol_logs, reason=reason)
        self._lost_since_said += kernel_logs + protocol_logs

    def _count(self, counter: str, kernel_logs: int, protocol_logs: int, **labels: str) -> None:
        if kernel_logs:
            self._counters.add(counter, kernel_logs, output=self._name, unit="kernel", **labels)
        if protocol_logs:
            self._counters.add(counter, protocol_logs, output=self._name, unit="protocol", **labels)

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said_at >= _LOG_PERIOD_S:
            self._said_at = now
            lost, self._lost_since_said = self._lost_since_said, 0
            log.warning(
                "output_stands_still", output=self._name, trouble=self._trouble, waiting=self._waiting, lost=lost
            )


def _logs(lines: list[_Line]) -> Logs:
    return Logs(sum([line[1] for line in lines]), sum([line[2] for line in lines]))
