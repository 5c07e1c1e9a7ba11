# SPDX-License-Identifier: Apache-2.0
"""The table follows the host: scans of real processes, and events in every order."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from rover_plugin.discovery import observer as observer_module
from rover_plugin.discovery.cgroup_tree import CgroupTree, Hierarchy
from rover_plugin.discovery.containers import Containers
from rover_plugin.discovery.local_finder import LocalFinder
from rover_plugin.discovery.model import Process, ProcessKey
from rover_plugin.discovery.observer import GRACE_S, RECHECK_AFTER_S, RECHECK_EVERY_S, ProcessObserver
from rover_plugin.discovery.process_events import CgroupEvent, Kind, ProcessEvent
from rover_plugin.discovery.procfs import read_process
from rover_plugin.discovery.rules import parse_rules
from rover_plugin.discovery.table import Added, ProcessTable, Removed, Updated

if TYPE_CHECKING:
    from collections.abc import Iterator


NOBODY = 2**22 + 1  # above any pid_max, so /proc knows nothing of it
EVERYTHING = LocalFinder("OS_LINUX", "host-1")


def event(kind: Kind, pid: int = NOBODY, start: int = 5, **facts: object) -> ProcessEvent:
    base = ProcessEvent(kind, ProcessKey(pid, start), NOBODY + 100, 0, 1, 4026531836, "worker", "")
    return base._replace(**facts)


def observing(*finders: LocalFinder, own_pid: int = NOBODY + 200) -> tuple[ProcessObserver, ProcessTable]:
    table = ProcessTable()
    return ProcessObserver(table, finders or [EVERYTHING], own_pid=own_pid), table


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            # Popen returns as soon as execve(2) has begun; arguments come last.
            while psutil.Process(child.pid).cmdline() != ["sleep", "60"]:
                os.sched_yield()
            yield child
        finally:
            child.kill()


def listed(table: ProcessTable, pid: int) -> list[Process]:
    return [process for process in table.snapshot()[1] if process.key.pid == pid]


def test_a_scan_lists_what_runs_and_retires_what_has_ended() -> None:
    observer, table = observing()
    with sleeping() as child:
        observer.scan(0)
        (process,) = listed(table, child.pid)
        assert process.cmdline == ("sleep", "60")
        assert [entity.service for entity in process.entities] == ["sleep"]
    observer.scan(1)
    assert listed(table, child.pid) == [replace(process, exited=True)]
    observer.tick(1 + GRACE_S)
    assert listed(table, child.pid) == []


def test_a_scan_that_finds_nothing_new_changes_nothing() -> None:
    observer, table = observing(LocalFinder("OS_LINUX", "h", include=parse_rules("k", ["exe=sleep"])))
    with sleeping() as child:
        observer.scan(0)
        (before,) = listed(table, child.pid)
        observer.scan(1)
        assert listed(table, child.pid) == [before]


def test_the_hosts_own_process_and_its_descendants_have_no_entities() -> None:
    program = "import subprocess,sys; p=subprocess.Popen(['sleep','60']); print(p.pid, flush=True); "
    command = [sys.executable, "-c", program + "sys.stdin.read(); p.kill()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        observer, table = observing(own_pid=os.getpid())
        observer.scan(0)
        for pid in (os.getpid(), child.pid, grandchild):
            assert [process.entities for process in listed(table, pid)] == [()]
        assert listed(table, os.getppid())[0].entities != ()
        child.communicate("")


def test_descendants_of_the_host_that_events_tell_of_have_no_entities() -> None:
    observer, table = observing(own_pid=NOBODY)
    observer.apply([event(Kind.FORK, NOBODY + 1, parent=NOBODY), event(Kind.FORK, NOBODY + 2, parent=NOBODY + 1)], 0)
    assert [process.entities for process in table.snapshot()[1]] == [(), ()]
    observer.apply([event(Kind.EXIT, NOBODY + 2)], 0)
    observer.apply([event(Kind.FORK, NOBODY + 2, start=9)], 0)  # the pid is somebody else's now
    assert [process.entities != () for process in listed(table, NOBODY + 2)] == [True]


def test_a_fork_makes_a_process_like_its_parent() -> None:
    observer, table = observing()
    with sleeping() as parent:
        observer.scan(0)
        cgroup = listed(table, parent.pid)[0].cgroup_id
        observer.apply([event(Kind.FORK, parent=parent.pid, cgroup_id=cgroup)], 1)
        (child,), (original,) = listed(table, NOBODY), listed(table, parent.pid)
        assert child == replace(original, key=ProcessKey(NOBODY, 5))


def test_an_exec_is_read_from_proc_and_announced_as_an_update() -> None:
    with sleeping() as child:
        facts = read_process(child.pid)
        assert facts is not None
        observer, table = observing()
        start = facts.key.start_time
        observer.apply([event(Kind.EXEC, NOBODY, filename="/bin/shell")], 0)
        observer.apply([event(Kind.FORK, child.pid, start, parent=NOBODY)], 0)
        observer.apply([event(Kind.EXEC, child.pid, start, filename="/ignored")], 0)
        _, added, updated = table.since(0) or []
        assert isinstance(added, Added)
        assert added.process.exe == "/bin/shell"
        assert isinstance(updated, Updated)
        assert updated.process.cmdline == ("sleep", "60")
        assert updated.process.entities[0].service == "sleep"


def test_a_process_that_has_ended_before_we_looked_is_named_by_its_exec_event() -> None:
    observer, table = observing()
    life = [event(Kind.FORK), event(Kind.EXEC, filename="/opt/shop/cart", comm="cart"), event(Kind.EXIT)]
    observer.apply(life, 0)
    (process,) = table.snapshot()[1]
    assert (process.exe, process.exited) == ("/opt/shop/cart", True)
    assert [(entity.service, entity.process) for entity in process.entities] == [("cart", "cart")]
    assert len(table.since(0) or []) == 1
    assert observer.living == 0


def test_rules_see_the_arguments_of_a_process_that_has_ended_before_we_looked() -> None:
    observer, table = observing()
    observer.apply([event(Kind.EXEC, filename="/bin/cart", arguments=("cart", "--shop=7")), event(Kind.EXIT)], 0)
    (process,) = table.snapshot()[1]
    assert process.cmdline == ("cart", "--shop=7")


@pytest.mark.parametrize(
    "arguments",
    [("/bin/sh", "/srv/shop.sh", "x"), ("/usr/bin/perl", "-w", "/srv/shop.sh")],
)
def test_a_script_that_has_ended_before_we_looked_is_named_as_one_that_runs(arguments: tuple[str, ...]) -> None:
    observer, table = observing()
    observer.apply([event(Kind.EXEC, filename="/srv/shop.sh", arguments=arguments), event(Kind.EXIT)], 0)
    (process,) = table.snapshot()[1]
    assert (process.exe, process.entities[0].service) == (arguments[0], "shop")


def test_an_exec_without_its_fork_is_a_process_all_the_same() -> None:
    observer, table = observing()
    observer.apply([event(Kind.EXEC, filename="/bin/x")], 0)
    assert [process.exe for process in table.snapshot()[1]] == ["/bin/x"]


def test_a_reused_pid_ends_the_process_whose_exit_was_lost() -> None:
    observer, table = observing()
    observer.apply([event(Kind.EXEC, start=5, filename="/bin/old")], 0)
    observer.apply([event(Kind.FORK, start=6)], 1)
    observer.apply([event(Kind.EXEC, start=7, filename="/bin/new")], 2)
    states = [(process.key.start_time, process.exited) for process in listed(table, NOBODY)]
    assert states == [(5, True), (6, True), (7, False)]


def test_events_that_come_twice_or_too_late_change_nothing() -> None:
    observer, table = observing()
    observer.apply([event(Kind.EXEC, filename="/bin/x")], 0)
    before = table.snapshot()
    observer.apply([event(Kind.FORK), event(Kind.EXIT, start=4), event(Kind.EXIT, NOBODY + 1)], 0)
    assert table.snapshot() == before


def test_a_process_nobody_watches_is_dropped_when_it_ends() -> None:
    observer, table = observing(LocalFinder("OS_LINUX", "h", include=parse_rules("k", ["exe=nginx"])))
    observer.apply([event(Kind.EXEC, filename="/bin/x")], 0)
    assert table.snapshot()[1][0].entities == ()
    observer.apply([event(Kind.EXIT)], 0)
    assert (table.since(0) or [])[-1] == Removed(ProcessKey(NOBODY, 5))
    assert len(table) == 0


def test_the_dead_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer_module, "MAX_EXITED", 10)
    observer, table = observing()
    for number in range(100):
        life = (Kind.FORK, Kind.EXIT)
        observer.apply([event(kind, NOBODY + number) for kind in life], number)
    assert len(table) == 10
    assert {process.key.pid for process in table.snapshot()[1]} == {NOBODY + number for number in range(90, 100)}
    assert observer.next_due() == 90 + GRACE_S


def test_a_port_opened_after_the_start_is_found_by_the_second_look() -> None:
    finder = LocalFinder("OS_LINUX", "h", include=parse_rules("k", ["port=1-65535"]))
    program = "import socket,sys; sys.stdin.readline(); s=socket.create_server(('127.0.0.1',0)); "
    command = [sys.executable, "-c", program + "print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        observer, table = observing(finder)
        observer.scan(0)
        start = listed(table, child.pid)[0].key.start_time
        observer.apply([event(Kind.EXEC, child.pid, start)], 1)
        assert listed(table, child.pid)[0].entities == ()
        child.stdin.write("listen\n")
        child.stdout.readline()
        assert observer.next_due() == 1 + RECHECK_AFTER_S
        observer.tick(observer.next_due())
        assert listed(table, child.pid)[0].entities != ()
        child.stdin.close()
        child.wait()
        assert observer.next_due() == RECHECK_EVERY_S
        observer.tick(RECHECK_EVERY_S)
        assert listed(table, child.pid)[0].exited


def test_without_rules_on_facts_that_change_nothing_is_looked_at_again() -> None:
    observer, _ = observing(LocalFinder("OS_LINUX", "h", include=parse_rules("k", ["exe=nginx"])))
    observer.scan(0)
    observer.apply([event(Kind.FORK)], 0)
    assert observer.next_due() == float("inf")


def test_each_process_is_looked_at_again_when_it_is_old_enough_and_the_dead_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finder = LocalFinder("OS_LINUX", "h", include=parse_rules("k", ["user=nobody"]))
    observer, _ = observing(finder)
    observer.apply([event(Kind.FORK, NOBODY), event(Kind.FORK, NOBODY + 1)], 1)
    observer.apply([event(Kind.EXIT, NOBODY), event(Kind.FORK, NOBODY + 2)], 1.5)
    looked_at: list[int] = []
    monkeypatch.setattr(observer_module, "read_process", lambda pid, _proc: looked_at.append(pid))
    observer.tick(1 + RECHECK_AFTER_S)
    assert looked_at == [NOBODY + 1]
    assert observer.next_due() == 1.5 + RECHECK_AFTER_S
    observer.tick(1.5 + RECHECK_AFTER_S)
    assert looked_at == [NOBODY + 1, NOBODY + 2]
    assert observer.next_due() == float("inf")


def test_processes_that_end_one_after_the_other_are_forgotten_together() -> None:
    observer, table = observing()
    for number in range(10):
        observer.apply([event(kind, NOBODY + number) for kind in (Kind.FORK, Kind.EXIT)], 5.05 + number / 20)
    assert observer.next_due() == 6 + GRACE_S
    observer.tick(observer.next_due())
    assert len(table) == 0


def test_an_ended_process_is_placed_by_the_cgroup_its_event_names_though_that_is_gone_too() -> None:
    tree = CgroupTree([Hierarchy(0, "/nowhere"), Hierarchy(8, "/nowhere", "pids")])
    table = ProcessTable()
    observer = ProcessObserver(table, [EVERYTHING], own_pid=-1, tree=tree, containers=Containers(root="/nowhere"))
    observer.apply(
        [
            CgroupEvent(Kind.CGROUP_MADE, 8, 70, "/lxc.payload.web/system.slice/nginx.service"),
            event(Kind.FORK),
            event(Kind.EXEC, filename="/usr/sbin/nginx", cgroup_id=1, cgroup_v1_id=70, hierarchy=8),
            event(Kind.EXIT),
            CgroupEvent(Kind.CGROUP_REMOVED, 8, 70, ""),
        ],
        0,
    )
    (process,) = table.snapshot()[1]
    assert [(entity.service, entity.container) for entity in process.entities] == [("web/nginx", "web")]


def test_a_listener_is_chosen_by_its_event_without_another_look() -> None:
    observer, table = observing(LocalFinder("OS_LINUX", "h", include=parse_rules("k", ["port=8080"])))
    observer.apply([event(Kind.EXEC, filename="/bin/x")], 0)
    assert listed(table, NOBODY)[0].entities == ()
    observer.apply([event(Kind.LISTEN, port=8080)], 0.1)
    assert listed(table, NOBODY)[0].entities != ()
    observer.apply([event(Kind.FORK, NOBODY + 1, parent=NOBODY)], 0.2)  # a worker inherits the socket
    assert listed(table, NOBODY + 1)[0].entities != ()


def test_a_listener_of_an_unknown_process_or_port_waits_for_the_next_look() -> None:
    observer, table = observing(LocalFinder("OS_LINUX", "h", include=parse_rules("k", ["port=8080"])))
    observer.apply([event(Kind.LISTEN, port=8080)], 0)
    assert len(table) == 0
    observer.apply([event(Kind.EXEC, filename="/bin/x"), event(Kind.LISTEN, port=0)], 1)
    assert listed(table, NOBODY)[0].entities == ()
    assert observer.next_due() == 1 + RECHECK_AFTER_S


def test_a_container_without_a_name_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, containers = CgroupTree([Hierarchy(0, "/nowhere")]), Containers(root="/nowhere")
    observer = ProcessObserver(ProcessTable(), [EVERYTHING], own_pid=-1, tree=tree, containers=containers)
    looked_at: list[int] = []
    observer.apply([CgroupEvent(Kind.CGROUP_MADE, 0, 70, f"/docker/{'a' * 64}"), event(Kind.EXEC, cgroup_id=70)], 1)
    monkeypatch.setattr(observer_module, "read_process", lambda pid, _proc: looked_at.append(pid))
    observer.tick(observer.next_due())
    assert looked_at == [NOBODY]
    assert observer.next_due() == float("inf")
