# SPDX-License-Identifier: Apache-2.0
"""Records of processes that are just born: held until the feed has decided, then handed on or thrown away. Sans-I/O.

They come through a ring of their own (bpf/rings.h) and stay raw bytes here: nothing is analysed, recorded or told of a
process that nobody chooses. What is held is bounded in bytes, for each process and for all together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Final

from rover_plugin.capture.records import HEADER, RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FOREVER: Final = (1 << 64) - 1

# The feed names a process within 0.1 s of its exec, and one that has ended after 0.5 s; see `feed_server`.
_HOLD_NS: Final = 3_000_000_000
# A decision that is due any moment may be waited for; one that is not coming may not.
_PATIENCE_NS: Final = 300_000_000
_MAX_BYTES: Final = 4 << 20
_MAX_PROCESS_BYTES: Final = _MAX_BYTES // 8
_RECORD_OVERHEAD: Final = 64  # of a bytes object in a list (sys.getsizeof)
_MAX_DECISIONS: Final = 16_384
_DECISION: Final = Struct("<BxxxIQ")
_CALL: Final = int(RecordKind.CALL)
_CLOSE: Final = int(RecordKind.CLOSE)


class Fate(IntEnum):
    """What the feed says of a process."""

    CHOSEN = 1
    REFUSED = 2


def pack_decisions(decisions: Iterable[tuple[Fate, int, int]]) -> bytes:
    """Decisions for `read_decisions`: (fate, pid, CLOCK_MONOTONIC nanoseconds of the last record it is true of)."""
    return b"".join(_DECISION.pack(*decision) for decision in decisions)


def read_decisions(datagram: bytes) -> Iterator[tuple[Fate, int, int]]:
    """What `pack_decisions` packed."""
    for fate, pid, until_ns in _DECISION.iter_unpack(datagram):
        yield Fate(fate), pid, until_ns


@dataclass(slots=True)
class _Held:
    since_ns: int
    made_ns: int  # its first record
    records: list[bytes] = field(default_factory=list)
    size: int = 0
    full: bool = False


class Provisional:
    """Stands between a shard's provisional ring and what takes the records of chosen processes.

    Args:
        take: `Shard.handle`, or what stands before it.
        knows: whether the shard has this connection.

    Attributes:
        chosen: records handed on.
        dropped: records thrown away: `not_chosen`, `undecided` in time, or for want of room (`no_room`).
    """

    def __init__(self, take: Callable[[memoryview, int, int], None], knows: Callable[[int], bool]) -> None:
        self._take = take
        self._knows = knows
        self._held: dict[int, _Held] = {}  # by pid, oldest first
        self._decisions: dict[int, tuple[Fate, int]] = {}
        self.held_bytes = 0
        self.chosen = 0
        self.dropped = {"not_chosen": 0, "undecided": 0, "no_room": 0}

    def handle(self, data: memoryview, start: int, end: int, now_ns: int) -> None:
        """Takes one record of the provisional ring: `data[start:end]`, read at `now_ns`."""
        kind, _, _, _, _, _, pid, connection, _, exit_ns = HEADER.unpack_from(data, start)
        fate, until_ns = self._decisions.get(pid, (None, 0))
        if fate is not None and exit_ns <= until_ns:
            self._settle(fate, bytes(data[start:end]))
        elif kind == _CLOSE and pid not in self._held and self._knows(connection):
            # Of one that was chosen, but has not been used since.
            self._settle(Fate.CHOSEN, bytes(data[start:end]))
        else:
            self._hold(pid, kind, bytes(data[start:end]), now_ns)

    def decide(self, fate: Fate, pid: int, until_ns: int) -> None:
        """Learns the fate of a process, as far as its records go that were made until `until_ns`.

        Later ones may be of another program under the same pid.
        """
        self._decisions.pop(pid, None)
        self._decisions[pid] = fate, until_ns
        if len(self._decisions) > _MAX_DECISIONS:
            del self._decisions[next(iter(self._decisions))]
        held = self._held.pop(pid, None)
        if held is None:
            return
        self.held_bytes -= held.size
        later = []
        for record in held.records:
            if HEADER.unpack_from(record)[-1] <= until_ns:
                self._settle(fate, record)
            else:
                later.append(record)
        for record in later:
            self._hold(pid, record[0], record, held.since_ns)

    def pass_time(self, now_ns: int) -> None:
        """Throws away what nobody has decided for too long."""
        while self._held:
            pid, oldest = next(iter(self._held.items()))
            if now_ns - oldest.since_ns < _HOLD_NS:
                return
            self._drop(pid, "undecided")

    def reached(self, now_ns: int) -> int:
        """Up to when everything made has been handed on or will not be, if everything was read by `now_ns`."""
        if not self._held:
            return now_ns
        oldest = next(iter(self._held.values()))
        return min(now_ns, max(oldest.made_ns, now_ns - _PATIENCE_NS))

    def finish(self) -> None:
        """Nobody will decide any more."""
        for pid in list(self._held):
            self._drop(pid, "undecided")

    def counts(self) -> dict[str, object]:
        """For the worker's report."""
        return {"chosen": self.chosen, "dropped": dict(self.dropped), "held_bytes": self.held_bytes}

    def _settle(self, fate: Fate, record: bytes) -> None:
        if fate is Fate.CHOSEN:
            self.chosen += 1
            self._take(memoryview(record), 0, len(record))
        else:
            self.dropped["not_chosen"] += 1

    def _hold(self, pid: int, kind: int, record: bytes, now_ns: int) -> None:
        held = self._held.get(pid)
        if held is None:
            held = self._held[pid] = _Held(now_ns, HEADER.unpack_from(record)[-1])
        size = len(record) + _RECORD_OVERHEAD
        # Its first calls are kept, and what says that a connection is over.
        held.full = held.full or held.size + size > _MAX_PROCESS_BYTES
        if held.full and kind == _CALL:
            self.dropped["no_room"] += 1
            return
        held.records.append(record)
        held.size += size
        self.held_bytes += size
        while self.held_bytes > _MAX_BYTES:
            self._empty(max(self._held.values(), key=lambda item: item.size))

    def _empty(self, held: _Held) -> None:
        """Makes room. The kernel side announces connections again that are used after their process was chosen."""
        self.dropped["no_room"] += len(held.records)
        self.held_bytes -= held.size
        held.records, held.size, held.full = [], 0, True

    def _drop(self, pid: int, reason: str) -> None:
        held = self._held.pop(pid)
        self.held_bytes -= held.size
        self.dropped[reason] += len(held.records)
