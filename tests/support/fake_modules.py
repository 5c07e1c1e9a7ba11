# SPDX-License-Identifier: Apache-2.0
"""Modules that only say what happens to them, for tests of the host.

In a test's own process they append to a list. As entry points of a made-up distribution (`install`) they print to
standard output, and the variable FAKE says what goes wrong, such as `beta.start=error`; `quiet` has them say nothing.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rover_plugin.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rover_plugin.host.module import Context
    from rover_plugin.settings import Settings

NAMES = ("alpha", "beta", "gamma")


@dataclass
class FakeModule:
    """Appends `<name> <event>` to `events`, then does what `on` has for the event."""

    name: str
    requires: tuple[str, ...] = ()
    is_active: bool = True
    events: list[str] = field(default_factory=list)
    on: dict[str, Callable[[], None]] = field(default_factory=dict)
    context: Context | None = None

    def active(self, settings: Settings) -> bool:
        del settings
        return self.is_active

    def start(self, context: Context) -> None:
        self.context = context
        self._happens("start")

    def notify_start_success(self) -> None:
        self._happens("notify")

    def shutdown(self) -> None:
        self._happens("shutdown")

    def _happens(self, event: str) -> None:
        self.events.append(f"{self.name} {event}")
        self.on.get(event, lambda: None)()


class _Printing(FakeModule):
    def _happens(self, event: str) -> None:
        if os.environ.get("FAKE") == "quiet":
            return
        print(self.name, event, flush=True)
        module, _, rest = os.environ.get("FAKE", "").partition(".")
        when, _, what = rest.partition("=")
        if (module, when) == (self.name, event):
            _MISHAPS[what]()


def _error() -> None:
    message = "no such probe"
    raise CaptureError(message, hint="use another kernel")


def _bug() -> None:
    message = "not thought of"
    raise ValueError(message)


def _hang() -> None:
    """Deadlocks in C, where no Python handler runs: locks a pthread mutex twice."""
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def _fork() -> None:
    """Lets a child get the signals that a terminal would send to it, and reports how it ended."""
    child = os.fork()
    if not child:
        for number in (1, 2, 3, 15):
            os.kill(os.getpid(), number)
        os._exit(0)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _signal() -> None:
    os.kill(os.getpid(), 15)


_MISHAPS: dict[str, Callable[[], None]] = {
    "error": _error,
    "bug": _bug,
    "hang": _hang,
    "fork": _fork,
    "signal": _signal,
}


def alpha() -> FakeModule:
    return _Printing("alpha")


def beta() -> FakeModule:
    return _Printing("beta", requires=("alpha",))


def gamma() -> FakeModule:
    return _Printing("gamma", requires=("alpha",), is_active=False)


def install(directory: Path) -> None:
    """Makes `directory`, once it is on the module path, an installed distribution that registers the three above."""
    metadata = directory / "fake-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    points = "".join(f"{name} = {__name__}:{name}\n" for name in NAMES)
    (metadata / "entry_points.txt").write_text(f"[rover.modules]\n{points}")
