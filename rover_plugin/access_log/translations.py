# SPDX-License-Identifier: Apache-2.0
"""Asks the kernel whom a translated connection really goes to, or comes from; a thread that answers the hub.

Only for connections whose other end is not seen on this host (docs/naming.md), and only an address: no name.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.capture.recording import Translation
from rover_plugin.discovery.conntrack import Tuple, dialled_to_real, open_table, seen_to_real
from rover_plugin.discovery.network_namespaces import neighbours, network_namespaces

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from rover_plugin.access_log.link import ConnectionFacts

log = structlog.get_logger(__name__)

# Present where the kernel has the table at all; asking without it would make the kernel load a module.
_TABLE: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
# The resolver asks 100 a second at most.
_MOST_QUESTIONS: Final = 1024
_MOST_AT_ONCE: Final = 256
_NAMESPACES_S: Final = 5.0
# For one that is not known they are read at once, as long as that takes no more than a twentieth of the time.
_MISSING_S: Final = 0.05
_SHARE: Final = 20
# One stat(2) a namespace tells whether it is still the one that was read; an answer from another is none for 30 s.
_CHECK_S: Final = 0.01
# A packet's way: out of a container, of the one around it, through the host, and as far again.
_MOST_HOPS: Final = 4


class Translations:
    """Answers questions in the order in which they come.

    Args:
        answer: takes answers, on this thread; called with every question's.
    """

    def __init__(self, answer: Callable[[Sequence[Translation]], None]) -> None:
        self._answer = answer
        self._questions: queue.Queue[ConnectionFacts | None] = queue.Queue(_MOST_QUESTIONS)
        self._way = _Way()
        self._thread = threading.Thread(target=self._run, name="translations", daemon=True)
        self._thread.start()

    def ask(self, facts: ConnectionFacts) -> None:
        """Asks about a connection; any thread, never waits. What there is no room for is not answered."""
        try:
            self._questions.put_nowait(facts)
        except queue.Full:
            return

    def close(self) -> None:
        """Ends the thread, after the question in hand."""
        try:
            self._questions.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(1.0)

    def _run(self) -> None:
        while (first := self._questions.get()) is not None:
            asked = [first]
            while len(asked) < _MOST_AT_ONCE:
                try:
                    following = self._questions.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    return
                asked.append(following)
            try:
                answers = self._way.real_ends(asked)
            except Exception:
                log.exception("translations_failed")
                answers = [Translation(facts.id) for facts in asked]
            self._answer(answers)


class _Way:
    """Follows packets from namespace to namespace."""

    def __init__(self) -> None:
        self._namespaces: dict[int, str] = {}
        self._neighbours: dict[int, frozenset[int]] = {}
        self._read_at = self._checked_at = float("-inf")
        self._took_s = 0.0
        self._tables: dict[int, socket.socket | None] = {}

    def real_ends(self, asked: Sequence[ConnectionFacts]) -> list[Translation]:
        """The answer to each question. Sockets do not outlive the call: they would keep namespaces alive."""
        if not _TABLE.exists():
            return [Translation(facts.id) for facts in asked]
        self._read_namespaces({facts.netns for facts in asked})
        with ExitStack() as stack:
            try:
                return [self._real_end(facts, stack) for facts in asked]
            finally:
                self._tables.clear()

    def _read_namespaces(self, wanted: set[int]) -> None:
        now = time.monotonic()
        limit_s = _NAMESPACES_S
        if not wanted <= self._namespaces.keys():
            limit_s = max(_MISSING_S, _SHARE * self._took_s)
        elif now - self._checked_at > _CHECK_S:
            self._checked_at = now
            limit_s = _NAMESPACES_S if all(map(_is_at, self._namespaces, self._namespaces.values())) else 0.0
        if now - self._read_at > limit_s:
            self._namespaces = network_namespaces()
            self._neighbours.clear()
            self._read_at = self._checked_at = time.monotonic()
            self._took_s = self._read_at - now

    def _real_end(self, facts: ConnectionFacts, stack: ExitStack) -> Translation:
        packets = Tuple(facts.local, facts.local_port, facts.remote, facts.remote_port)
        translate = seen_to_real if facts.role == "server" else dialled_to_real
        here = frozenset((facts.netns,))
        passed: frozenset[int] = frozenset()
        for _ in range(_MOST_HOPS):
            found = {}
            for inode in here - passed:
                table = self._table(inode, stack)
                after = _translated(translate, table, packets) if table is not None else None
                if after is not None:
                    found[inode] = after
            if len(found) > 1:
                return Translation(facts.id)  # two ways, or two connections of the same addresses: nobody knows
            passed |= here
            if found:
                (inode,) = found
                packets = found[inode]
                here = self._around(inode)
            else:
                here = frozenset().union(*(self._around(inode) for inode in here))
        if (packets.destination, packets.destination_port) == (facts.remote, facts.remote_port):
            return Translation(facts.id)
        return Translation(facts.id, packets.destination, packets.destination_port)

    def _table(self, inode: int, stack: ExitStack) -> socket.socket | None:
        if inode not in self._tables:
            self._tables[inode] = self._open(inode)
            table = self._tables[inode]
            if table is not None:
                stack.enter_context(table)
        return self._tables[inode]

    def _open(self, inode: int) -> socket.socket | None:
        path = self._namespaces.get(inode)
        try:
            return open_table(path) if path is not None else None
        except OSError as error:  # not allowed, not there, or gone: none of them is an error
            log.debug("conntrack_not_read", namespace=path, error=error.strerror)
            return None

    def _around(self, inode: int) -> frozenset[int]:
        if inode not in self._neighbours:
            path = self._namespaces.get(inode)
            try:
                self._neighbours[inode] = neighbours(path, self._namespaces) if path is not None else frozenset()
            except OSError:
                self._neighbours[inode] = frozenset()
        return self._neighbours[inode]


def _is_at(inode: int, path: str) -> bool:
    """Whether a path still leads to this namespace: the kernel gives the number of one that ended to the next."""
    try:
        return Path(path).stat().st_ino == inode
    except OSError:
        return False


def _translated(
    translate: Callable[[socket.socket, Tuple], Tuple | None], table: socket.socket, packets: Tuple
) -> Tuple | None:
    try:
        return translate(table, packets)
    except OSError:
        return None
