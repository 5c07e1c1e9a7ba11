# SPDX-License-Identifier: Apache-2.0
"""The kernel tells of every process, also of those that are gone before anybody looks."""

from __future__ import annotations

import os
import queue
import secrets
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rover_plugin.discovery import observer as observer_module
from rover_plugin.discovery.cgroup_tree import CgroupTree, hierarchies
from rover_plugin.discovery.feed_client import FeedClient
from rover_plugin.discovery.feed_server import FeedServer
from rover_plugin.discovery.local_finder import LocalFinder
from rover_plugin.discovery.observer import ProcessObserver
from rover_plugin.discovery.process_events import HEAD, Kind, ProcessEvent, ProcessEvents
from rover_plugin.discovery.procfs import pids, read_process
from rover_plugin.discovery.rules import parse_rules
from rover_plugin.discovery.table import Added, ProcessTable, Updated
from rover_plugin.discovery.watcher import HostWatcher
from rover_plugin.telemetry.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rover_plugin.discovery.model import Process

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF needs root")]

PATIENCE_S = 30
EVERYTHING = LocalFinder("OS_LINUX", "host-1")


@pytest.fixture
def events() -> Iterator[ProcessEvents]:
    stream = ProcessEvents()
    yield stream
    stream.close()


def life_of(events: ProcessEvents, pid: int) -> list[ProcessEvent]:
    """All events of one process up to its exit."""
    life: list[ProcessEvent] = []
    while not life or life[-1].kind != Kind.EXIT:
        life += [event for event in events.poll(PATIENCE_S) if event.key.pid == pid]
    return life


def test_a_process_of_50_ms_is_seen_from_fork_to_exit_as_proc_knows_it(events: ProcessEvents) -> None:
    with subprocess.Popen(["/bin/sleep", "0.05"]) as child:
        facts = read_process(child.pid)
    fork, executed, ended = life_of(events, child.pid)
    assert facts is not None
    assert (fork.kind, executed.kind, ended.kind) == (Kind.FORK, Kind.EXEC, Kind.EXIT)
    assert {fork.key, executed.key, ended.key} == {facts.key}
    assert fork.parent == executed.parent == os.getpid()
    assert (executed.comm, executed.filename) == ("sleep", "/bin/sleep")
    assert (executed.arguments, fork.arguments) == (("/bin/sleep", "0.05"), ())
    assert executed.pid_namespace == facts.pid_namespace
    assert facts.cgroup_id in {0, executed.cgroup_id}
    assert events.lost() == 0


def test_threads_are_no_processes_and_the_last_one_ends_it(events: ProcessEvents) -> None:
    program = "import ctypes,threading,time\n"
    program += "for i in range(5): threading.Thread(target=time.sleep, args=(0.05,)).start()\n"
    program += "ctypes.CDLL(None).pthread_exit(None)"  # the leader goes first
    with subprocess.Popen([sys.executable, "-c", program]) as child:
        pass
    life = life_of(events, child.pid)
    assert [event.kind for event in life] == [Kind.FORK, Kind.EXEC, Kind.EXIT]
    assert len({event.key for event in life}) == 1


def test_an_exec_by_a_thread_keeps_the_identity_of_the_process(events: ProcessEvents) -> None:
    program = "import os,threading; threading.Thread(target=os.execv, args=('/bin/true', ['true'])).start()"
    with subprocess.Popen([sys.executable, "-c", program]) as child:
        pass
    life = life_of(events, child.pid)
    assert [event.filename for event in life if event.kind == Kind.EXEC] == [sys.executable, "/bin/true"]
    assert len({event.key for event in life}) == 1


def test_an_exec_shows_the_user_it_runs_as(events: ProcessEvents) -> None:
    with subprocess.Popen(["/bin/true"], user=65534) as child:
        pass
    assert [event.uid for event in life_of(events, child.pid) if event.kind == Kind.EXEC] == [65534]


def test_a_file_name_too_long_for_the_record_is_cut(events: ProcessEvents, tmp_path: Path) -> None:
    program = tmp_path / ("a" * 200) / ("b" * 200)
    program.parent.mkdir()
    program.symlink_to("/bin/true")
    with subprocess.Popen([str(program)]) as child:
        pass
    (executed,) = [event for event in life_of(events, child.pid) if event.kind == Kind.EXEC]
    assert executed.filename == str(program)[:255]


def test_events_that_find_the_ring_full_are_counted() -> None:
    events = ProcessEvents(ring_pages=1)
    try:
        spawn("for i in $(seq 30); do /bin/true; done")
        assert events.lost() > 0
        assert events.poll(0)
    finally:
        events.close()


def test_a_wait_for_events_can_be_ended_from_another_thread(events: ProcessEvents) -> None:
    def quiet() -> None:
        while events.poll(PATIENCE_S * 100):
            pass

    waiter = threading.Thread(target=quiet)
    waiter.start()
    events.wake()
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive()


class Host:
    """A watched host whose table can be waited for. The test's own children are not the watcher's."""

    def __init__(self, open_events: Callable[[], ProcessEvents], finder: LocalFinder) -> None:
        self.table, self.counters = ProcessTable(), Counters()
        self.failures: queue.Queue[BaseException] = queue.Queue()
        observer = ProcessObserver(self.table, [finder], own_pid=-1, tree=CgroupTree(hierarchies()))
        self.opened = threading.Event()
        self.watcher = HostWatcher(observer, self.counters, self.failures.put, open_events)

    def until(self, reached: Callable[[Process], bool]) -> Process:
        """The first process for which this holds."""
        while True:
            revision, processes = self.table.snapshot()
            found = next(filter(reached, processes), None)
            if found is not None:
                return found
            self.table.wait(revision, PATIENCE_S)


@contextmanager
def watched(
    open_events: Callable[[], ProcessEvents] = lambda: ProcessEvents(trees=hierarchies()),
    finder: LocalFinder = EVERYTHING,
) -> Iterator[Host]:
    opened = threading.Event()

    def open_and_tell() -> ProcessEvents:
        events = open_events()
        opened.set()
        return events

    host = Host(open_and_tell, finder)
    host.watcher.start()
    try:
        assert opened.wait(PATIENCE_S)
        yield host
        assert host.failures.empty()
    finally:
        host.watcher.stop()


def test_a_short_lived_script_keeps_its_name_after_its_end(tmp_path: Path) -> None:
    script = tmp_path / "shop.sh"
    script.write_text("#!/bin/sh\nsleep 0.05\n")
    script.chmod(0o755)
    with watched() as host:
        with subprocess.Popen([str(script)]) as child:
            pass
        ended = host.until(lambda process: process.key.pid == child.pid and process.exited)
    assert [entity.service for entity in ended.entities] == ["shop"]


def test_a_thousand_short_processes_are_all_named_and_none_is_lost() -> None:
    with watched() as host:
        before = host.table.snapshot()[0]
        spawn("for i in $(seq 1000); do /bin/true; done; exec /bin/echo")
        host.until(lambda process: process.exe.endswith("echo"))
        started = [change.process for change in host.table.since(before) or [] if isinstance(change, Added | Updated)]
    assert len({process.key for process in started if process.entities[0].service == "true"}) == 1000
    assert host.counters.snapshot() == {}


def test_after_a_loss_the_table_agrees_with_proc_again() -> None:
    flooded = threading.Event()

    class Slow(ProcessEvents):
        def poll(self, timeout_s: float) -> list[ProcessEvent]:
            flooded.wait(PATIENCE_S)
            return super().poll(timeout_s)

    with watched(lambda: Slow(ring_pages=1)) as host:
        spawn("for i in $(seq 30); do /bin/true; done")
        with subprocess.Popen(["/bin/sleep", "60"]) as late:
            flooded.set()
            found = host.until(lambda process: process.key.pid == late.pid and process.exe.endswith("sleep"))
            assert found.entities[0].service == "sleep"
            assert late.pid in set(pids())
            late.kill()
        host.until(lambda process: process.key.pid == late.pid and process.exited)
    assert host.counters.value("process_events_lost") > 0


def test_arguments_are_told_to_their_first_kilobyte(events: ProcessEvents) -> None:
    long = "x" * 2000
    with subprocess.Popen(["/bin/true", "", long]) as child:
        pass
    executed = next(event for event in life_of(events, child.pid) if event.kind == Kind.EXEC)
    assert executed.arguments == ("/bin/true", "", long[: 1024 - len("/bin/true\0\0")])


@pytest.mark.parametrize("environment", [{"SECRET": "hunter2"}, {}])
def test_the_environment_is_not_copied(events: ProcessEvents, environment: dict[str, str]) -> None:
    records: list[bytes] = []
    with subprocess.Popen(["/bin/true", "one"], env=environment):
        while not any(b"/bin/true\0one" in record for record in records):
            events._ring.wait(PATIENCE_S)
            events._ring.read(lambda data, start, end: records.append(bytes(data[start:end])), 2048)
    (executed,) = [record for record in records if b"/bin/true\0one" in record]
    _, _, _, _, _, _, _, _, _, copied, arguments, *_ = HEAD.unpack_from(executed)
    assert (copied, arguments) == (len(b"/bin/true\0one\0"), 2)


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    """Cgroups to make those of containers in, one in each hierarchy."""
    name, made = f"rover-{secrets.token_hex(4)}", []
    for hierarchy in hierarchies():
        directory = Path(hierarchy.mount) / name / "below"  # deeper than where tests may run themselves
        with suppress(OSError):
            directory.mkdir(parents=True)
            if hierarchy.controller != "cpuset":  # which nobody can enter before it has processors
                made.append(directory)
    if not made:
        pytest.skip("no cgroup can be made here")
    yield made
    for hierarchy in hierarchies():
        directory = Path(hierarchy.mount) / name / "below"
        with suppress(OSError):
            directory.rmdir()
            directory.parent.rmdir()


def test_processes_of_a_few_ms_in_cgroups_made_for_them_are_all_placed(cgroups: list[Path]) -> None:
    """Whatever hierarchy the cgroup is in, and though none is left when anybody looks."""
    wanted = {}
    with watched() as host:
        for _, parent in zip(range(100), cycle(cgroups), strict=False):
            container = parent / secrets.token_hex(32)
            container.mkdir()
            script = f"echo $$ > {container}/cgroup.procs && exec /bin/true"
            with subprocess.Popen(["/bin/sh", "-c", script]) as child:
                pass
            container.rmdir()
            wanted[child.pid] = container.name
        for pid, container_id in wanted.items():
            ended = host.until(lambda process, pid=pid: process.key.pid == pid and process.exited)
            assert (ended.container_id, ended.entities[0].service) == (container_id, container_id[:12])


def test_a_listener_is_reported_with_its_process_and_port() -> None:
    events = ProcessEvents(listeners=True)
    program = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1]); "
    program += "s = socket.create_server(('::1', 0), family=socket.AF_INET6); print(s.getsockname()[1]); s.listen(5)"
    try:
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            ports = [int(line) for line in child.stdout]
        listened = [event.port for event in life_of(events, child.pid) if event.kind == Kind.LISTEN]
        assert listened == ports
    finally:
        events.close()


def test_a_port_rule_chooses_a_server_when_it_begins_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer_module, "RECHECK_AFTER_S", 1e6)  # no other look comes first
    monkeypatch.setattr(observer_module, "RECHECK_EVERY_S", 1e6)
    program = "import socket,sys; s=socket.socket(); s.bind(('127.0.0.1',0)); print(s.getsockname()[1], flush=True); "
    command = [sys.executable, "-c", program + "sys.stdin.readline(); s.listen(); sys.stdin.readline()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        finder = LocalFinder("OS_LINUX", "host-1", include=parse_rules("k", [f"port={port}"]))
        with (
            watched(lambda: ProcessEvents(listeners=True), finder) as host,
            subprocess.Popen(["/bin/sleep", "60"]) as later,
        ):
            host.until(lambda process: process.key.pid == later.pid)  # so the first look is over
            server.stdin.write("listen\n")
            host.until(lambda process: process.key.pid == server.pid and bool(process.entities))
            later.kill()
        server.stdin.write("end\n")


def test_a_new_process_reaches_a_client_of_the_feed_while_it_runs(tmp_path: Path) -> None:
    arrived: queue.Queue[Process] = queue.Queue()

    def remember(change: object) -> None:
        if isinstance(change, Added | Updated):
            arrived.put(change.process)

    with watched() as host:
        server = FeedServer(host.table, tmp_path / "feed.sock")
        server.start()
        client = FeedClient(str(tmp_path / "feed.sock"))
        client.follow(remember, lambda _state: None)
        with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:  # runs until we have seen it
            while True:
                process = arrived.get(timeout=PATIENCE_S)
                if process.key.pid == child.pid and process.exe.endswith("cat"):
                    break
            assert child.poll() is None
            assert not process.exited
        client.close()
        server.stop()


def spawn(script: str) -> None:
    subprocess.run(["/bin/bash", "-c", script], check=True, stdout=subprocess.DEVNULL)
