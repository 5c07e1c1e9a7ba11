# SPDX-License-Identifier: Apache-2.0
"""Descriptors come and go, are copied, inherited and passed on: one socket stays one connection."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.records import OpenCause
from tests.support.actor import Actor
from tests.support.capture import OpenRecord, needs_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.capture import Recorder, Seen

pytestmark = [pytest.mark.root, needs_capture]


@pytest.fixture
def actor() -> Iterator[Actor]:
    with Actor() as running:
        yield running


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def connect(actor: Actor, listener: socket.socket) -> tuple[socket.socket, int]:
    """The actor's `s` connects; the test's end and the actor's port."""
    actor.do(f"s = socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}))")
    ours, (_, port) = listener.accept()
    return ours, port


def only_one(recorder: Recorder, port: int, *pids: int) -> Seen:
    """The one connection there was, after it ended."""
    recorder.until_closed(port)
    recorder.until(lambda: recorder.held(*pids) == 0, "an empty table")
    assert len([record for record in recorder.records if isinstance(record, OpenRecord)]) == 1
    seen = recorder.connection(port)
    assert len(seen.closes) == 1
    return seen


def test_copies_of_a_descriptor(recorder: Recorder, actor: Actor, listener: socket.socket) -> None:
    recorder.listen_to(actor.pid)
    ours, port = connect(actor, listener)
    with ours:
        actor.do("s.sendall(b'1'); two = os.dup(s.fileno()); three = os.dup2(two, two + 20)")
        actor.do("import fcntl; four = fcntl.fcntl(two, fcntl.F_DUPFD, 50)")
        actor.do("s.close(); os.write(two, b'2'); os.close(two); os.write(three, b'3'); os.close(three)")
        actor.do("os.write(four, b'4')")
        assert ours.recv(4, socket.MSG_WAITALL) == b"1234"
        recorder.until(lambda: len(recorder.connection(port).calls) == 4, "four writes")
        assert not recorder.connection(port).closes
        actor.do("os.close(four)")
        seen = only_one(recorder, port, actor.pid)
    assert b"".join(call.data for call in seen.moved(1)) == b"1234"
    assert actor.enter_ns <= seen.closed.enter_ns <= seen.closed.exit_ns <= actor.exit_ns


def test_a_child_shares_it(recorder: Recorder, actor: Actor, listener: socket.socket) -> None:
    recorder.listen_to(actor.pid)
    recorder._keep = lambda _: True
    ours, port = connect(actor, listener)
    with ours:
        actor.do("s.sendall(b'parent')")
        child = actor.do(
            "ready, go = os.pipe()\n"
            "_ = os.fork()\n"
            "if _ == 0:\n    s.sendall(b'child')\n    os.read(ready, 1)\n    s.sendall(b'late')\n    os._exit(0)"
        )
        assert ours.recv(11, socket.MSG_WAITALL) == b"parentchild"
        actor.do("s.close()")
        recorder.read()
        assert not recorder.connection(port).closes
        actor.do(f"os.write(go, b'+'); os.waitpid({child}, 0)")
        recorder.until_closed(port)
    seen = recorder.connection(port)
    assert len(seen.opens) == len(seen.closes) == 1
    assert [(call.tgid, call.data) for call in seen.moved(1)] == [
        (actor.pid, b"parent"),
        (child, b"child"),
        (child, b"late"),
    ]
    # It is the connection of who opened it, whoever was the last to hold it.
    assert seen.opened.tgid == seen.closed.tgid == actor.pid


def test_passed_to_another_process(recorder: Recorder, actor: Actor, listener: socket.socket) -> None:
    with Actor() as second:
        recorder.listen_to(actor.pid, second.pid)
        ours, port = connect(actor, listener)
        with ours:
            actor.do("s.sendall(b'first')")
            actor.do("l = socket.socket(socket.AF_UNIX); l.bind(b'\\0rover-' + str(os.getpid()).encode()); l.listen()")
            second.tell(
                f"c = socket.socket(socket.AF_UNIX); c.connect(b'\\0rover-{actor.pid}')\n"
                "_, fds, _, _ = socket.recv_fds(c, 1, 1); s = socket.socket(fileno=fds[0]); _ = None"
            )
            actor.do("c, _ = l.accept(); socket.send_fds(c, [b'+'], [s.fileno()]); s.close(); _ = None")
            second.answer()
            second.do("s.sendall(b'second')")
            ours.sendall(b"back")
            assert second.do("_ = s.recv(100)") == b"back"
            recorder.read()
            assert not recorder.connection(port).closes
            second.do("s.close()")
            seen = only_one(recorder, port, actor.pid, second.pid)
        assert [(call.tgid, call.data) for call in seen.calls] == [
            (actor.pid, b"first"),
            (second.pid, b"second"),
            (second.pid, b"back"),
        ]
        assert second.enter_ns <= seen.closed.enter_ns <= seen.closed.exit_ns <= second.exit_ns


def test_a_descriptor_used_again(recorder: Recorder, actor: Actor, listener: socket.socket) -> None:
    recorder.listen_to(actor.pid)
    ports, numbers = [], set()
    for at in range(20):
        ours, port = connect(actor, listener)
        with ours:
            numbers.add(actor.do(f"s.sendall(b'{at}'); _ = s.fileno()"))
            actor.do("s.close()")
            ports.append(port)
    assert len(numbers) == 1
    recorder.until_closed(ports[-1])
    recorder.until(lambda: recorder.held(actor.pid) == 0, "an empty table")
    # Shards are read one after another, so records of different connections come in any order.
    found = (record for record in recorder.records if isinstance(record, OpenRecord))
    opens = sorted(found, key=lambda record: record.exit_ns)
    assert [record.local_port for record in opens] == ports
    assert len({record.connection for record in opens}) == len(ports)
    for at, record in enumerate(opens):
        of_it = [other for other in recorder.records if other.connection == record.connection]
        assert [getattr(other, "data", b"") for other in of_it] == [b"", str(at).encode(), b""]


def test_one_socket_connects_again(recorder: Recorder, actor: Actor, listener: socket.socket) -> None:
    recorder.listen_to(actor.pid)
    where = listener.getsockname()
    ours, port = connect(actor, listener)
    with ours:
        actor.do("s.sendall(b'first')")
        # AF_UNSPEC dissolves the association; the same socket is then another connection.
        actor.do("import ctypes; _ = ctypes.CDLL(None).connect(s.fileno(), b'\\0' * 16, 16)")
    actor.do(f"s.connect({where!r}); s.sendall(b'second')")
    again, (_, other) = listener.accept()
    with again:
        actor.do("s.close()")
        recorder.until_closed(other)
    recorder.until(lambda: recorder.held(actor.pid) == 0, "an empty table")
    first, second = recorder.connection(port), recorder.connection(other)
    if port == other:
        pytest.skip("the kernel gave the same port again")
    assert [call.data for call in first.calls] == [b"first"]
    assert [call.data for call in second.calls] == [b"second"]
    assert len(first.closes) == len(second.closes) == 1
    assert first.opened.cookie == second.opened.cookie


def test_threads_that_meet_it_at_once(recorder: Recorder, actor: Actor, listener: socket.socket) -> None:
    """Older than the agent, read by one thread while another writes: still one connection."""
    actor.do("import threading")
    for _ in range(20):
        ours, port = connect(actor, listener)
        with ours:
            ours.sendall(b"in")
            actor.do(
                "gate = threading.Barrier(3)\n"
                "threads = [threading.Thread(target=lambda: (gate.wait(), s.sendall(b'out'))),\n"
                "           threading.Thread(target=lambda: (gate.wait(), s.recv(100)))]\n"
                "[thread.start() for thread in threads]"
            )
            recorder.listen_to(actor.pid)
            actor.do("gate.wait(); [thread.join() for thread in threads]; s.close()")
            seen = only_one(recorder, port, actor.pid)
            recorder.capture.unwatch(actor.pid)
        assert seen.opened.cause is OpenCause.MET
        assert sorted(call.data for call in seen.calls) == [b"in", b"out"]
