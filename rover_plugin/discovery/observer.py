# SPDX-License-Identifier: Apache-2.0
"""Keeps the table of processes true to the host: one look at /proc, then the kernel's events."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from rover_plugin.discovery.cgroup_tree import CgroupTree
from rover_plugin.discovery.cgroups import parse_path
from rover_plugin.discovery.containers import Containers
from rover_plugin.discovery.listeners import listening_ports
from rover_plugin.discovery.local_finder import is_volatile
from rover_plugin.discovery.model import Process, ProcessKey
from rover_plugin.discovery.process_events import CgroupEvent, Kind
from rover_plugin.discovery.procfs import PROC, ProcessFacts, pids, read_process
from rover_plugin.discovery.rules import ACQUIRED_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rover_plugin.discovery.cgroup_tree import Hierarchy
    from rover_plugin.discovery.local_finder import Finder
    from rover_plugin.discovery.process_events import ProcessEvent
    from rover_plugin.discovery.table import ProcessTable

GRACE_S = 60.0  # how long the dead stay listed
MAX_EXITED = 4096  # and how many of them
# A server has opened its port and changed its user by then, and new processes are still watched on trial.
RECHECK_AFTER_S = 0.75
RECHECK_EVERY_S = 30.0
# What is due is done together for all that is due within these, so that churn does not wake us for each process.
_RECHECK_STEP_S = 0.25
_FORGET_STEP_S = 1.0
_NEVER = float("inf")


class ProcessObserver:
    """Not thread-safe: one thread calls everything. Times (`now`) are seconds of any clock that does not jump.

    Args:
        table: what to keep true.
        finders: who names the processes.
        own_pid: this process and its descendants are listed without entities, so nobody watches them.
        tree: knows the cgroups whose ids events carry.
        containers: tell which container a process is in.
    """

    def __init__(
        self,
        table: ProcessTable,
        finders: Sequence[Finder],
        *,
        own_pid: int | None = None,
        proc: str = PROC,
        tree: CgroupTree | None = None,
        containers: Containers | None = None,
    ) -> None:
        self._table = table
        self._tree = CgroupTree() if tree is None else tree
        self._containers = Containers(proc=proc) if containers is None else containers
        self._finders = finders
        self._proc = proc
        self._volatile = any(map(is_volatile, finders))
        self._by_port = any("port" in finder.fact_keys for finder in finders)
        self._decided = not any(finder.fact_keys & ACQUIRED_KEYS for finder in finders)
        self._root = os.getpid() if own_pid is None else own_pid
        self._own = {self._root}
        self._live: dict[int, ProcessFacts] = {}
        self._exited: OrderedDict[ProcessKey, float] = OrderedDict()  # to the time it is forgotten, soonest first
        self._young: dict[ProcessKey, float] = {}  # to the time it is looked at again, soonest first
        self._recheck_all_at = _NEVER
        # What the table does not know yet.
        self._changed: dict[ProcessKey, Process] = {}
        self._removed: list[ProcessKey] = []

    @property
    def living(self) -> int:
        """Number of processes alive."""
        return len(self._live)

    @property
    def wants_listeners(self) -> bool:
        """Whether an event is worth its cost when a process begins to listen."""
        return self._by_port

    @property
    def hierarchies(self) -> Sequence[Hierarchy]:
        """Trees of cgroups whose ids events are to carry."""
        return self._tree.hierarchies

    def survey(self, now: float) -> None:
        """Makes the table agree with /proc and the cgroup trees: at the beginning, and after events were lost."""
        self._tree.scan()
        self.scan(now)

    def scan(self, now: float) -> None:
        """Makes the table agree with /proc, whatever was missed."""
        found = self._read(pids(self._proc))
        for facts in [known for pid, known in self._live.items() if pid not in found or found[pid].key != known.key]:
            self._exit(facts.key, now)
        self._adopt(found)
        for facts in found.values():
            self._take(facts)
        self._recheck_all_at = now + RECHECK_EVERY_S if self._volatile else _NEVER
        self._publish()

    def apply(self, events: Iterable[ProcessEvent | CgroupEvent], now: float) -> None:
        """Takes events, oldest first; of several about one process the table sees only the outcome."""
        for event in events:
            if isinstance(event, CgroupEvent):
                self._follow_tree(event, now)
            elif event.kind == Kind.FORK:
                self._fork(event, now)
            elif event.kind == Kind.EXEC:
                self._execute(event, now)
            elif event.kind == Kind.LISTEN:
                self._listen(event, now)
            else:
                self._exit(event.key, now)
        self._publish()

    def tick(self, now: float) -> None:
        """Does what is due: forgets the dead, looks again at facts that change silently if rules ask for them."""
        while self._exited and next(iter(self._exited.values())) <= now:
            self._forget_oldest()
        if now >= self._recheck_all_at:
            self.scan(now)
        self._recheck_young(now)
        self._publish()

    def _follow_tree(self, event: CgroupEvent, now: float) -> None:
        if event.kind == Kind.CGROUP_MADE:
            self._tree.made(event.hierarchy, event.cgroup_id, event.path)
        else:
            self._tree.removed(event.hierarchy, event.cgroup_id, now)

    def _recheck_young(self, now: float) -> None:
        due = list(takewhile(lambda key: self._young[key] <= now, self._young))
        for key in due:
            del self._young[key]
        for facts in self._read(key.pid for key in due).values():
            known = self._live.get(facts.key.pid)
            if known is not None and known.key == facts.key:
                self._take(facts)

    def next_due(self) -> float:
        """When `tick` has something to do, infinite if it has not."""
        forget_at = _rounded_up(next(iter(self._exited.values()), _NEVER), _FORGET_STEP_S)
        recheck_at = _rounded_up(next(iter(self._young.values()), _NEVER), _RECHECK_STEP_S)
        return min(forget_at, recheck_at, self._recheck_all_at)

    def _read(self, wanted: Iterable[int]) -> dict[int, ProcessFacts]:
        found = {pid: facts for pid in wanted if (facts := read_process(pid, self._proc)) is not None}
        found = self._containers.place(found, self._live)
        if self._by_port:
            ports = listening_ports(found, self._proc)
            return {pid: replace(facts, ports=ports.get(pid, frozenset())) for pid, facts in found.items()}
        return found

    def _fork(self, event: ProcessEvent, now: float) -> None:
        known = self._live.get(event.key.pid)
        if known is not None and known.key == event.key:
            return  # a scan was faster
        if known is not None:
            self._exit(known.key, now)  # its end was lost
        self._take(self._child(event))
        self._note_young(event.key, now)

    def _child(self, event: ProcessEvent) -> ProcessFacts:
        """A child is like its parent, so a fork costs no look at /proc unless it was born into another cgroup."""
        parent = self._live.get(event.parent)
        if parent is not None and parent.cgroup_id in {0, event.cgroup_id} and not self._enters(event, parent):
            return _as_of(event, parent)
        facts = read_process(event.key.pid, self._proc)
        if facts is None or facts.key != event.key:
            facts = self._as_of(event, parent)
        return self._placed(facts)

    def _enters(self, event: ProcessEvent, parent: ProcessFacts) -> bool:
        """Whether a child is the first process of a pid namespace, as containers without a cgroup show themselves."""
        return parent.container is None and parent.pid_namespace not in {0, event.pid_namespace}

    def _placed(self, facts: ProcessFacts) -> ProcessFacts:
        return self._containers.place({facts.key.pid: facts}, self._live)[facts.key.pid]

    def _as_of(self, event: ProcessEvent, base: ProcessFacts | None) -> ProcessFacts:
        """What an event tells, over what was known before; the cgroup's path too."""
        facts = _as_of(event, base)
        path = self._tree.path(event.cgroup_id, event.hierarchy, event.cgroup_v1_id)
        return replace(facts, cgroup=parse_path(path), container=None) if path else facts

    def _execute(self, event: ProcessEvent, now: float) -> None:
        known = self._live.get(event.key.pid)
        if known is not None and known.key != event.key:
            self._exit(known.key, now)
            known = None
        facts = read_process(event.key.pid, self._proc)
        if facts is None or facts.key != event.key:  # it is gone already
            cmdline = event.arguments or (event.filename,)
            facts = replace(self._as_of(event, known), exe=_executable(event), cmdline=cmdline)
        elif known is not None:
            facts = replace(facts, ports=known.ports)
        self._take(self._placed(facts))
        self._note_young(event.key, now)

    def _listen(self, event: ProcessEvent, now: float) -> None:
        known = self._live.get(event.key.pid)
        if known is None or known.key != event.key:
            return  # its birth was lost, and the scan that follows finds the port
        if event.port:
            self._take(replace(known, ports=known.ports | {event.port}))
        # The port may be still to choose, or be refused.
        self._note_young(event.key, now)

    def _exit(self, key: ProcessKey, now: float) -> None:
        facts = self._live.get(key.pid)
        if facts is None or facts.key != key:
            return
        process = self._changed.get(key) or self._table.get(key) or self._process(facts)
        del self._live[key.pid]
        self._containers.ended(key)
        self._young.pop(key, None)
        self._own -= {key.pid} - {self._root}
        if not process.entities:  # nobody has logs of it
            self._changed.pop(key, None)
            self._removed.append(key)
            return
        self._changed[key] = replace(process, exited=True)
        self._exited[key] = now + GRACE_S
        if len(self._exited) > MAX_EXITED:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, _ = self._exited.popitem(last=False)
        self._changed.pop(key, None)
        self._removed.append(key)

    def _take(self, facts: ProcessFacts) -> None:
        if facts.parent in self._own:
            self._own.add(facts.key.pid)
        if self._live.get(facts.key.pid) != facts:
            self._live[facts.key.pid] = facts
            self._changed[facts.key] = self._process(facts)

    def _adopt(self, found: dict[int, ProcessFacts]) -> None:
        """Extends what is ours to all descendants; those that lost their parent meanwhile stay ours."""
        while children := {pid for pid, facts in found.items() if facts.parent in self._own} - self._own:
            self._own |= children

    def _note_young(self, key: ProcessKey, now: float) -> None:
        facts = self._live.get(key.pid)
        if self._volatile or (facts is not None and _awaits_name(facts)):
            self._young.pop(key, None)  # the latest program counts, and goes to the end
            self._young[key] = now + RECHECK_AFTER_S

    def _process(self, facts: ProcessFacts) -> Process:
        watched = facts.key.pid not in self._own
        return Process(
            key=facts.key,
            exe=facts.exe,
            cmdline=facts.cmdline,
            pid_namespace=facts.pid_namespace,
            cgroup_id=facts.cgroup_id,
            container_id=facts.container.id if facts.container else "",
            entities=tuple(entity for finder in self._finders for entity in finder.entities(facts)) if watched else (),
            decided=(self._decided and not _awaits_name(facts)) or not watched,
        )

    def _publish(self) -> None:
        if self._changed or self._removed:
            self._table.update(self._changed.values(), self._removed)
            self._changed.clear()
            self._removed.clear()


def _awaits_name(facts: ProcessFacts) -> bool:
    """Whether its container has no name yet, which a rule may look at."""
    return facts.container is not None and not facts.container.name


def _rounded_up(at: float, step_s: float) -> float:
    return at if at == _NEVER else math.ceil(at / step_s) * step_s


def _executable(event: ProcessEvent) -> str:
    """What /proc/PID/exe would have shown: for a script its interpreter, which the script is an argument of."""
    script = event.filename in event.arguments[1:3]  # an argument on the `#!` line may come before (execve(2))
    return event.arguments[0] if script else event.filename


def _as_of(event: ProcessEvent, base: ProcessFacts | None) -> ProcessFacts:
    """What an event tells, over what was known before."""
    return replace(
        base or ProcessFacts(event.key),
        key=event.key,
        parent=event.parent,
        comm=event.comm,
        uid=event.uid,
        cgroup_id=event.cgroup_id,
        pid_namespace=event.pid_namespace,
    )
