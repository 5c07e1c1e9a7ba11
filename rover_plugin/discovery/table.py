# SPDX-License-Identifier: Apache-2.0
"""The table of processes with its revisions and the last of its changes."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rover_plugin.discovery.model import Executables

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rover_plugin.discovery.model import Process, ProcessKey

HISTORY = 8192  # changes kept for clients that lag or come back: some seconds of a fork storm, a few MB


@dataclass(frozen=True, slots=True)
class Added:
    """A process that was not in the table."""

    process: Process


@dataclass(frozen=True, slots=True)
class Updated:
    """A process of the table, with other facts or entities than before."""

    process: Process


@dataclass(frozen=True, slots=True)
class Removed:
    """A process that is no longer in the table."""

    key: ProcessKey


Change = Added | Updated | Removed


class ProcessTable:
    """Thread-safe; every change raises the revision by one.

    Args:
        history: how many changes are kept for `since`.

    Attributes:
        executables: which programs may ever get entities; to be set before the table is served.
    """

    def __init__(self, history: int = HISTORY) -> None:
        self.epoch = uuid.uuid4().hex
        self.executables = Executables()
        self._processes: dict[ProcessKey, Process] = {}
        self._history: deque[Change] = deque(maxlen=history)
        self._revision = 0
        self._closed = False
        # Latest revisions that told of a living process, and of one with entities; see `gather`.
        self._living_revision = self._watched_revision = 0
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._living_changed = threading.Condition(lock)

    @property
    def closed(self) -> bool:
        """Whether nothing will ever change again."""
        return self._closed

    def __len__(self) -> int:
        return len(self._processes)

    def get(self, key: ProcessKey) -> Process | None:
        """The process with this identity, if it is listed."""
        with self._changed:
            return self._processes.get(key)

    def update(self, processes: Iterable[Process] = (), removed: Iterable[ProcessKey] = ()) -> None:
        """Adds or replaces `processes` and drops `removed`; what changes nothing makes no revision."""
        with self._changed:
            before, living_before = self._revision, self._living_revision
            for process in processes:
                self._put(process)
            for key in removed:
                if self._processes.pop(key, None) is not None:
                    self._record(Removed(key))
            if self._revision != before:
                self._changed.notify_all()
            if self._living_revision != living_before:
                self._living_changed.notify_all()

    def _put(self, process: Process) -> None:
        known = self._processes.get(process.key)
        if known != process:
            self._processes[process.key] = process
            self._record(Added(process) if known is None else Updated(process))
            if not process.exited:
                self._living_revision = self._revision
                if process.entities:
                    self._watched_revision = self._revision

    def _record(self, change: Change) -> None:
        self._revision += 1
        self._history.append(change)

    def snapshot(self) -> tuple[int, tuple[Process, ...]]:
        """The revision and all processes at it."""
        with self._changed:
            return self._revision, tuple(self._processes.values())

    def since(self, revision: int) -> list[Change] | None:
        """The changes after `revision`, oldest first; `None` if they are forgotten or the revision is none of ours."""
        with self._changed:
            count = self._revision - revision
            if not 0 <= count <= len(self._history):
                return None
            return list(islice(reversed(self._history), count))[::-1]

    def wait(self, revision: int, timeout_s: float) -> None:
        """Returns when the table is past `revision`, is closed, somebody calls `wake`, or the time is over."""
        with self._changed:
            if self._revision == revision and not self._closed:
                self._changed.wait(timeout_s)

    def gather(self, revision: int, unwatched_s: float, dead_s: float) -> None:
        """Lets more changes join those after `revision`, as long as these have time.

        Args:
            revision: what the caller has already.
            unwatched_s: how long news of living processes without entities may wait.
            dead_s: how long news of the dead may wait. Those of a living process with entities may not.
        """
        with self._changed:
            if self._living_revision <= revision and not self._closed:
                self._living_changed.wait(dead_s)
            if self._living_revision > revision:
                self._living_changed.wait_for(lambda: self._watched_revision > revision or self._closed, unwatched_s)

    def wake(self) -> None:
        """Makes every `wait` and `gather` return."""
        with self._changed:
            self._changed.notify_all()
            self._living_changed.notify_all()

    def close(self) -> None:
        """Ends every `wait` and `gather`, now and in future."""
        with self._changed:
            self._closed = True
            self.wake()
