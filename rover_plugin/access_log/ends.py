# SPDX-License-Identifier: Apache-2.0
"""The ends of all connections we see, and which two of them are one connection (docs/naming.md).

Two ends are one connection if each wrote first what the other read first: both initial sequence numbers agree, 64 bits
of proof that no address translation changes. Addresses prove nothing across network namespaces.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.model import Beginnings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rover_plugin.access_log.link import ConnectionFacts
    from rover_plugin.discovery.model import Process

# How long the end of a closed connection is remembered: longer than a fragment of its other end can wait for a name.
_LEAVING_NS: Final = 5_000_000_000
# And how many of them: 13 000 connections that close in a second.
_MAX_LEAVING: Final = 65_536
_MASK: Final = (1 << 32) - 1

# A network namespace and both addresses with their ports, or two initial sequence numbers.
_Key = tuple[int, bytes, int, bytes, int] | int


@dataclass(slots=True, eq=False)
class End:
    """One end of a connection.

    Attributes:
        keys, mirrored: what it is filed under, and what its other end is.
        process: whose it is, once the feed has named it; kept when the process is gone.
        translated: the other end's address and port behind the kernel's address translation, where that is known.
        live: its connection has not ended.
    """

    facts: ConnectionFacts
    keys: tuple[_Key, ...]
    mirrored: tuple[_Key, ...]
    process: Process | None = None
    translated: tuple[bytes, int] | None = None
    live: bool = True


class Ends:
    """Finds the other end of a connection.

    Attributes:
        evicted: ends of closed connections forgotten early, for want of room.
    """

    def __init__(self) -> None:
        self._ends: dict[int, End] = {}
        # By where its streams began or, where that is not known, by its addresses. Nearly always one end a key.
        self._index: dict[_Key, End | dict[int, End]] = {}
        self._leaving: deque[tuple[int, End]] = deque()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def leaving(self) -> int:
        """Ends of closed connections that are remembered."""
        return len(self._leaving)

    def get(self, identity: int) -> End | None:
        """The end of the connection with this id."""
        return self._ends.get(identity)

    def add(self, facts: ConnectionFacts) -> End:
        """Learns an end, or its new facts: a connection can be handed to another process."""
        end = self._ends.get(facts.id)
        if end is not None and not end.live:
            self._forget(end)
            end = None
        if end is None:
            end = self._ends[facts.id] = End(facts, *_keys(facts))
            for key in end.keys:
                self._file(key, end)
        elif end.facts.pid != facts.pid:
            end.process = None
        end.facts = facts
        return end

    def _file(self, key: _Key, end: End) -> None:
        there = self._index.get(key)
        if there is None:
            self._index[key] = end
        elif isinstance(there, End):
            self._index[key] = {there.facts.id: there, end.facts.id: end}
        else:
            there[end.facts.id] = end

    def remove(self, facts: ConnectionFacts, now_ns: int) -> None:
        """The connection has ended. Its end is kept for a while: the other one may be late."""
        end = self._ends.get(facts.id)
        if end is None or not end.live:
            return
        end.live = False
        self._leaving.append((now_ns + _LEAVING_NS, end))
        while self._leaving and (self._leaving[0][0] < now_ns or len(self._leaving) > _MAX_LEAVING):
            until_ns, oldest = self._leaving.popleft()
            self.evicted += until_ns >= now_ns
            self._forget(oldest)

    def _forget(self, end: End) -> None:
        if self._ends.get(end.facts.id) is not end:
            return
        del self._ends[end.facts.id]
        for key in end.keys:
            there = self._index[key]
            if isinstance(there, dict) and len(there) > 1:
                del there[end.facts.id]
            else:
                del self._index[key]

    def other(self, facts: ConnectionFacts) -> End | None:
        """The other end of a connection, if it is known beyond doubt."""
        end = self._ends.get(facts.id)
        for key in end.mirrored if end is not None else _keys(facts)[1]:
            found = self._index.get(key)
            if found is not None:
                if found.__class__ is End and found is not end:
                    return found
                return _agreed(facts, (found,) if isinstance(found, End) else found.values())
        return None


def _streams(written: int, read: int) -> int:
    return (written & _MASK) << 32 | (read & _MASK)


def _keys(facts: ConnectionFacts) -> tuple[tuple[_Key, ...], tuple[_Key, ...]]:
    """What an end is filed under, and what its other end is."""
    beginnings, written, read = facts.beginnings, facts.first_written, facts.first_read
    if beginnings is Beginnings.EXACT:
        return (_streams(written, read),), (_streams(read, written),)
    if beginnings is Beginnings.LOOSE:
        later = written + 1
        return (
            (_streams(written, read), _streams(later, read)),
            (_streams(read, written), _streams(read, later)),
        )
    if beginnings is Beginnings.NEVER:
        return (), ()
    local, remote = (facts.local, facts.local_port), (facts.remote, facts.remote_port)
    return ((facts.netns, *local, *remote),), ((facts.netns, *remote, *local),)


def _agreed(facts: ConnectionFacts, ends: Iterable[End]) -> End | None:
    """The one of several candidates; nobody if they are not the same process's."""
    # A socket connected to itself (RFC 9293 §3.5, simultaneous open) is its own other end.
    to_itself = (facts.local, facts.local_port) == (facts.remote, facts.remote_port)
    others = [end for end in ends if to_itself or end.facts.id != facts.id]
    candidates = [end for end in others if end.live] or others
    owners = {end.facts.pid for end in candidates}
    return candidates[-1] if len(owners) == 1 else None
