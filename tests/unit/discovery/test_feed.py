# SPDX-License-Identifier: Apache-2.0
"""The feed over real sockets: snapshot, changes, reconnecting, silence."""

from __future__ import annotations

import queue
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from rover_plugin._generated.rover import feed_pb2, feed_pb2_grpc
from rover_plugin.discovery import feed_client, feed_server
from rover_plugin.discovery.feed_client import FeedClient, FeedState
from rover_plugin.discovery.feed_server import FeedServer
from rover_plugin.discovery.model import Entity, Process, ProcessKey
from rover_plugin.discovery.table import Added, Change, ProcessTable, Removed, Updated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 20


def process(pid: int, exe: str = "/bin/x", **facts: object) -> Process:
    return replace(Process(ProcessKey(pid, pid * 10), exe), **facts)


class Follower:
    """A client with what it was told, in order."""

    def __init__(self, address: str) -> None:
        self.changes: queue.Queue[Change] = queue.Queue()
        self.states: queue.Queue[FeedState] = queue.Queue()
        self.client = FeedClient(address)
        self.client.follow(self.changes.put, self.states.put)

    def next(self) -> Change:
        return self.changes.get(timeout=PATIENCE_S)

    def take(self, count: int) -> list[Change]:
        return [self.next() for _ in range(count)]

    def until(self, state: FeedState) -> None:
        while self.states.get(timeout=PATIENCE_S) is not state:
            pass


@contextmanager
def following(address: str) -> Iterator[Follower]:
    follower = Follower(address)
    try:
        yield follower
    finally:
        follower.client.close()


@contextmanager
def serving(path: Path, table: ProcessTable | None = None, **options: object) -> Iterator[ProcessTable]:
    table = ProcessTable() if table is None else table
    server = FeedServer(table, path, **options)
    server.start()
    try:
        yield table
    finally:
        server.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "feed.sock"


def test_a_client_gets_the_snapshot_and_then_every_change(path: Path) -> None:
    entity = Entity("OS_LINUX", "web", "host", "nginx", ("a", "b"), "c", "ns", "pod", "box")
    full = process(1, "/usr/sbin/nginx", cmdline=("nginx", "-g", ""), pid_namespace=4026531836, cgroup_id=77)
    full = replace(full, container_id="f" * 64, entities=(entity,), exited=True)
    with serving(path) as table:
        table.update([full])
        with following(str(path)) as follower:
            assert follower.next() == Added(full)
            table.update([process(2)])
            table.update([process(2, "/bin/y")], removed=[full.key])
            assert follower.take(3) == [Added(process(2)), Updated(process(2, "/bin/y")), Removed(full.key)]
            assert follower.client.state is FeedState.LIVE
            assert follower.client.age_s < PATIENCE_S


def test_a_file_name_that_is_not_utf8_travels_with_replacement_characters(path: Path) -> None:
    with serving(path) as table, following(f"unix:{path}") as follower:
        table.update([process(1, "/opt/\udcff/caf\u00e9")])
        assert follower.next() == Added(process(1, "/opt/?/caf\u00e9"))


def test_a_snapshot_larger_than_a_page_arrives_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_server, "PAGE", 3)
    everyone = [process(pid) for pid in range(1, 11)]
    with serving(path) as table:
        table.update(everyone)
        with following(str(path)) as follower:
            assert follower.take(10) == list(map(Added, everyone))
            table.update(process(pid, "/bin/new") for pid in range(1, 11))
            assert follower.take(10) == [Updated(process(pid, "/bin/new")) for pid in range(1, 11)]


def test_a_client_that_comes_back_resumes_where_it_stopped(path: Path) -> None:
    with serving(path) as table:
        table.update([process(1)])
        first = next(_watch(path)).position
        table.update([process(2)])
        stream = _watch(path, feed_pb2.WatchRequest(resume_from=first))
        assert next(stream).WhichOneof("body") == "heartbeat"
        resumed = next(stream)
        assert [change.added.key.pid for change in resumed.changes.changes] == [2]
        assert resumed.position.revision == first.revision + 1


@pytest.mark.parametrize("forgotten", ["history", "epoch", "future"])
def test_a_client_whose_place_is_not_known_gets_a_new_snapshot(path: Path, forgotten: str) -> None:
    with serving(path, ProcessTable(history=2)) as table:
        table.update([process(1)])
        place = next(_watch(path)).position
        if forgotten == "epoch":
            place.epoch = "another life"
        elif forgotten == "future":
            place.revision += 1
        else:
            table.update([process(2), process(3), process(4)])
        answer = next(_watch(path, feed_pb2.WatchRequest(resume_from=place)))
        assert len(answer.snapshot.processes) == len(table)


def test_a_client_that_cannot_keep_up_is_brought_up_to_date_with_a_snapshot(path: Path) -> None:
    with serving(path, ProcessTable(history=2)) as table, following(str(path)) as follower:
        follower.until(FeedState.LIVE)
        table.update(process(pid) for pid in range(1, 6))
        assert follower.take(5) == [Added(process(pid)) for pid in range(1, 6)]


def test_a_restarted_host_leads_to_the_differences_only(path: Path) -> None:
    with following(str(path)) as follower:
        with serving(path) as table:
            table.update([process(1), process(2), process(3)])
            assert len(follower.take(3)) == 3
        follower.until(FeedState.DOWN)
        successor = ProcessTable()
        successor.update([process(2), process(3, "/bin/other"), process(4)])
        with serving(path, successor):
            assert follower.take(3) == [
                Removed(ProcessKey(1, 10)),
                Updated(process(3, "/bin/other")),
                Added(process(4)),
            ]
            follower.until(FeedState.LIVE)
        assert follower.changes.empty()


def test_a_quiet_server_sends_heartbeats(path: Path) -> None:
    with serving(path, heartbeat_s=0.05):
        stream = _watch(path)
        kinds = [next(stream).WhichOneof("body") for _ in range(3)]
        assert kinds == ["snapshot", "heartbeat", "heartbeat"]


def test_a_silent_server_is_stale_and_is_called_again(path: Path) -> None:
    class Mute(feed_pb2_grpc.ProcessFeedServicer):
        calls = 0

        def Watch(  # noqa: N802
            self, _request: feed_pb2.WatchRequest, context: grpc.ServicerContext
        ) -> Iterator[feed_pb2.WatchResponse]:
            self.calls += 1
            yield feed_pb2.WatchResponse(heartbeat_seconds=0.05, snapshot=feed_pb2.Snapshot(first=True))
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(PATIENCE_S)

    mute = Mute()
    server = grpc.server(ThreadPoolExecutor(4))
    feed_pb2_grpc.add_ProcessFeedServicer_to_server(mute, server)
    path.parent.mkdir()
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        with following(str(path)) as follower:
            follower.until(FeedState.LIVE)
            follower.until(FeedState.STALE)
            follower.until(FeedState.LIVE)
            assert mute.calls == 2
    finally:
        server.stop(0)


def test_a_follower_that_raises_still_gets_what_comes_after(path: Path) -> None:
    seen: queue.Queue[Change] = queue.Queue()

    def stumble(change: Change) -> None:
        seen.put(change)
        message = "the follower's own fault"
        raise RuntimeError(message)

    with serving(path) as table:
        client = FeedClient(str(path))
        client.follow(stumble, lambda _state: None)
        table.update([process(1)])
        table.update([process(2)])
        assert [seen.get(timeout=PATIENCE_S) for _ in range(2)] == [Added(process(1)), Added(process(2))]
        client.close()
        assert client.state is FeedState.CLOSED


def test_a_client_without_a_server_keeps_trying_and_can_be_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_client, "MAX_BACK_OFF_S", 0.05)
    with following(str(path)) as follower:
        follower.until(FeedState.DOWN)
        follower.until(FeedState.DOWN)
        assert follower.client.age_s == float("inf")


def test_the_socket_and_its_directory_are_for_the_owner_only(path: Path) -> None:
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_feed_is_served_on_tcp_as_well(path: Path) -> None:
    server = FeedServer(table := ProcessTable(), path, "127.0.0.1:0")
    server.start()
    try:
        with following(f"127.0.0.1:{server.tcp_port}") as follower:
            table.update([process(1)])
            assert follower.next() == Added(process(1))
    finally:
        server.stop()


def _watch(path: Path, request: feed_pb2.WatchRequest | None = None) -> Iterator[feed_pb2.WatchResponse]:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        yield from feed_pb2_grpc.ProcessFeedStub(channel).Watch(request or feed_pb2.WatchRequest(), timeout=PATIENCE_S)
