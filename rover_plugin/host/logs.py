# SPDX-License-Identifier: Apache-2.0
"""How the host speaks: log events with fields on standard error, for people on a terminal, as JSON elsewhere.

Standard output belongs to the access logs. Nothing here raises, or waits for whoever reads standard error: it may be
closed, on a full disk, or a pipe that nobody reads. Lines that cannot be written are counted, and once some can be, the
number is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import structlog

from rover_plugin.outlet import coloured, is_terminal, stream_outlet
from rover_plugin.text import printable, printable_lines

if TYPE_CHECKING:
    from typing import IO

    from rover_plugin.outlet import Outlet

# Rover's level names (logrus); structlog has no finer level than debug and we have none worse than error.
_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.ERROR,
    "PANIC": logging.ERROR,
}
# A reader that is only slow gets so long once; one that still has not read then is not waited for again until it has.
_PATIENCE_S: Final = 0.2


class Speaker:
    """Lines to a stream, from any thread; whole ones, or none.

    Attributes:
        unsaid: lines that could not be written since the last that could.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._lock = threading.Lock()
        self._patient = True
        self._cut = False  # the last line's end is missing
        self.unsaid = 0
        self._outlet: Outlet | None = None
        if stream is not None:
            with contextlib.suppress(OSError):
                self._outlet = stream_outlet(stream)

    def write(self, text: str) -> None:
        """Writes `text`, which ends a line, or counts it as unsaid."""
        with self._lock:
            if self.unsaid and self._send(f'{{"event": "log_lines_unsaid", "lines": {self.unsaid}}}\n'):
                self.unsaid = 0
            if self.unsaid or not self._send(text):
                self.unsaid += 1

    def _send(self, text: str) -> bool:
        if self._outlet is None:
            return False
        data = memoryview(("\n" * self._cut + text).encode(errors="backslashreplace"))
        whole = len(data)
        with contextlib.suppress(OSError, ValueError):  # a full disk, a broken pipe; a stream that was closed
            while data:
                written = self._outlet.write(data)
                data = data[written:]
                if not written and not self._wait():
                    break
                self._patient = self._patient or bool(written)
        if len(data) < whole:
            self._cut = bool(data)
        return not data

    def _wait(self) -> bool:
        if self._patient and self._outlet is not None:
            self._patient = self._outlet.wait(_PATIENCE_S)
        return self._patient


_speakers: WeakKeyDictionary[IO[str], Speaker] = WeakKeyDictionary()
_NOBODY: Final = Speaker(None)


def _speaker() -> Speaker:
    """Standard error, as it is now."""
    stream = sys.stderr
    if stream is None:  # it was closed when this process began
        return _NOBODY
    found = _speakers.get(stream)
    if found is None:
        found = _speakers[stream] = Speaker(stream)
    return found


def say(text: str) -> None:
    """One line for a person on standard error, whatever is in it."""
    _speaker().write(printable(text) + "\n")


def say_lines(text: str) -> None:
    """Several lines of ours, such as a traceback."""
    _speaker().write(printable_lines(text).rstrip("\n") + "\n")


class _Logger:
    """What structlog hands finished lines to, whatever their level."""

    def __init__(self, *_: object) -> None:
        self._speaker = _speaker()

    def msg(self, line: str) -> None:
        self._speaker.write(line + "\n")

    debug = info = warning = error = exception = critical = msg


def configure_logs(level: str) -> None:
    """Sets up structlog for this process; `level` is a value of `logger.level`."""
    render: structlog.typing.Processor = structlog.processors.JSONRenderer()  # which escapes all that is not ASCII
    if is_terminal(sys.stderr):
        render = _for_people(structlog.dev.ConsoleRenderer(colors=coloured(sys.stderr)))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            _unfailing(render),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_Logger,
        cache_logger_on_first_use=False,
    )


def _unfailing(render: structlog.typing.Processor) -> structlog.typing.Processor:
    """What cannot be rendered is named, and raises nothing into whoever logs it."""

    def rendered(logger: Any, method: str, event: structlog.typing.EventDict) -> Any:
        try:
            return render(logger, method, event)
        except Exception:  # noqa: BLE001 a field's own __repr__ may raise anything
            return json.dumps({"event": "log_line_failed", "of": str(event.get("event"))})

    return rendered


def _for_people(render: structlog.typing.Processor) -> structlog.typing.Processor:
    def rendered(logger: Any, method: str, event: structlog.typing.EventDict) -> Any:
        for key, value in event.items():
            if key == "exception":
                event[key] = printable_lines(str(value))
            elif not isinstance(value, (bool, int, float, type(None))):
                event[key] = printable(value if isinstance(value, str) else repr(value))
        return render(logger, method, event)

    return rendered
