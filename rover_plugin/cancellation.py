# SPDX-License-Identifier: Apache-2.0
"""Ends what is being waited for, from any thread."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rover_plugin.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Cancellation:
    """Something that may be called off, once and for good. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._actions: list[Callable[[], object]] = []
        self._cancelled = False

    def cancel(self) -> None:
        """Runs what `interrupting` contexts give, in this thread. No such context ends meanwhile."""
        with self._lock:
            self._cancelled = True
            for action in self._actions:
                action()
            self._actions.clear()

    def check(self) -> None:
        """Raises CancelledError if it has been cancelled."""
        if self._cancelled:
            raise CancelledError("called off")

    @contextmanager
    def interrupting(self, action: Callable[[], object]) -> Iterator[None]:
        """A context that waits for something; `action` ends the wait and must not itself wait nor raise.

        Raises:
            CancelledError: it was cancelled, before or meanwhile; stands for whatever the context raised because of it.
        """
        with self._lock:
            self.check()
            self._actions.append(action)
        try:
            yield
        finally:
            with self._lock:
                if action in self._actions:
                    self._actions.remove(action)
            self.check()
