# SPDX-License-Identifier: Apache-2.0
"""Names connections and gives every fragment, behind its connection's prefix, to the outputs. No clock, no socket.

A fragment waits while its process has not been named by the feed, or, where both ends are on this host, until the other
end is known; both waits are short, bounded and counted. The hub and `replay` drive the same code.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.access_log.address_book import NOT_SELECTED
from rover_plugin.access_log.link import FRAGMENT, Item, read_connection, read_items
from rover_plugin.discovery.table import Added, Removed, Updated
from rover_plugin.telemetry.ledger import HUB_FULL, Ledger, Logs
from rover_plugin.telemetry.telemetry import Histograms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rover_plugin.access_log.address_book import AddressBook
    from rover_plugin.access_log.link import ConnectionFacts
    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.discovery.table import Change
    from rover_plugin.telemetry.counters import Counters

log = structlog.get_logger(__name__)

FOREVER_NS: Final = 1 << 63
# A process is named by the feed within milliseconds of its exec; one nobody names is not ours to report.
_PROCESS_WAIT_NS: Final = 3_000_000_000
# A process is born with its parent's program; whether the one it is about to run is ours, the feed says a moment later.
_PROGRAM_WAIT_NS: Final = 1_000_000_000
# Both ends of a local connection are told within one flush of the workers.
_PEER_WAIT_NS: Final = 300_000_000
# What may wait for a name at most: a few seconds of a busy process that the feed has not named yet.
_MAX_WAITING: Final = 200_000
_MAX_WAITING_BYTES: Final = 64 << 20
_MAX_WAITING_CONNECTIONS: Final = 65_536
_MOST_FAULTS_SHOWN: Final = 16
_FAULT_CHARACTERS: Final = 500
_LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class _Fragment:
    encoding: int
    kernel_logs: int
    protocol_logs: int
    payload: bytes


@dataclass(slots=True)
class _Known:
    """A connection's present facts and, once it can be named, its prefixes by output."""

    facts: ConnectionFacts
    prefixes: list[bytes | None] | None = None  # None of an output that cannot take the connection
    excluded: str = ""
    deadline_ns: int = 0
    waiting: list[_Fragment] = field(default_factory=list)
    gone: bool = False


class Resolver:
    """Everything between the workers' links and the outputs. Not thread-safe.

    Args:
        encodings: in the order of the index workers put on fragments.
        watch, unwatch: tell the kernel side about a process.

    Attributes:
        ledger: what came over the links, and what became of it.
        lag: seconds from the end of a call to its arrival here, by worker.
    """

    def __init__(
        self,
        encodings: Sequence[str],
        outputs: Sequence[Output],
        book: AddressBook,
        counters: Counters,
        watch: Callable[[int], bool],
        unwatch: Callable[[int], None],
    ) -> None:
        self._outputs = outputs
        self._takers = [
            [(number, output) for number, output in enumerate(outputs) if output.encoding == encoding]
            for encoding in encodings
        ]
        self._book = book
        self._counters = counters
        self._watch = watch
        self._unwatch = unwatch
        self._connections: dict[int, _Known] = {}
        self._waiting: deque[int] = deque()
        self._young: dict[int, int] = {}  # pid of a new process that is not ours so far -> until when that may change
        self._waiting_fragments = 0
        self._waiting_bytes = 0
        self._faults_shown: set[tuple[str, str]] = set()
        self.ledger = Ledger(encodings, outputs)
        self.lag = Histograms("rover_capture_lag_seconds", _LAG_BOUNDS_S)

    def take(self, datagram: bytes, now_ns: int, worker: int = 0) -> None:
        """Takes one datagram of a worker's link."""
        received = self.ledger.received(worker)
        for kind, encoding, kernel_logs, protocol_logs, identity, payload in read_items(datagram):
            if kind != FRAGMENT:
                self._take_rare(kind, identity, payload, now_ns, worker)
                continue
            counts = received[encoding]
            counts[0] += kernel_logs
            counts[1] += protocol_logs
            known = self._connections.get(identity)
            if known is None:
                self._count_filtered("unknown_connection", kernel_logs, protocol_logs, encoding)
            elif known.prefixes is not None:
                self._write(known.prefixes, encoding, kernel_logs, protocol_logs, payload)
            elif known.excluded:
                self._count_filtered(known.excluded, kernel_logs, protocol_logs, encoding)
            else:
                self._hold(known, _Fragment(encoding, kernel_logs, protocol_logs, payload))

    def _take_rare(self, kind: int, identity: int, payload: bytes, now_ns: int, worker: int) -> None:
        if kind == Item.CONNECTION:
            self._describe(identity, payload, now_ns)
        elif kind == Item.GONE:
            known = self._connections.get(identity)
            if known is not None:
                known.gone = True
                if not known.waiting:
                    self._drop(known, now_ns)
        elif kind == Item.MARK:
            self.lag.observe(max(0, now_ns - identity) / 1e9, (str(worker),))
        else:
            self.ledger.report(worker, json.loads(payload), self.waiting_logs())

    def _describe(self, identity: int, payload: bytes, now_ns: int) -> None:
        facts = read_connection(identity, payload)
        known = self._connections.get(identity)
        if known is None:
            known = self._connections[identity] = _Known(facts)
            self._book.learn(facts)
        else:
            # What waits was said under the old facts, but by the same socket: it goes out under the new ones.
            if facts.pid != known.facts.pid:
                self._book.forget(known.facts, now_ns)
                self._book.learn(facts)
            known.facts = facts
            known.prefixes = None
            known.excluded = ""
        if not self._name(known, now_ns) and not known.deadline_ns:
            if len(self._waiting) >= _MAX_WAITING_CONNECTIONS:
                self._counters.add("connections_named_early")
                known.deadline_ns = 1
                self._name(known, FOREVER_NS)
                known.deadline_ns = 0
                return
            known.deadline_ns = now_ns + (_PEER_WAIT_NS if self._book.knows(facts.pid) else _PROCESS_WAIT_NS)
            self._waiting.append(identity)

    def _name(self, known: _Known, now_ns: int) -> bool:
        """Decides a connection if everything is known that can be, or its time is up."""
        facts = known.facts
        if not self._book.knows(facts.pid):
            if not known.deadline_ns or now_ns < known.deadline_ns:
                return False
            known.excluded = "unknown_process"
            return True
        excluded = self._book.exclusion_of(facts.pid)
        if excluded:
            if now_ns < self._young.get(facts.pid, 0):
                return False
            known.excluded = excluded
            return True
        waits = not known.deadline_ns or now_ns < known.deadline_ns
        if waits and self._book.peer_is_ours(facts) and not self._book.peer_is_known(facts):
            return False
        resolved = self._book.resolve(facts)
        known.prefixes = [self._prefix(output, resolved) for output in self._outputs]
        return True

    def _prefix(self, output: Output, resolved: ResolvedConnection) -> bytes | None:
        try:
            return output.connection_prefix(resolved)
        except Exception as error:  # noqa: BLE001 what one output makes of one connection must not end them all
            self._show_fault(output, error, repr(resolved))
            return None

    def _write(
        self, prefixes: Sequence[bytes | None], encoding: int, kernel_logs: int, protocol_logs: int, payload: bytes
    ) -> None:
        for number, output in self._takers[encoding]:
            prefix = prefixes[number]
            try:
                if prefix is not None:
                    output.write(prefix + payload, kernel_logs, protocol_logs)
                    continue
            except Exception as error:  # noqa: BLE001 one log that one output cannot take must not end them all
                self._show_fault(output, error, repr(payload))
            self._count_for("logs_lost", output, "output_failed", kernel_logs, protocol_logs)

    def _show_fault(self, output: Output, error: Exception, what: str) -> None:
        fault = (output.name, repr(error))
        if fault not in self._faults_shown and len(self._faults_shown) < _MOST_FAULTS_SHOWN:
            self._faults_shown.add(fault)
            log.error("output_failed", output=output.name, log=what[:_FAULT_CHARACTERS], exc_info=error)

    def _hold(self, known: _Known, fragment: _Fragment) -> None:
        size = len(fragment.payload)
        if self._waiting_fragments >= _MAX_WAITING or self._waiting_bytes + size > _MAX_WAITING_BYTES:
            self._count_lost(HUB_FULL, fragment)
            return
        self._waiting_fragments += 1
        self._waiting_bytes += size
        known.waiting.append(fragment)

    @property
    def connections(self) -> int:
        """How many it knows."""
        return len(self._connections)

    def waiting_logs(self) -> list[Logs]:
        """By encoding index, what waits for a name."""
        sums = [[0, 0] for _ in self._takers]
        for known in filter(None, map(self._connections.get, set(self._waiting))):
            for fragment in known.waiting:
                sums[fragment.encoding][0] += fragment.kernel_logs
                sums[fragment.encoding][1] += fragment.protocol_logs
        return [Logs(*both) for both in sums]

    @property
    def settled(self) -> bool:
        """Whether `settle` would find nothing to look at."""
        return not self._waiting and not self._young

    def settle(self, now_ns: int) -> None:
        """Looks again at every process that may yet be ours, and at every connection that could not be named."""
        self._let_grow_up(now_ns)
        for _ in range(len(self._waiting)):
            identity = self._waiting.popleft()
            known = self._connections.get(identity)
            if known is None:
                continue
            if known.prefixes is None and not known.excluded and not self._name(known, now_ns):
                self._waiting.append(identity)
                continue
            known.deadline_ns = 0
            self._release(known, now_ns)

    def _release(self, known: _Known, now_ns: int) -> None:
        waiting, known.waiting = known.waiting, []
        self._waiting_fragments -= len(waiting)
        self._waiting_bytes -= sum(len(fragment.payload) for fragment in waiting)
        for fragment in waiting:
            if known.prefixes is None:
                self._count_filtered(known.excluded, fragment.kernel_logs, fragment.protocol_logs, fragment.encoding)
                continue
            self._write(
                known.prefixes, fragment.encoding, fragment.kernel_logs, fragment.protocol_logs, fragment.payload
            )
        if known.gone:
            self._drop(known, now_ns)

    def _drop(self, known: _Known, now_ns: int) -> None:
        self._book.forget(known.facts, now_ns)
        del self._connections[known.facts.id]

    # -- processes --

    def change_process(self, change: Change, now_ns: int) -> None:
        """Learns what the feed says of a process, and has it watched or not."""
        if isinstance(change, Removed):
            # The kernel side forgets a process at its exit, unless that came before the feed had named it.
            self._young.pop(change.key.pid, None)
            if self._book.remove_process(change.key):
                self._unwatch(change.key.pid)
            return
        process = change.process
        self._book.add_process(process)
        self._young.pop(process.key.pid, None)
        excluded = self._book.exclusion(process)
        if excluded == NOT_SELECTED and isinstance(change, Added):
            self._young[process.key.pid] = now_ns + _PROGRAM_WAIT_NS
        elif excluded or process.exited:
            # One that has ended is listed for a while, for its last logs' sake; its number is not to be watched.
            self._unwatch(process.key.pid)
        elif not self._watch(process.key.pid):
            self._counters.add("processes_not_watched", reason="table_full")
        if isinstance(change, Updated):
            self._rename(process.key.pid, now_ns)

    def _let_grow_up(self, now_ns: int) -> None:
        # In the order of their birth: the first that is too young ends the search.
        while self._young:
            pid, until_ns = next(iter(self._young.items()))
            if now_ns < until_ns:
                return
            del self._young[pid]
            self._unwatch(pid)

    def _rename(self, pid: int, now_ns: int) -> None:
        for known in self._connections.values():
            if known.facts.pid == pid and (known.prefixes is not None or known.excluded):
                known.prefixes = None
                known.excluded = ""
                if not self._name(known, now_ns):
                    known.deadline_ns = now_ns + _PEER_WAIT_NS
                    self._waiting.append(known.facts.id)

    # -- counting --

    def _count_filtered(self, reason: str, kernel_logs: int, protocol_logs: int, encoding: int) -> None:
        self._count("logs_filtered", reason, kernel_logs, protocol_logs, encoding)

    def _count_lost(self, reason: str, fragment: _Fragment) -> None:
        self._count("logs_lost", reason, fragment.kernel_logs, fragment.protocol_logs, fragment.encoding)

    def _count(self, counter: str, reason: str, kernel_logs: int, protocol_logs: int, encoding: int) -> None:
        for _, output in self._takers[encoding]:
            self._count_for(counter, output, reason, kernel_logs, protocol_logs)

    def _count_for(self, counter: str, output: Output, reason: str, kernel_logs: int, protocol_logs: int) -> None:
        if kernel_logs:
            self._counters.add(counter, kernel_logs, output=output.name, reason=reason, unit="kernel")
        if protocol_logs:
            self._counters.add(counter, protocol_logs, output=output.name, reason=reason, unit="protocol")
