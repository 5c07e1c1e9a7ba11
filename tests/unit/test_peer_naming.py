# SPDX-License-Identifier: Apache-2.0
"""docs/naming.md, kept by a model of a host: no line names anybody but who was there; who was seen in time is named.

The model has network namespaces with equal addresses, address translation, ephemeral ports used again and by several
connections at once, prefork workers, processes nobody watches, connections older than the agent, workers that are late
and a feed that is late.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.address_book import AddressBook, format_address
from rover_plugin.access_log.link import ROLES, LinkWriter
from rover_plugin.access_log.model import Beginnings
from rover_plugin.access_log.resolver import FOREVER_NS, Resolver
from rover_plugin.discovery.model import Entity, Process, ProcessKey
from rover_plugin.discovery.table import Added
from rover_plugin.telemetry.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rover_plugin.access_log.model import ResolvedConnection

WORKERS = 3
MASK = 0xFFFFFFFF
STEP_NS = 1_000_000
# Few of each, so that what can be confused meets.
ADDRESSES = [bytes((10, 0, 0, number)) for number in (1, 2)] + [bytes((127, 0, 0, 1))]
PORTS = [80, 4000, 4001]
PIDS = range(1, 7)
SERVICES = {pid: f"service-{pid % 4}" for pid in PIDS}  # prefork workers share theirs


@dataclass
class Side:
    """One end as its own namespace has it."""

    identity: int
    pid: int
    netns: int
    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    role: str
    beginnings: Beginnings
    first_written: int
    first_read: int
    seen: bool
    other: Side | None = field(default=None, repr=False)

    def as_connection(self) -> Any:
        return SimpleNamespace(
            id=self.identity,
            tgid=self.pid,
            netns=self.netns,
            local=self.local,
            remote=self.remote,
            beginnings=self.beginnings,
            first_written=self.first_written & MASK,
            first_read=self.first_read & MASK,
        )


POSITIONS = [0, 1, 2, 5000, 5001, 5002, 1 << 30, 1 << 31, 3 << 30, MASK - 1, MASK]


def alike(pair: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two pairs of initial sequence numbers are the same, or each one apart."""
    return all((one - two + 1) & MASK <= 2 for one, two in zip(pair, other, strict=True))


def end(chance: Random) -> tuple[bytes, int]:
    """An address and a port."""
    return chance.choice(ADDRESSES), chance.choice(PORTS)


def connections(chance: Random) -> list[tuple[Side, Side]]:
    """Connections that may all be alive at once, in the order in which they open."""
    made: list[tuple[Side, Side]] = []
    # Two pairs of initial sequence numbers, 64 bits, are never the same; one of the two may be.
    free = [pair for pair in itertools.product(POSITIONS, repeat=2) if not alike(pair, pair[::-1])]
    for number in range(chance.randint(1, 8)):
        if not free:
            break
        one, two = chance.choice(free)
        free = [pair for pair in free if not alike(pair, (one, two)) and not alike(pair, (two, one))]
        client, server = end(chance), end(chance)
        dialled, source = (way if chance.random() < 0.7 else end(chance) for way in (server, client))
        met = chance.random() < 0.5  # then the kernel counts the client's SYN
        first = Side(
            2 * number + 1,
            chance.choice(PIDS),
            chance.randint(1, 3),
            client,
            dialled,
            "client",
            Beginnings.LOOSE if met else Beginnings.EXACT,
            one - 1 if met else one,
            two,
            chance.random() < 0.8,
        )
        second = Side(
            2 * number + 2,
            chance.choice(PIDS),
            chance.randint(1, 3),
            server,
            source,
            "server",
            chance.choice([Beginnings.LOOSE, Beginnings.EXACT]),
            two,
            one,
            chance.random() < 0.8,
        )
        first.other, second.other = second, first
        made.append((first, second))
    return made


class Said:
    """An output that keeps what it is given: whether it is an exchange, of which end, and the names."""

    name, encoding = "said", "json"

    def __init__(self) -> None:
        self.items: list[tuple[bool, int, ResolvedConnection]] = []
        self._resolved: list[ResolvedConnection] = []

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        self._resolved.append(connection)
        return len(self._resolved).to_bytes(4, "big")

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        del kernel_logs
        resolved = self._resolved[int.from_bytes(message[:4], "big") - 1]
        self.items.append((bool(protocol_logs), int(message[4:]), resolved))


class Host:
    """The resolver, the feed, and workers whose records travel at their own speed."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.said = Said()
        self.unnamed = list(PIDS)
        self._rings: list[list[tuple[int, Callable[[LinkWriter], object]]]] = [[] for _ in range(WORKERS)]
        outputs: Any = [self.said]
        book = AddressBook(local_addresses=frozenset)
        self.resolver = Resolver(("json",), outputs, book, Counters(), lambda _: True, lambda _: None, WORKERS)

    def record(self, worker: int, item: Callable[[LinkWriter], object]) -> None:
        """Something happens now, and is written into a worker's ring."""
        self.now_ns += STEP_NS
        self._rings[worker].append((self.now_ns, item))

    def hand_over(self, worker: int, most: int) -> None:
        """A worker hands over its oldest records, and says how far it is."""
        self.now_ns += STEP_NS
        ring = self._rings[worker]
        channel = Channel()
        link = LinkWriter(channel, 1 << 30)
        for _, item in ring[:most]:
            item(link)
        del ring[:most]
        link.reached(ring[0][0] if ring else self.now_ns)
        link.flush()
        for datagram in channel.datagrams:
            self.resolver.take(datagram, self.now_ns, worker)

    def name_one(self) -> None:
        """The feed names a process."""
        pid = self.unnamed.pop()
        entity = Entity("OS_LINUX", SERVICES[pid], "host", f"program-{pid}")
        self.resolver.change_process(Added(Process(ProcessKey(pid, pid), entities=(entity,))), self.now_ns)

    def catch_up(self, order: Iterable[int]) -> None:
        """All that happened has arrived."""
        while self.unnamed:
            self.name_one()
        for worker in (*order, *range(WORKERS)):
            self.hand_over(worker, 1 << 30)
        self.resolver.settle(self.now_ns)


class Channel:
    """A link's socket."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []

    def send(self, datagram: bytes, /) -> int:
        self.datagrams.append(datagram)
        return len(datagram)

    def settimeout(self, timeout_s: float, /) -> None:
        pass


@dataclass
class Scene:
    """A host on which the drawn connections happen."""

    host: Host
    chance: Random

    def time_passes(self) -> None:
        """Workers hand over what they have, and the feed speaks, in any order."""
        for _ in range(self.chance.randint(0, 3)):
            choice = self.chance.randint(0, WORKERS + 1)
            if choice < WORKERS:
                self.host.hand_over(choice, self.chance.randint(1, 6))
            elif choice == WORKERS and self.host.unnamed:
                self.host.name_one()
            else:
                self.host.resolver.settle(self.host.now_ns)

    def open(self, side: Side) -> None:
        """An end opens, which is a kernel log."""
        role = ROLES.index(side.role)
        self._record(side, lambda link: link.connection(side.as_connection(), role, tls=False))
        self._record(side, lambda link: link.fragment(side.identity, 0, 1, 0, str(side.identity).encode()))
        self.time_passes()

    def exchange(self, *sides: Side) -> None:
        """An exchange is over."""
        for side in sides:
            self._record(side, partial(_exchange, side.identity))
        self.time_passes()

    def close(self, *sides: Side) -> None:
        """The connection ends."""
        for side in sides:
            self._record(side, partial(_gone, side.identity))
        self.time_passes()

    def _record(self, side: Side, item: Callable[[LinkWriter], object]) -> None:
        if side.seen:
            self.host.record(side.identity % WORKERS, item)


def _exchange(identity: int, link: LinkWriter) -> None:
    link.fragment(identity, 0, 0, 1, str(identity).encode())


def _gone(identity: int, link: LinkWriter) -> None:
    link.gone(identity)


@settings(max_examples=500, deadline=None)
@given(seed=st.integers(0, MASK))
def test_nobody_is_named_wrongly_and_whoever_was_seen_in_time_is_named(seed: int) -> None:
    chance = Random(seed)
    made = connections(chance)
    scene = Scene(Host(), chance)
    for client, server in made:
        scene.open(client)
        scene.open(server)
        for _ in range(chance.randint(1, 2)):
            scene.exchange(server, client)
        if chance.random() < 0.5:
            scene.close(server, client)
    scene.host.catch_up(chance.sample(range(WORKERS), WORKERS))
    scene.host.resolver.settle(FOREVER_NS)
    sides = {side.identity: side for pair in made for side in pair}
    lines = scene.host.said.items
    for is_exchange, identity, connection in lines:
        check_line(sides[identity], connection, is_exchange=is_exchange)
    said = Counter(identity for _, identity, _ in lines)
    assert all(said[side.identity] >= 2 for side in sides.values() if side.seen), "nothing is swallowed"


def check_line(side: Side, connection: ResolvedConnection, *, is_exchange: bool) -> None:
    """The line of an end says nothing untrue, and nothing less than could be known in time."""
    other = side.other
    assert other is not None
    local, remote = connection.local, connection.remote
    assert (connection.id, local.pid, local.entity and local.entity.service) == (
        side.identity,
        side.pid,
        SERVICES[side.pid],
    )
    if remote.pid is None:
        assert remote.entity is None
        assert (remote.host, remote.port) == (format_address(side.remote[0]), side.remote[1])
        assert not (is_exchange and other.seen), "both ends were seen in time"
    else:
        assert remote.pid == other.pid
        assert remote.entity is None or remote.entity.service == SERVICES[other.pid]
        assert (remote.host, remote.port) == (format_address(other.local[0]), other.local[1])
        assert (remote.seen is None) == (side.remote == other.local)
        assert not (is_exchange and remote.entity is None), "the feed had named it in time"


def pair() -> tuple[Side, Side]:
    """The ends of one connection, which go to different workers."""
    there, here = (ADDRESSES[0], 4000), (ADDRESSES[1], 80)
    client = Side(1, 1, 1, there, here, "client", Beginnings.EXACT, 7, 9, seen=True)
    server = Side(2, 2, 2, here, there, "server", Beginnings.EXACT, 9, 7, seen=True)
    client.other, server.other = server, client
    return client, server


@pytest.mark.parametrize("unnamed", [False, True])
def test_a_name_that_comes_late_is_given_to_the_later_exchanges(*, unnamed: bool) -> None:
    client, server = pair()
    scene = Scene(Host(), NoTimePasses())
    host = scene.host
    while host.unnamed and not unnamed:
        host.name_one()
    if unnamed:
        host.unnamed.remove(server.pid)
        while host.unnamed:
            host.name_one()
    scene.open(client)
    scene.open(server)
    scene.exchange(client)
    host.hand_over(1, 1 << 30)
    if unnamed:  # its worker is in time, but the feed is not
        host.hand_over(2, 1 << 30)
        host.hand_over(0, 1)
    assert [line for line in host.said.items if line[0]] == [], "it waits"
    host.now_ns += 3_100_000_000
    host.resolver.settle(host.now_ns)
    host.resolver.settle(host.now_ns)
    assert [names.remote.entity for is_exchange, _, names in host.said.items if is_exchange] == [None]
    if unnamed:
        host.unnamed.append(server.pid)
        host.name_one()
    else:
        host.hand_over(2, 1 << 30)
    scene.exchange(client)
    host.hand_over(1, 1 << 30)
    latest = host.said.items[-1]
    assert (latest[0], latest[1]) == (True, client.identity)
    check_line(client, latest[2], is_exchange=True)


class NoTimePasses(Random):
    """Chance that never lets a worker hand over of its own accord."""

    def randint(self, a: int, b: int) -> int:
        del b
        return a
