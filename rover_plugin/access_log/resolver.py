# SPDX-License-Identifier: Apache-2.0
"""Names connections and gives every fragment, behind its connection's prefix, to the outputs. No clock, no socket.

A connection's first fragments wait for its other end, which may be on this host: at most until every worker has handed
over what was recorded by then. They also wait for the feed to name the processes of both ends. All waits are bounded
and counted. Names that come later are given to the later fragments. The hub and `replay` drive the same code.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.access_log.address_book import NOT_SELECTED
from rover_plugin.access_log.link import FRAGMENT, Item, read_connection, read_items
from rover_plugin.access_log.questions import Questions
from rover_plugin.discovery.table import Added, Removed
from rover_plugin.telemetry.ledger import HUB_FULL, Ledger, Logs
from rover_plugin.telemetry.telemetry import Histograms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rover_plugin.access_log.address_book import AddressBook
    from rover_plugin.access_log.link import ConnectionFacts
    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.capture.recording import Translation
    from rover_plugin.discovery.model import Process, ProcessKey
    from rover_plugin.discovery.table import Change
    from rover_plugin.telemetry.counters import Counters

log = structlog.get_logger(__name__)

FOREVER_NS: Final = 1 << 63
# A process is named by the feed within milliseconds of its exec; one nobody names is not ours to report.
_PROCESS_WAIT_NS: Final = 3_000_000_000
# A process is born with its parent's program; whether the one it is about to run is ours, the feed says a moment later.
_PROGRAM_WAIT_NS: Final = 1_000_000_000
# A worker that falls further behind than this is not waited for.
_PEER_WAIT_NS: Final = 3_000_000_000
# What may wait for a name at most: a few seconds of a busy process that the feed has not named yet.
_MAX_WAITING: Final = 200_000
_MAX_WAITING_BYTES: Final = 64 << 20
_MAX_WAITING_CONNECTIONS: Final = 65_536
_MOST_FAULTS_SHOWN: Final = 16
_FAULT_CHARACTERS: Final = 500
_LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_IDLE: Final = -1


class _Lacks(Enum):
    """What a connection cannot be decided for want of."""

    NOTHING = 0
    PEER = 1  # its other end, which may not be on this host
    FEED = 2  # the name of a process at one of its ends


@dataclass(slots=True)
class _Fragment:
    encoding: int
    kernel_logs: int
    protocol_logs: int
    payload: bytes


@dataclass(slots=True)
class _Young:
    """A new process that is not ours so far.

    Attributes:
        until_ns: when that cannot change any more.
        refused: the kernel side has let it go already.
    """

    key: ProcessKey
    until_ns: int
    refused: bool


@dataclass(slots=True)
class _Known:
    """A connection's present facts and, once it can be named, its prefixes by output.

    Attributes:
        without_peer: prefixes that do for calls while the other end is not known: an exchange waits for it once more.
        heard: an exchange has waited for the other end.
        since_ns: since when what is in `waiting` waits; _IDLE if nothing does.
    """

    facts: ConnectionFacts
    prefixes: list[bytes | None] | None = None  # None of an output that cannot take the connection
    without_peer: list[bytes | None] | None = None
    excluded: str = ""
    since_ns: int = _IDLE
    heard: bool = False
    waiting: list[_Fragment] = field(default_factory=list)
    gone: bool = False


class Resolver:
    """Everything between the workers' links and the outputs. Not thread-safe.

    Args:
        encodings: in the order of the index workers put on fragments.
        watch, unwatch: tell the kernel side about a process.
        workers: how many there are to wait for.
        translate: asks for a connection's other end behind address translation; `translated` takes the answer.
        refuse: as `unwatch`, for a process as the feed describes it; False if it runs another program by now, and stays
            watched. By default it is taken for what the feed says.
        decided: told of a process that has ended whether it was ours.

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
        workers: int = 1,
        translate: Callable[[ConnectionFacts], None] | None = None,
        refuse: Callable[[Process], bool] | None = None,
        decided: Callable[[int, bool], None] = lambda _pid, _chosen: None,
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
        self._refuse = refuse or self._refuse_unseen
        self._decided = decided
        self._connections: dict[int, _Known] = {}
        self._of_process: dict[int, set[int]] = {}  # pid -> its connections
        self._reached_ns = [0] * workers
        # Connections that wait for their other end, with the time since when; those that wait for the feed.
        self._for_peer: deque[tuple[int, _Known]] = deque()
        self._for_feed: dict[int, _Known] = {}
        self._questions = Questions(translate)
        self._peers: Counter[str] = Counter()  # for the counter `peers`, which costs more to add to
        # By pid, in the order of their time: new processes that are not ours so far, and others that stay watched until
        # then because they may run another program already.
        self._young: dict[int, _Young] = {}
        self._doubtful: dict[int, int] = {}
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
            else:
                self._take_undecided(known, _Fragment(encoding, kernel_logs, protocol_logs, payload), now_ns)

    def _take_undecided(self, known: _Known, fragment: _Fragment, now_ns: int) -> None:
        if known.excluded:
            self._drop_fragment(known, fragment)
        elif known.without_peer is not None and not fragment.protocol_logs:
            self._write_held(known.without_peer, fragment)
        else:
            self._hold(known, fragment, now_ns)

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
        elif kind == Item.REACHED:
            self._reached_ns[worker] = max(self._reached_ns[worker], identity)
            self._settle_peers(now_ns)
        else:
            self.ledger.report(worker, json.loads(payload), self.waiting_logs())

    def _describe(self, identity: int, payload: bytes, now_ns: int) -> None:
        facts = read_connection(identity, payload)
        known = self._connections.get(identity)
        if known is None:
            known = self._connections[identity] = _Known(facts)
            self._of_process.setdefault(facts.pid, set()).add(identity)
            owner_is_new = True
        else:
            # What waits was said under the old facts, but by the same socket: it goes out under the new ones.
            owner_is_new = facts.pid != known.facts.pid
            if owner_is_new:
                self._disown(known)
                self._of_process.setdefault(facts.pid, set()).add(identity)
            known.facts = facts
            known.excluded = ""
        self._book.learn(facts)
        self._name(known, now_ns)
        if owner_is_new:
            self._name_other_end(known, now_ns)

    def _name(self, known: _Known, now_ns: int) -> None:
        """Decides a connection, or names it anew; what waits goes out if everything is known."""
        if self._decide(known, now_ns) is _Lacks.NOTHING:
            return
        if known.prefixes is not None:
            known.prefixes = self._prefixes(known)
        elif known.without_peer is not None:
            known.without_peer = self._prefixes(known)

    def _name_other_end(self, known: _Known, now_ns: int) -> None:
        other = self._book.other_end(known.facts)
        peer = self._connections.get(other.facts.id) if other is not None else None
        if peer is not None and peer is not known and not peer.excluded:
            self._name(peer, now_ns)

    def _decide(self, known: _Known, now_ns: int, *, final: bool = False) -> _Lacks:
        """Decides a connection if nothing is lacking, or if this is `final`, and gives out what waits."""
        facts = known.facts
        if not self._book.knows(facts.pid):
            if not final:
                return _Lacks.FEED
            known.excluded = "unknown_process"
        elif excluded := self._book.exclusion_of(facts.pid):
            if not final and facts.pid in self._young:
                return _Lacks.FEED
            known.excluded, known.prefixes, known.without_peer = excluded, None, None
        else:
            lacking = _Lacks.NOTHING if final else self._lacks(facts)
            if lacking is not _Lacks.NOTHING:
                return lacking
            if known.prefixes is None:
                self._peers[self._book.knowledge_of_peer(facts)] += 1
            known.prefixes = self._prefixes(known)
        self._release(known, now_ns)
        return _Lacks.NOTHING

    def _lacks(self, facts: ConnectionFacts) -> _Lacks:
        """Whether the other end is known, and who it is will not change in a moment."""
        other = self._book.other_end(facts)
        if other is None:
            return _Lacks.PEER
        if self._book.owner_of(other) is None or other.facts.pid in self._young:
            return _Lacks.FEED
        return _Lacks.NOTHING

    def _prefixes(self, known: _Known) -> list[bytes | None]:
        resolved = self._book.resolve(known.facts)
        return [self._prefix(output, resolved) for output in self._outputs]

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

    def _hold(self, known: _Known, fragment: _Fragment, now_ns: int) -> None:
        size = len(fragment.payload)
        full = self._waiting_fragments >= _MAX_WAITING or self._waiting_bytes + size > _MAX_WAITING_BYTES
        crowded = known.since_ns == _IDLE and len(self._for_peer) + len(self._for_feed) >= _MAX_WAITING_CONNECTIONS
        if full or crowded:
            self._do_without(known, fragment, now_ns, full=full)
            return
        self._waiting_fragments += 1
        self._waiting_bytes += size
        known.waiting.append(fragment)
        if known.since_ns == _IDLE or (fragment.protocol_logs and not known.heard):
            # The other end's records were written before this exchange was over.
            known.heard = known.heard or bool(fragment.protocol_logs)
            known.since_ns = now_ns
            self._for_peer.append((now_ns, known))

    def _do_without(self, known: _Known, fragment: _Fragment, now_ns: int, *, full: bool) -> None:
        """There is no room to wait: what is known must do. Who is not known may yet be one to be left out."""
        pid = known.facts.pid
        if full and (not self._book.knows(pid) or pid in self._young):
            self._count_lost(HUB_FULL, fragment)
            return
        self._counters.add("connections_named_early")
        self._decide(known, now_ns, final=True)
        self._give_out(known, fragment)

    @property
    def connections(self) -> int:
        """How many it knows."""
        return len(self._connections)

    def waiting_logs(self) -> list[Logs]:
        """By encoding index, what waits for a name."""
        sums = [[0, 0] for _ in self._takers]
        asked = filter(None, map(self._connections.get, self._questions.open))
        parties = [*(known for _, known in self._for_peer), *self._for_feed.values(), *asked]
        waiting = {known.facts.id: known for known in parties}
        for known in waiting.values():
            for fragment in known.waiting:
                sums[fragment.encoding][0] += fragment.kernel_logs
                sums[fragment.encoding][1] += fragment.protocol_logs
        return [Logs(*both) for both in sums]

    @property
    def settled(self) -> bool:
        """Whether `settle` would find nothing to look at."""
        waiting = (self._for_peer, self._for_feed, self._young, self._doubtful, self._questions.open)
        return not any(waiting)

    def settle(self, now_ns: int) -> None:
        """Looks again at every process that may yet be ours, and at every connection that could not be named."""
        self._let_grow_up(now_ns)
        for known in list(self._for_feed.values()):
            lacking = self._decide(known, now_ns)
            if lacking is _Lacks.PEER or (lacking is _Lacks.FEED and now_ns >= known.since_ns + _PROCESS_WAIT_NS):
                del self._for_feed[known.facts.id]
                self._for_peer.append((known.since_ns, known))
        self._settle_peers(now_ns)
        for identity in self._questions.overdue(now_ns):
            self._settle_asked(identity, now_ns)
        for result, count in self._peers.items():
            self._counters.add("peers", count, result=result)
        self._peers.clear()

    def translated(self, answers: Iterable[Translation], now_ns: int) -> None:
        """Takes answers to what `translate` was asked."""
        for answer in answers:
            known = self._connections.get(answer.id)
            self._questions.answered(answer.id, known.facts if known is not None else None, answer, now_ns)
            if answer.address:
                self._book.translate(answer.id, (answer.address, answer.port))
            self._settle_asked(answer.id, now_ns)

    def _settle_asked(self, identity: int, now_ns: int) -> None:
        known = self._connections.get(identity)
        if known is None:
            return
        if known.prefixes is None and not known.excluded:
            self._decide(known, now_ns, final=True)
        else:
            self._name(known, now_ns)

    def _settle_peers(self, now_ns: int) -> None:
        """Decides what has waited for its other end until every worker had handed over what was recorded by then."""
        due_ns = max(min(self._reached_ns, default=0), now_ns - _PEER_WAIT_NS)
        while self._for_peer and self._for_peer[0][0] <= due_ns:
            since_ns, known = self._for_peer.popleft()
            if known.since_ns != since_ns or known.prefixes is not None or known.excluded:
                continue  # decided, or waiting anew
            lacking = self._decide(known, now_ns)
            if lacking is _Lacks.FEED and now_ns < since_ns + _PROCESS_WAIT_NS:
                self._for_feed[known.facts.id] = known
            elif lacking is not _Lacks.NOTHING:
                self._go_without(known, now_ns)

    def _go_without(self, known: _Known, now_ns: int) -> None:
        """The other end has not shown itself in time."""
        pid = known.facts.pid
        if not self._book.knows(pid) or self._book.exclusion_of(pid):
            self._decide(known, now_ns, final=True)
        elif not known.heard:
            known.without_peer = self._prefixes(known)
            self._release(known, now_ns)
        elif not self._questions.ask(known.facts, now_ns):
            self._decide(known, now_ns, final=True)

    def _release(self, known: _Known, now_ns: int) -> None:
        known.since_ns = _IDLE
        if self._for_feed:
            self._for_feed.pop(known.facts.id, None)
        if known.waiting:
            waiting, known.waiting = known.waiting, []
            self._waiting_fragments -= len(waiting)
            for fragment in waiting:
                self._waiting_bytes -= len(fragment.payload)
                self._give_out(known, fragment)
        if known.gone:
            self._drop(known, now_ns)

    def _give_out(self, known: _Known, fragment: _Fragment) -> None:
        prefixes = known.prefixes if known.prefixes is not None else known.without_peer
        if prefixes is None:
            self._drop_fragment(known, fragment)
        else:
            self._write_held(prefixes, fragment)

    def _write_held(self, prefixes: Sequence[bytes | None], fragment: _Fragment) -> None:
        self._write(prefixes, fragment.encoding, fragment.kernel_logs, fragment.protocol_logs, fragment.payload)

    def _drop(self, known: _Known, now_ns: int) -> None:
        if self._connections.pop(known.facts.id, None) is not None:
            self._book.forget(known.facts, now_ns)
            self._disown(known)

    def _disown(self, known: _Known) -> None:
        theirs = self._of_process[known.facts.pid]
        theirs.discard(known.facts.id)
        if not theirs:
            del self._of_process[known.facts.pid]

    # -- processes --

    def change_process(self, change: Change, now_ns: int) -> None:
        """Learns what the feed says of a process, and has it watched or not."""
        if isinstance(change, Removed):
            self._forget(change.key)
            return
        process = change.process
        pid = process.key.pid
        self._book.add_process(process)
        self._young.pop(pid, None)
        self._doubtful.pop(pid, None)
        excluded = self._book.exclusion(process)
        if not excluded and not process.exited:
            if not self._watch(pid):
                self._counters.add("processes_not_watched", reason="table_full")
        elif process.exited or excluded != NOT_SELECTED:
            # One that has ended is listed for a while, for its last logs' sake; its number is not to be watched.
            self._unwatch(pid)
            self._decided(pid, not excluded)
        else:
            self._doubt(process, isinstance(change, Added), now_ns)
        self._rename(pid, now_ns)

    def _forget(self, key: ProcessKey) -> None:
        young = self._young.get(key.pid)
        if young is not None and young.key == key:
            del self._young[key.pid]
            self._decided(key.pid, False)  # noqa: FBT003 as the callback has it
        ours = self._book.knows(key.pid) and not self._book.exclusion_of(key.pid)
        # The kernel side forgets a process at its exit, unless that came before the feed had named it.
        if self._book.remove_process(key) and ours:
            self._unwatch(key.pid)

    def _doubt(self, process: Process, new: bool, now_ns: int) -> None:
        """Lets a process go that nobody chooses, unless what it is told to be is not all it may become."""
        until_ns = now_ns + _PROGRAM_WAIT_NS
        refused = (process.decided or not new) and self._refuse(process)
        if new:
            self._young[process.key.pid] = _Young(process.key, until_ns, refused)
        elif not refused:
            self._doubtful[process.key.pid] = until_ns

    def _refuse_unseen(self, process: Process) -> bool:
        self._unwatch(process.key.pid)
        return True

    def _let_grow_up(self, now_ns: int) -> None:
        # In the order of their birth: the first that is too young ends the search.
        while self._young:
            pid, young = next(iter(self._young.items()))
            if now_ns < young.until_ns:
                break
            del self._young[pid]
            if not young.refused:
                self._unwatch(pid)
        while self._doubtful:
            pid, until_ns = next(iter(self._doubtful.items()))
            if now_ns < until_ns:
                break
            del self._doubtful[pid]
            self._unwatch(pid)

    def _rename(self, pid: int, now_ns: int) -> None:
        """Names the connections of a process, and their other ends, as it is called now."""
        for identity in list(self._of_process.get(pid, ())):
            known = self._connections.get(identity)
            if known is None:
                continue  # one that had ended, and went with what it waited for
            known.excluded = ""
            self._name(known, now_ns)
            self._name_other_end(known, now_ns)

    # -- counting --

    def _drop_fragment(self, known: _Known, fragment: _Fragment) -> None:
        reason = known.excluded or "unknown_process"
        self._count_filtered(reason, fragment.kernel_logs, fragment.protocol_logs, fragment.encoding)

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
