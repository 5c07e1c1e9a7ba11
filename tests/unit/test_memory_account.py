# SPDX-License-Identifier: Apache-2.0
"""Memory of connections has one bound, in bytes: the costliest give way, all calls are accounted for, others go on."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.access_log.account import Account
from rover_plugin.access_log.model import Direction
from rover_plugin.access_log.protocols.weights import CONNECTION_BYTES
from rover_plugin.capture.records import OpenCause
from tests.support.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 1 << 20
REQUEST = b"GET /innocent HTTP/1.1\r\nHost: shop\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


def http2_bomb(streams: int = 400) -> Iterator[bytes]:
    """Streams that name one path of 4 KB by a reference into the table (RFC 7541 §6.1): 12 bytes each."""
    path = b"/" + b"a" * 3900
    size = len(path) - 127
    length = b"\x7f" + bytes((size & 127 | 128, size >> 7))
    block = b"\x82\x86\x44" + length + path  # GET, http, :path with incremental indexing
    yield PREFACE + frame(1, block)
    for first in range(3, 2 * streams, 200):
        yield b"".join(frame(stream, b"\x82\x86\xbe") for stream in range(first, first + 200, 2))


def frame(stream: int, block: bytes) -> bytes:
    return len(block).to_bytes(3, "big") + b"\1\5" + stream.to_bytes(4, "big") + block


def half_heads() -> Iterator[bytes]:
    yield b"GET / HTTP/1.1\r\nX: " + b"a" * 30_000
    yield b"b" * 30_000


def unanswered() -> Iterator[bytes]:
    for number in range(30):
        yield b"GET /" + b"%d" % number + b"c" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"


FLOODS = {"http2_bomb": http2_bomb, "half_heads": half_heads, "unanswered": unanswered}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_is_bounded_and_an_innocent_connection_loses_nothing(flood: object) -> None:
    subject = Pipeline(max_bytes=2 * MB, queue_size=1 << 30)
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1))
    tracemalloc.start()
    most = 0
    for connection in range(2, 62):
        worker.read(kernel.open(connection))
        for data in flood():  # type: ignore[operator]
            worker.read(kernel.call(connection, Direction.INGRESS, data))
        worker.read(kernel.call(1, Direction.INGRESS, REQUEST), kernel.call(1, Direction.EGRESS, RESPONSE))
        worker.shard.flush(kernel.now_ns)
        assert worker.shard.held_bytes <= 2 * MB
        worker.outbox.hand_over()
        worker.link.flush()
        subject.resolver.settle(kernel.now_ns)
        subject.outputs[0].messages[:] = [one for one in subject.outputs[0].messages if b"/innocent" in one]
        most = max(most, tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    worker.report()
    subject.settle()
    worker.report()
    assert worker.shard.relieved > 5
    assert most < 16 * MB
    innocent = [item for item in subject.messages("exchange") if item["path"] == "/innocent"]
    assert len(innocent) == 60
    assert {item["completeness"] for item in innocent} == {"complete"}
    for unit in ("kernel", "protocol"):
        assert subject.balance(unit).imbalance == 0
    assert worker.shard.imbalance == 0


def test_idle_connections_beyond_the_memory_end_and_are_counted() -> None:
    subject = Pipeline(max_bytes=100 * CONNECTION_BYTES)
    (worker,) = subject.workers
    kernel = worker.kernel
    for connection in range(1, 301):
        worker.read(kernel.open(connection, OpenCause.ACCEPT))
        worker.shard.flush(kernel.now_ns)
    shard = worker.shard
    assert len(shard.connections) <= 100
    assert shard.evicted == 300 - len(shard.connections)
    assert set(shard.connections) >= set(range(250, 301))  # those met last
    worker.report()
    subject.settle()
    worker.report()
    assert subject.balance().imbalance == 0


def test_a_connection_that_gave_way_is_logged_again_from_its_next_message_on() -> None:
    subject = Pipeline(max_bytes=MB)
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1))
    for _ in range(40):
        worker.read(kernel.call(1, Direction.INGRESS, b"GET /" + b"x" * 60_000))
        if worker.shard.relieved:
            break
        worker.read(kernel.open(2 + kernel.sequence))
        worker.read(kernel.call(1 + kernel.sequence, Direction.INGRESS, b"GET /" + b"y" * 60_000))
    assert worker.shard.relieved
    for _ in range(3):
        worker.read(kernel.call(1, Direction.EGRESS, RESPONSE), kernel.call(1, Direction.INGRESS, REQUEST))
    worker.read(kernel.call(1, Direction.EGRESS, RESPONSE))
    worker.report()
    subject.settle()
    paths = [item["path"] for item in subject.messages("exchange")]
    assert paths.count("/innocent") >= 2


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from(["request", "response", "half", "bomb", "close", "tick"])),
        max_size=60,
    )
)
def test_the_account_is_the_sum_of_what_its_connections_weigh(steps: list[tuple[int, str]]) -> None:
    subject = Pipeline(max_bytes=4 * MB)
    (worker,) = subject.workers
    kernel, shard = worker.kernel, worker.shard
    said = {"request": REQUEST, "half": b"GET /" + b"z" * 5000, "bomb": PREFACE + frame(1, b"\x82\x86\x84") * 50}
    for connection, what in steps:
        if what == "tick":
            shard.flush(kernel.now_ns)
            continue
        if connection not in shard.connections:
            worker.read(kernel.open(connection))
        if what == "close":
            worker.read(kernel.close(connection))
        elif what == "response":
            worker.read(kernel.call(connection, Direction.EGRESS, RESPONSE))
        else:
            worker.read(kernel.call(connection, Direction.INGRESS, said[what]))
    shard.flush(kernel.now_ns)
    account = shard._account
    assert set(account._weights) == set(shard.connections)
    assert shard.held_bytes == sum(account._weights.values())
    fresh = Account(1)
    for one in shard.connections.values():
        fresh.weigh(one)
    assert fresh.total == shard.held_bytes
