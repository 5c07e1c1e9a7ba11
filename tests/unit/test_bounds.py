# SPDX-License-Identifier: Apache-2.0
"""Nothing grows beyond its bound, what gives way is counted, and the ledger still balances."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from rover_plugin.access_log import ends, hub, link, resolver, worker
from rover_plugin.access_log.address_book import AddressBook
from rover_plugin.access_log.hub import Hub
from rover_plugin.access_log.link import ConnectionFacts, Item, read_items
from rover_plugin.access_log.model import Direction
from rover_plugin.access_log.resolver import FOREVER_NS, Resolver
from rover_plugin.access_log.worker import Worker
from rover_plugin.access_log.worker_options import WorkerOptions
from rover_plugin.discovery.model import ProcessKey
from rover_plugin.discovery.table import Added, Removed
from rover_plugin.telemetry.counters import Counters
from tests.support.pipeline import Pipeline, Policies
from tests.support.synthetic import Kernel, server_process

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

REQUEST = b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n"
BIG_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n"


def test_a_shard_keeps_so_many_connections_and_counts_those_that_give_way() -> None:
    subject = Pipeline(max_connections=100)
    (worker,) = subject.workers
    kernel = worker.kernel
    for connection in range(1, 1001):
        worker.read(kernel.open(connection), kernel.call(connection, Direction.INGRESS, REQUEST))
    worker.report()
    subject.settle()
    worker.report()
    shard = worker.shard
    assert (len(shard.connections), shard.evicted) == (100, 900)
    assert (len(shard._by_cookie), len(shard._with_loose)) == (100, 100)
    assert subject.resolver.connections == 100
    balance = subject.balance()
    assert (balance.read, balance.imbalance) == (2000, 0)
    assert balance.open["worker"] + balance.exported == 2000


def test_the_one_idle_longest_of_the_oldest_gives_way() -> None:
    subject = Pipeline(max_connections=3)
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(*(kernel.open(connection) for connection in (1, 2, 3)))
    worker.read(kernel.call(1, Direction.INGRESS, REQUEST))
    worker.read(kernel.open(4))
    assert set(worker.shard.connections) == {1, 3, 4}


def test_a_process_named_after_its_end_is_not_watched_for_ever() -> None:
    watched: set[int] = set()
    subject = Resolver((), (), AddressBook(), Counters(), lambda pid: not watched.add(pid), watched.discard)
    first, second = server_process(5), replace(server_process(5), key=ProcessKey(5, 78))
    subject.change_process(Added(first), 0)
    subject.change_process(Removed(first.key), 0)
    assert watched == set()
    subject.change_process(Added(second), 0)
    subject.change_process(Removed(first.key), 0)  # late: the pid is another's by now
    assert watched == {5}


def test_the_capture_policy_of_a_connection_goes_with_it() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    kernel = worker.kernel
    for connection in range(1, 51):
        worker.read(kernel.open(connection), kernel.call(connection, Direction.INGRESS, REQUEST))
        worker.read(kernel.call(connection, Direction.EGRESS, BIG_RESPONSE, unseen=100_000))
    assert len(worker.policies.values) == len(worker.outbox._policy_state) == 50
    worker.read(*(kernel.close(connection) for connection in range(1, 51)))
    worker.report()
    assert worker.policies.values == worker.outbox._policy_state == {}


def test_what_waits_for_a_name_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_MAX_WAITING_BYTES", 10_000)
    subject = Pipeline(known=False)
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1))
    for _ in range(100):
        worker.read(kernel.call(1, Direction.INGRESS, REQUEST))
        worker.read(kernel.call(1, Direction.EGRESS, b"HTTP/1.1 204 No Content\r\n\r\n"))
    worker.report()
    assert 0 < subject.resolver._waiting_bytes <= 10_000
    assert subject.balance().lost["queue", "hub_full"] > 0
    assert subject.ledger.imbalance() == 0
    subject.settle()
    assert subject.resolver._waiting_bytes == 0


def test_connections_beyond_those_that_may_wait_for_a_name_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_MAX_WAITING_CONNECTIONS", 10)
    subject = Pipeline(known=False)
    (worker,) = subject.workers
    worker.read(*(worker.kernel.open(connection) for connection in range(1, 31)))
    worker.shard.flush(FOREVER_NS)
    worker.report()
    assert subject.counters.value("connections_named_early") == 20
    assert subject.balance().filtered == {"unknown_process": 20}
    assert subject.balance().open["hub"] == 10
    assert subject.ledger.imbalance() == 0


def test_ends_of_closed_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "_MAX_LEAVING", 100)
    book = AddressBook(local_addresses=frozenset)
    for port in range(1, 1001):
        address = {"local_port": port, "remote_port": 80, "local": bytes(4), "remote": bytes(4)}
        facts = ConnectionFacts(port, 1, 1, "client", tls=False, ipv6=False, **address)
        book.learn(facts)
        book.forget(facts, port)
    assert book.sizes() == {"processes": 0, "ends": 100, "leaving": 100}
    assert book.evicted == 900


def test_changes_of_processes_wait_for_a_hub_that_stands_still_but_not_for_a_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "_MOST_CHANGES", 2)
    seen: list[int] = []
    standing_still, go_on = threading.Event(), threading.Event()

    def watch(pid: int) -> bool:
        seen.append(pid)
        standing_still.set()
        return go_on.wait(20)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subject = Hub([ours], [], [], AddressBook(), Counters(), watch, print, print)
    subject.start()
    feed = threading.Thread(target=lambda: [subject.process_changed(Added(server_process(pid))) for pid in range(1, 6)])
    feed.start()
    assert standing_still.wait(10)
    feed.join(0.2)  # two fit, the next does not: were there no bound, the feed would have ended long ago
    assert feed.is_alive()
    go_on.set()
    feed.join(10)
    subject.expect_end()
    theirs.close()
    assert subject.finish(10)
    assert seen == [1, 2, 3, 4, 5]
    for pid in range(10):
        subject.process_changed(Added(server_process(pid)))
        if subject._processes.full():
            break
    subject.process_changed(Added(server_process(11)))  # nobody is there to take it: it returns all the same
    ours.close()


class EndlessRing:
    """A ring that always has another batch of exchanges, each on a connection of its own."""

    size = 1 << 20
    most_pending = 0

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.reads = 0
        self.ended = False
        self.idle = threading.Event()

    def also_wait_for(self, descriptor: int) -> None:
        pass

    def pending(self) -> int:
        return 0

    def peek(self, look: Callable[[memoryview, int, int], None]) -> None:
        pass

    def produced(self) -> int:
        return 0

    def read(self, handle: Callable[[memoryview, int, int], None], limit: int, until: int) -> int:
        assert (limit, until) == (worker.SLICE, 0)
        if self.ended:
            return 0
        self.reads += 1
        for _ in range(20):
            connection = len(self.kernel.positions) + 1
            for record in (
                self.kernel.open(connection),
                self.kernel.call(connection, Direction.INGRESS, REQUEST),
                self.kernel.call(connection, Direction.EGRESS, b"HTTP/1.1 204 No Content\r\n\r\n"),
                self.kernel.close(connection),
            ):
                handle(memoryview(record), 0, len(record))
        return 80

    def wait(self, timeout_s: float) -> None:
        self.idle.set()
        threading.Event().wait(min(timeout_s, 0.001))


def test_a_connection_that_fills_the_queue_leaves_room_for_others() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)  # noqa: FBT003 the socket module's own signature
    subject = link.LinkWriter(theirs, 1000)
    taken = {1: 0, 2: 0, 3: 0}
    for _ in range(50):  # a socket takes some of them
        for _ in range(1000):
            taken[1] += subject.fragment(1, 0, 1, 1, b"x" * 1000)
    assert subject.lost == {(0, "queue_share"): [50_000 - taken[1]] * 2}
    assert 600 < subject.waiting_messages < 800
    assert subject.choked
    for _ in range(100):
        taken[2] += subject.fragment(2, 0, 1, 1, b"y" * 1000)
    assert taken[2] == 100
    while subject._waiting:
        ours.recv(1 << 16)
        subject.flush()
    assert not subject.choked
    assert subject.fragment(1, 0, 1, 1, b"x" * 1000)
    ours.close()
    theirs.close()


def test_a_worker_reads_nothing_more_while_the_main_process_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_CHOKE_BYTES", 500_000)
    monkeypatch.setattr(worker, "SLICE", 100)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ring = EndlessRing()
    options = WorkerOptions(0, ("json",), 1_000_000, 1000, 60.0, grpc_status_as_http=True)
    subject = Worker(theirs, ring, Policies(), options)  # type: ignore[arg-type]
    thread = threading.Thread(target=subject.run)
    thread.start()
    while not subject._link.choked:
        assert thread.is_alive()
        ring.idle.clear()
        assert ring.idle.wait(10)
    reads = ring.reads
    for _ in range(20):
        ring.idle.clear()
        assert ring.idle.wait(10)
    assert ring.reads <= reads + 1
    assert subject._link._waiting_bytes < 1_000_000
    while ring.reads <= reads + 1:  # the main process goes on, and so does the worker
        ours.recv(1 << 16)
    ring.ended = True
    ours.shutdown(socket.SHUT_WR)
    ours.settimeout(0.1)
    kinds = set[Item]()
    while True:
        try:
            kinds |= {item[0] for item in read_items(ours.recv(1 << 16))}
        except TimeoutError:
            if not thread.is_alive():
                break
    thread.join(10)
    assert Item.REPORT in kinds
    ours.close()
    theirs.close()
