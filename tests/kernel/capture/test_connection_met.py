# SPDX-License-Identifier: Apache-2.0
"""Connections whose beginning nobody saw: older than the agent, or served by io_uring alone."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.records import OpenCause
from tests.support.actor import Actor
from tests.support.capture import OpenRecord, needs_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.capture import Recorder
    from tests.support.mover import Mover

pytestmark = [pytest.mark.root, needs_capture]

MASK = (1 << 32) - 1


@pytest.fixture
def actor() -> Iterator[Actor]:
    with Actor() as running:
        yield running


@pytest.fixture
def old(actor: Actor) -> Iterator[tuple[socket.socket, int]]:
    """A connection of the actor with traffic before anybody watches: the test's end and the actor's port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        actor.do(f"s = socket.create_connection(('127.0.0.1', {listener.getsockname()[1]})); s.sendall(b'unseen')")
        ours, (_, port) = listener.accept()
        with ours:
            ours.sendall(b"unseen too")
            assert actor.do("_ = s.recv(100)") == b"unseen too"
            yield ours, port


@pytest.mark.parametrize("first", ["write", "read"])
def test_older_than_the_agent(recorder: Recorder, actor: Actor, old: tuple[socket.socket, int], first: str) -> None:
    ours, port = old
    recorder.listen_to(actor.pid)
    ours.sendall(b"in")
    actor.do("s.sendall(b'out'); s.recv(100)" if first == "write" else "s.recv(100); s.sendall(b'out')")
    entered_ns = actor.enter_ns
    actor.do("s.close()")
    seen = recorder.until_closed(port)
    assert seen.opened.cause is OpenCause.MET
    assert seen.opened.remote_port == ours.getsockname()[1]
    assert entered_ns < seen.opened.enter_ns == seen.opened.exit_ns
    (written,), (read,) = seen.moved(1), seen.moved(0)
    assert (written.data, read.data) == (b"out", b"in")
    # It begins before the first call that was seen, and no byte of that is missing.
    assert (seen.opened.written, seen.opened.read) == (written.position, read.position)
    assert (seen.closed.written - seen.opened.written) & MASK == 3
    assert (seen.closed.read - seen.opened.read) & MASK == 2
    assert actor.enter_ns <= seen.closed.enter_ns <= seen.closed.exit_ns <= actor.exit_ns


def test_an_end_that_was_never_met_says_nothing(
    recorder: Recorder, actor: Actor, old: tuple[socket.socket, int]
) -> None:
    ours, _ = old
    recorder.listen_to(actor.pid)
    actor.do("s.close()")
    assert [ours.recv(100), ours.recv(100)] == [b"unseen", b""]
    recorder.read()
    assert recorder.records == []
    assert recorder.held(actor.pid) == 0


@pytest.mark.parametrize("end", ["bytes", "nothing"])
def test_the_peer_had_closed_before_it_was_met(
    recorder: Recorder, actor: Actor, old: tuple[socket.socket, int], end: str
) -> None:
    ours, port = old
    if end == "bytes":
        ours.sendall(b"last")
    ours.shutdown(socket.SHUT_WR)
    actor.do("select.select([s], [], [])")
    recorder.listen_to(actor.pid)
    if end == "bytes":
        assert actor.do("_ = s.recv(100, socket.MSG_WAITALL)") == b"last"
    else:
        assert actor.do("_ = s.recv(100)") == b""
    actor.do("s.sendall(b'bye'); s.close()")
    seen = recorder.until_closed(port)
    assert (seen.closed.written - seen.opened.written) & MASK == 3
    assert (seen.closed.read - seen.opened.read) & MASK == (4 if end == "bytes" else 0)
    assert [call.position - seen.opened.read for call in seen.moved(0)] == ([0] if end == "bytes" else [])


SIZE = 70_000


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non_blocking"])
def test_bytes_that_io_uring_moves_show_in_the_totals(
    recorder: Recorder, mover: Mover, family: int, blocking: bool
) -> None:
    recorder.listen_to(mover.pid)
    truth = mover.move(family, "uring_send", "uring_recv", "one", SIZE, blocking=blocking)
    if truth.failed:
        pytest.skip(f"this kernel cannot: {truth.failed}")
    assert truth.unseen == {"s": SIZE, "r": SIZE}
    client = recorder.until_closed(truth.client_port, truth.server_port)
    server = recorder.until_closed(truth.server_port, truth.client_port)
    assert client.calls == server.calls == []
    assert (client.closed.written - client.opened.written) & MASK == SIZE
    assert (server.closed.read - server.opened.read) & MASK == SIZE


@pytest.mark.parametrize(
    ("sender", "receiver"), [("uring_send", "uring_recv"), ("uring_writev_fixed", "uring_readv_fixed")]
)
def test_a_connection_that_only_io_uring_uses(recorder: Recorder, mover: Mover, sender: str, receiver: str) -> None:
    """Accepted before anybody watched, then used by io_uring alone: met at its first completion, with its totals."""
    recorder.capture.unwatch(mover.pid)
    recorder._keep = lambda tgid: tgid == mover.pid
    truth = mover.move(4, sender, receiver, "one", SIZE, ready=lambda: recorder.capture.watch(mover.pid))
    if truth.failed:
        pytest.skip(f"this kernel cannot: {truth.failed}")
    client = recorder.until_closed(truth.client_port, truth.server_port)
    server = recorder.until_closed(truth.server_port, truth.client_port)
    recorder.capture.unwatch(mover.pid)
    for seen in (client, server):
        assert seen.opened.cause is OpenCause.MET
        assert seen.calls == []
    assert (client.closed.written - client.opened.written) & MASK == SIZE
    assert (server.closed.read - server.opened.read) & MASK == SIZE


def test_accept_by_io_uring(recorder: Recorder, mover: Mover) -> None:
    recorder.listen_to(mover.pid)
    truth = mover.move(4, "uring_send", "uring_accept_recv", "one", SIZE)
    if truth.failed:
        pytest.skip(f"this kernel cannot: {truth.failed}")
    server = recorder.until_closed(truth.server_port, truth.client_port)
    assert server.opened.cause is OpenCause.ACCEPT
    assert (server.closed.read - server.opened.read) & MASK == SIZE
    opens = [record for record in recorder.records if isinstance(record, OpenRecord)]
    assert len(opens) == 2
