# SPDX-License-Identifier: Apache-2.0
"""What the feed's server sends at once, and what may wait so that it shares a message."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from rover_plugin._generated.rover import feed_pb2, feed_pb2_grpc
from rover_plugin.discovery import feed_server
from rover_plugin.discovery.feed_server import FeedServer
from rover_plugin.discovery.model import Entity, Process, ProcessKey
from rover_plugin.discovery.table import ProcessTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FOREVER_S = 3600.0
SHOP = (Entity("OS_LINUX", "shop", "host-1", "nginx"),)


def watched(pid: int, *, exited: bool = False) -> Process:
    return Process(ProcessKey(pid, 1), entities=SHOP, exited=exited)


def unwatched(pid: int) -> Process:
    return Process(ProcessKey(pid, 1))


class Messages:
    """The messages of one call after its snapshot, each as its kinds of changes."""

    def __init__(self, call: Any) -> None:
        self._call = call
        assert next(call).WhichOneof("body") == "snapshot"

    def next(self) -> list[str]:
        return [change.WhichOneof("change") for change in next(self._call).changes.changes]


@pytest.fixture
def table() -> ProcessTable:
    return ProcessTable()


@pytest.fixture
def messages(table: ProcessTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Messages]:
    # What may wait here waits until something comes that may not: so the order shows it, and no clock is asked.
    monkeypatch.setattr(feed_server, "UNWATCHED_S", FOREVER_S)
    monkeypatch.setattr(feed_server, "DEAD_S", FOREVER_S)
    server = FeedServer(table, tmp_path / "feed.sock")
    server.start()
    with grpc.insecure_channel(f"unix:{tmp_path}/feed.sock") as channel:
        stub = feed_pb2_grpc.ProcessFeedStub(channel)
        yield Messages(stub.Watch(feed_pb2.WatchRequest(), timeout=20))
    server.stop()


def test_a_living_process_with_entities_is_told_at_once(table: ProcessTable, messages: Messages) -> None:
    table.update([watched(1)])
    assert messages.next() == ["added"]
    table.update([watched(2)])
    assert messages.next() == ["added"]


def test_the_dead_and_the_unwatched_go_with_the_next_that_somebody_waits_for(
    table: ProcessTable, messages: Messages
) -> None:
    table.update([watched(1)])
    assert messages.next() == ["added"]
    table.update([watched(1, exited=True)])
    table.update([unwatched(2)])
    table.update([unwatched(3)])
    table.update(removed=[ProcessKey(1, 1)])
    table.update([watched(4)])
    assert messages.next() == ["updated", "added", "added", "removed", "added"]


def test_gathering_ends_when_its_time_is_over(table: ProcessTable) -> None:
    table.update([unwatched(1)])
    table.gather(0, unwatched_s=0.01, dead_s=FOREVER_S)
    table.update(removed=[ProcessKey(1, 1)])
    table.gather(1, unwatched_s=FOREVER_S, dead_s=0.01)
    assert len(table.since(0) or []) == 2


@pytest.mark.parametrize("end", [ProcessTable.wake, ProcessTable.close])
def test_gathering_ends_when_the_client_goes_or_the_table_closes(
    table: ProcessTable, end: Callable[[ProcessTable], None]
) -> None:
    table.update([watched(1)])
    table.update([watched(1, exited=True)])
    gathering = threading.Thread(target=table.gather, args=(1, FOREVER_S, FOREVER_S), daemon=True)
    gathering.start()
    while gathering.is_alive():  # the end may come before the wait
        end(table)
        gathering.join(0.01)
