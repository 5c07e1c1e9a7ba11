# SPDX-License-Identifier: Apache-2.0
"""What a new process does is held, within bounds, until it is chosen or not; only that of a chosen one is handed on."""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.access_log import provisional
from rover_plugin.access_log.model import Direction
from rover_plugin.access_log.provisional import FOREVER, Fate, Provisional, pack_decisions, read_decisions
from rover_plugin.capture.records import HEADER, PROVISIONAL_LANE
from tests.support.pipeline import Pipeline
from tests.support.synthetic import Kernel, server_process

if TYPE_CHECKING:
    from collections.abc import Iterable

CHOSEN, OTHER = 77, 88
SECOND = 1_000_000_000


class Subject:
    """A `Provisional` and what came out of it."""

    def __init__(self, known: Iterable[int] = ()) -> None:
        self.taken: list[bytes] = []
        self.known = set(known)
        self.kernel = Kernel()
        self.provisional = Provisional(self._take, self.known.__contains__)

    def _take(self, data: memoryview, start: int, end: int) -> None:
        record = bytes(data[start:end])
        self.taken.append(record)
        self.known.add(HEADER.unpack_from(record)[7])

    def read(self, *records: bytes, now_ns: int = 0) -> list[bytes]:
        for record in records:
            # In the middle of a ring, which will hold other things later.
            ring = bytearray(b"\1" * 8 + record + b"\1" * 8)
            self.provisional.handle(memoryview(ring), 8, 8 + len(record), now_ns)
            ring[:] = bytes(len(ring))
        return list(records)

    def traffic(self, connection: int, pid: int, calls: int = 1, size: int = 100) -> list[bytes]:
        made = [self.kernel.open(connection, tgid=pid)]
        made += [self.kernel.call(connection, Direction.EGRESS, b"x" * size, tgid=pid) for _ in range(calls)]
        return [*made, self.kernel.close(connection, tgid=pid)]

    @property
    def held(self) -> int:
        return sum(len(held.records) for held in self.provisional._held.values())


def test_only_what_a_chosen_process_did_is_handed_on_and_in_its_order() -> None:
    subject = Subject()
    ours = subject.read(*subject.traffic(1, CHOSEN))
    subject.read(*subject.traffic(2, OTHER))
    assert subject.taken == []
    subject.provisional.decide(Fate.CHOSEN, CHOSEN, FOREVER)
    subject.provisional.decide(Fate.REFUSED, OTHER, FOREVER)
    assert subject.taken == ours
    assert subject.held == subject.provisional.held_bytes == 0
    assert subject.provisional.counts() == {
        "chosen": 3,
        "dropped": {"not_chosen": 3, "undecided": 0, "no_room": 0},
        "held_bytes": 0,
    }


def test_a_decision_that_came_first_is_true_of_what_was_done_before_it_only() -> None:
    subject = Subject()
    before = subject.traffic(1, CHOSEN)
    decided_ns = subject.kernel.now_ns
    another_program = subject.traffic(2, CHOSEN)
    subject.provisional.decide(Fate.CHOSEN, CHOSEN, decided_ns)
    subject.read(*before, *another_program)
    assert subject.taken == before
    assert subject.held == 3
    subject.provisional.decide(Fate.REFUSED, CHOSEN, FOREVER)
    assert subject.taken == before
    assert subject.provisional.dropped["not_chosen"] == 3


def test_a_decision_leaves_held_what_was_done_after_it() -> None:
    subject = Subject()
    before = subject.read(*subject.traffic(1, CHOSEN))
    decided_ns = subject.kernel.now_ns
    after = subject.read(*subject.traffic(2, CHOSEN))
    subject.provisional.decide(Fate.REFUSED, CHOSEN, decided_ns)
    assert subject.taken == []
    subject.provisional.decide(Fate.CHOSEN, CHOSEN, FOREVER)
    assert subject.taken == after
    assert subject.provisional.dropped["not_chosen"] == len(before)


def test_the_end_of_a_connection_that_was_handed_on_follows_it() -> None:
    subject = Subject()
    opened, call, close = subject.traffic(1, CHOSEN)
    subject.read(opened, call)
    subject.provisional.decide(Fate.CHOSEN, CHOSEN, HEADER.unpack_from(call)[-1])
    subject.read(close)
    assert subject.taken == [opened, call, close]


def test_what_nobody_decides_is_dropped_in_time() -> None:
    subject = Subject()
    subject.read(*subject.traffic(1, OTHER), now_ns=0)
    subject.read(*subject.traffic(2, CHOSEN), now_ns=2 * SECOND)
    subject.provisional.pass_time(3 * SECOND - 1)
    assert subject.held == 6
    subject.provisional.pass_time(3 * SECOND)
    assert subject.held == 3
    assert subject.provisional.dropped["undecided"] == 3
    subject.provisional.finish()
    assert (subject.held, subject.provisional.held_bytes) == (0, 0)
    assert subject.provisional.dropped["undecided"] == 6


def test_of_one_process_its_first_calls_and_all_ends_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisional, "_MAX_PROCESS_BYTES", 5_000)
    subject = Subject()
    made = subject.read(*subject.traffic(1, CHOSEN, calls=10, size=1000))
    subject.provisional.decide(Fate.CHOSEN, CHOSEN, FOREVER)
    assert subject.taken == [*made[:5], made[-1]]
    assert subject.provisional.dropped["no_room"] == 6


def test_the_process_that_holds_most_makes_room_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisional, "_MAX_BYTES", 20_000)
    monkeypatch.setattr(provisional, "_MAX_PROCESS_BYTES", 20_000)
    subject = Subject()
    small = subject.read(*subject.traffic(1, CHOSEN))
    subject.read(*subject.traffic(2, OTHER, calls=30, size=1000))
    assert subject.provisional.held_bytes < 20_000
    subject.provisional.decide(Fate.CHOSEN, CHOSEN, FOREVER)
    assert subject.taken == small


def test_decisions_travel_as_bytes() -> None:
    said = [(Fate.CHOSEN, 5, FOREVER), (Fate.REFUSED, 4_194_304, 1)]
    assert list(read_decisions(pack_decisions(said))) == said
    assert list(read_decisions(b"")) == []


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "call", "close", "choose", "refuse", "wait"]), st.integers(1, 4), st.integers(0, 900)
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(_STEPS)
def test_whatever_happens_every_record_is_held_handed_on_or_counted_and_memory_is_bounded(
    steps: list[tuple[str, int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provisional, "_MAX_BYTES", 4_000)
        patch.setattr(provisional, "_MAX_PROCESS_BYTES", 1_500)
        subject = Subject()
        read, now_ns = 0, 0
        refused = defaultdict[int, set[bytes]](set)
        seen = defaultdict[int, list[bytes]](list)
        for what, pid, size in steps:
            kernel, made = subject.kernel, b""
            if what == "open":
                made = kernel.open(pid, tgid=pid)
            elif what == "call":
                made = kernel.call(pid, Direction.EGRESS, b"x" * size, tgid=pid)
            elif what == "close" and pid in kernel.positions:
                made = kernel.close(pid, tgid=pid)
            elif what == "choose":
                subject.provisional.decide(Fate.CHOSEN, pid, kernel.now_ns)
            elif what == "refuse":
                taken = set(subject.taken)
                refused[pid] |= {record for record in seen[pid] if record not in taken}
                subject.provisional.decide(Fate.REFUSED, pid, kernel.now_ns)
            else:
                now_ns += SECOND
                subject.provisional.pass_time(now_ns)
            if made:
                read += 1
                seen[pid].append(made)
                subject.read(made, now_ns=now_ns)
            counted = subject.provisional.chosen + sum(subject.provisional.dropped.values())
            assert read == counted + subject.held
            assert subject.provisional.held_bytes <= 4_000
        for records in refused.values():
            assert not records & set(subject.taken)
        for records in seen.values():
            order = [record for record in subject.taken if record in set(records)]
            assert order == [record for record in records if record in set(order)]


def provisionally(record: bytes) -> bytes:
    changed = bytearray(record)
    lane = HEADER.unpack_from(record)[4]
    struct.pack_into("<H", changed, 4, lane | PROVISIONAL_LANE)
    return bytes(changed)


def test_records_that_were_dropped_between_them_are_no_loss_of_the_shards_ring() -> None:
    (worker,) = Pipeline().workers
    opened, call, *_, last, close = (
        provisionally(record) for record in Subject().traffic(1, server_process().key.pid, 9)
    )
    worker.read(opened, call, last, close)
    assert worker.shard.lost == 0
    assert worker.shard.gap_bytes > 0  # which the connection's positions tell all the same


def test_a_connection_that_is_announced_again_goes_on() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    kernel = worker.kernel
    opened = kernel.open(1)
    worker.read(provisionally(opened), kernel.call(1, Direction.INGRESS, b"GET / HTTP/1.1\r\n\r\n"), opened)
    worker.read(kernel.call(1, Direction.EGRESS, b"HTTP/1.1 204 No Content\r\n\r\n"), kernel.close(1))
    worker.report()
    subject.settle()
    (exchange,) = subject.messages("exchange")
    assert exchange["completeness"] == "complete"
    assert (worker.shard.bookkeeping, worker.shard.imbalance, worker.shard.errors) == (1, 0, {})
    assert subject.balance().imbalance == 0
