# SPDX-License-Identifier: Apache-2.0
"""Tells kernel side and workers which processes the feed has chosen, in the order that loses nothing.

A worker holds what new processes do until it hears of their fate (`provisional`). It must hear that one is chosen
before the kernel side does, whose next record of it comes through the shard's own ring.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.provisional import FOREVER, Fate, pack_decisions
from rover_plugin.discovery.feed_codec import text
from rover_plugin.discovery.procfs import read_process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rover_plugin.capture.session import Capture
    from rover_plugin.discovery.model import Process

_MOST_AT_ONCE: Final = 2000  # of 16 bytes each, in one datagram


class Choices:
    """Not thread-safe: the hub's thread calls it.

    Args:
        channels: the main process's ends of the workers' links.
        watch, unwatch: what the kernel side does, see `Resolver`.
        refuse: what it does instead of `unwatch` for a process as the feed describes it, see `refuse` below.
    """

    def __init__(
        self,
        channels: Sequence[socket.socket],
        watch: Callable[[int], bool],
        unwatch: Callable[[int], None],
        refuse: Callable[[Process], int | None] | None,
    ) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._refuse = refuse
        # The latest for each process, so as many as there can be processes at most.
        self._unsent: list[tuple[socket.socket, dict[int, tuple[Fate, int, int]]]] = [
            (channel, {}) for channel in channels
        ]

    def watch(self, pid: int) -> bool:
        """See `Resolver`."""
        self._note(Fate.CHOSEN, pid, FOREVER)
        self.send()
        watched = self._watch(pid)
        # From here on its records come the other way. If it executes something else, that is not chosen yet.
        self._note(Fate.CHOSEN, pid, time.monotonic_ns())
        return watched

    def unwatch(self, pid: int) -> None:
        """See `Resolver`."""
        self._unwatch(pid)
        self.decided(pid, chosen=False)

    def refuse(self, process: Process) -> bool:
        """See `Resolver`."""
        if self._refuse is None:
            self.unwatch(process.key.pid)
            return True
        until_ns = self._refuse(process)
        if until_ns:
            self._note(Fate.REFUSED, process.key.pid, until_ns)
        return until_ns is not None

    def decided(self, pid: int, chosen: bool) -> None:
        """See `Resolver`."""
        self._note(Fate.CHOSEN if chosen else Fate.REFUSED, pid, time.monotonic_ns())

    def send(self) -> None:
        """Hands on what the workers have not heard yet, as far as they take it."""
        for channel, unsent in self._unsent:
            while unsent:
                some = list(unsent.values())[:_MOST_AT_ONCE]
                try:
                    channel.send(pack_decisions(some), socket.MSG_DONTWAIT)
                except OSError:
                    break  # it is busy, or has ended
                for _, pid, _ in some:
                    del unsent[pid]

    def _note(self, fate: Fate, pid: int, until_ns: int) -> None:
        for _, unsent in self._unsent:
            unsent[pid] = fate, pid, until_ns


def refuse(capture: Capture, process: Process) -> int | None:
    """Has the kernel side let a process go that nobody chooses, unless it runs another program than the feed says.

    Without the second look a program executed between the first and the end of watching would stay unseen.

    Returns:
        Until when its records were of what is refused, 0 if it was not watched, None if it stays watched.
    """
    pid = process.key.pid
    if not capture.is_watched(pid):
        return 0  # not since its birth, or not any more: it may have executed something else, and ended
    if not _runs(process):
        return None
    capture.unwatch(pid)
    until_ns = time.monotonic_ns()
    if _runs(process):
        return until_ns
    capture.watch_provisionally(pid)
    return None


def _runs(process: Process) -> bool:
    """Whether it lives and is what the feed says."""
    facts = read_process(process.key.pid)
    if facts is None or facts.key != process.key:
        return False
    return (text(facts.exe), tuple(map(text, facts.cmdline))) == (process.exe, process.cmdline)
