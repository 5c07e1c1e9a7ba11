# SPDX-License-Identifier: Apache-2.0
"""Every way a connection ends: one close record, whose fault it was, its times and the last positions."""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.records import CLOSE_BY_PEER, CLOSE_PEER_ENDED, CLOSE_SHUT_FIRST
from tests.support import tun
from tests.support.actor import Actor
from tests.support.capture import needs_capture
from tests.support.tun import ACK, FIN, PEER, PEER_PORT, RST, TunPeer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.capture import CloseRecord, Recorder, Seen

pytestmark = [pytest.mark.root, needs_capture]

HELLO = b"hello"
# Calls that give the actor's socket `s` up, each with what must be ready before.
CLOSES = {
    "close": ("", "s.close()"),
    "close_range": (
        "import ctypes; close_range = ctypes.CDLL(None).close_range",
        "_ = close_range(s.fileno(), s.fileno(), 0); s.detach()",
    ),
    "dup2": ("other = os.open('/dev/null', os.O_RDONLY)", "os.dup2(other, s.fileno())"),
}
RESETS = {
    "linger": ("s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))", "s.close()"),
    "unread_bytes": ("select.select([s], [], [])", "s.close()"),
}


@pytest.fixture
def actor() -> Iterator[Actor]:
    with Actor() as running:
        yield running


@pytest.fixture
def pair(recorder: Recorder, actor: Actor) -> Iterator[tuple[socket.socket, int]]:
    """The test's end of a connection that the watched actor has opened and written HELLO to, and the actor's port."""
    recorder.listen_to(actor.pid)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        actor.do(f"s = socket.create_connection(('127.0.0.1', {listener.getsockname()[1]})); s.sendall({HELLO!r})")
        ours, (_, port) = listener.accept()
        with ours:
            assert ours.recv(100) == HELLO
            yield ours, port


peer = pytest.fixture(tun.actor_with_peer)


def ended(recorder: Recorder, port: int, *pids: int) -> Seen:
    """The connection once all trace of it has left the kernel side."""
    recorder.until_closed(port)
    recorder.until(lambda: recorder.held(*pids) == 0, "an empty table")
    seen = recorder.connection(port)
    assert len(seen.opens) == len(seen.closes) == 1
    return seen


def totals(seen: Seen) -> tuple[int, int]:
    """Bytes written and read between open and close."""
    opened, closed = seen.opened, seen.closed
    return (closed.written - opened.written) & tun.MASK, (closed.read - opened.read) & tun.MASK


def during(closed: CloseRecord, actor: Actor) -> bool:
    return actor.enter_ns <= closed.enter_ns < closed.exit_ns <= actor.exit_ns


@pytest.mark.parametrize("way", CLOSES)
def test_its_owner_closes_it(recorder: Recorder, actor: Actor, pair: tuple[socket.socket, int], way: str) -> None:
    _, port = pair
    ready, code = CLOSES[way]
    actor.do(ready)
    actor.do(code)
    assert actor.errno == 0
    seen = ended(recorder, port, actor.pid)
    assert seen.closed.flags == 0
    assert during(seen.closed, actor)
    assert totals(seen) == (len(HELLO), 0)


@pytest.mark.parametrize("way", ["exit", "SIGKILL", "exec"])
def test_its_owner_ends(recorder: Recorder, actor: Actor, pair: tuple[socket.socket, int], way: str) -> None:
    ours, port = pair
    if way == "SIGKILL":
        actor.kill()
    elif way == "exit":
        actor.tell("os._exit(0)")
    else:
        actor.tell("os.execv('/bin/true', ['true'])")
    assert ours.recv(100) == b""
    seen = ended(recorder, port, actor.pid)
    assert seen.closed.flags == 0
    assert seen.closed.tgid == actor.pid
    assert seen.opened.exit_ns < seen.closed.enter_ns <= seen.closed.exit_ns
    assert totals(seen) == (len(HELLO), 0)


@pytest.mark.parametrize("way", RESETS)
def test_its_owner_resets_it(recorder: Recorder, actor: Actor, pair: tuple[socket.socket, int], way: str) -> None:
    ours, port = pair
    ready, code = RESETS[way]
    ours.sendall(b"never read")
    actor.do(ready)
    actor.do(code)
    seen = ended(recorder, port, actor.pid)
    assert seen.closed.flags == 0
    assert during(seen.closed, actor)
    assert totals(seen) == (len(HELLO), 0)


def test_the_peer_closes_first(recorder: Recorder, actor: Actor, pair: tuple[socket.socket, int]) -> None:
    ours, port = pair
    ours.sendall(b"good")
    ours.shutdown(socket.SHUT_WR)
    # One call takes the last bytes and the end together.
    assert actor.do("_ = s.recv(100, socket.MSG_WAITALL)") == b"good"
    assert actor.do("_ = s.recv(100)") == b""
    assert not recorder.connection(port).closes
    actor.do("s.sendall(b'bye')")
    actor.do("s.close()")
    seen = ended(recorder, port, actor.pid)
    assert seen.closed.flags == CLOSE_PEER_ENDED
    assert during(seen.closed, actor)
    assert totals(seen) == (len(HELLO) + 3, 4)
    (read,) = seen.moved(0)
    assert (read.position - seen.opened.read, read.size, read.data) == (0, 4, b"good")
    assert [(call.position - seen.opened.written) & tun.MASK for call in seen.moved(1)] == [0, len(HELLO)]


UNRELATED = {
    "the close of a file": "f = os.open('/dev/null', os.O_RDONLY); os.close(f)",
    "the close of another descriptor of the socket": "other = os.dup(s.fileno()); os.close(other)",
}


@pytest.mark.parametrize("way", ["exit", "SIGKILL", "exec"])
@pytest.mark.parametrize("before", UNRELATED)
def test_its_end_begins_at_no_earlier_close(
    recorder: Recorder, actor: Actor, pair: tuple[socket.socket, int], before: str, way: str
) -> None:
    ours, port = pair
    end = {
        "exit": "os._exit(0)",
        "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
        "exec": "os.execv('/bin/true', ['true'])",
    }[way]
    told_ns = time.monotonic_ns()
    # Neither the wait nor the end is a call that capture looks at.
    actor.tell(f"{UNRELATED[before]}; time.sleep(0.2); {end}")
    assert ours.recv(100) == b""
    seen = ended(recorder, port, actor.pid)
    assert seen.closed.flags == 0
    assert seen.closed.enter_ns - told_ns >= 200_000_000


@pytest.mark.parametrize("how", ["SHUT_WR", "SHUT_RDWR"])
def test_shutdown_is_no_end(recorder: Recorder, actor: Actor, pair: tuple[socket.socket, int], how: str) -> None:
    ours, port = pair
    ours.sendall(b"good")
    actor.do("select.select([s], [], [])")
    actor.do(f"s.shutdown(socket.{how})")
    assert ours.recv(100) == b""
    if how == "SHUT_WR":
        ours.sendall(b"bye")
    assert actor.do("_ = s.recv(4)") == b"good"
    ours.close()
    expected = b"bye" if how == "SHUT_WR" else b""
    assert actor.do("_ = b''.join(iter(lambda: s.recv(100), b''))") == expected
    recorder.read()
    assert not recorder.connection(port).closes
    actor.do("s.close()")
    seen = ended(recorder, port, actor.pid)
    assert seen.closed.flags == CLOSE_PEER_ENDED | CLOSE_SHUT_FIRST
    assert during(seen.closed, actor)
    assert totals(seen) == (len(HELLO), 4 + len(expected))
    assert b"".join(call.data for call in seen.moved(0)) == b"good" + expected
    # Our FIN is no byte of the stream.
    assert {(call.opposite - seen.opened.written) & tun.MASK for call in seen.moved(0)} == {len(HELLO)}


def test_the_peer_resets_it(recorder: Recorder, actor: Actor, pair: tuple[socket.socket, int]) -> None:
    ours, port = pair
    ours.sendall(b"good")
    actor.do("select.select([s], [], [])")
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ours.close()
    # What had come before the reset can still be read.
    assert actor.do("_ = s.recv(100)") == b"good"
    actor.do("s.recv(100)")
    assert actor.errno == errno.ECONNRESET
    actor.do("s.close()")
    seen = ended(recorder, port, actor.pid)
    assert seen.closed.flags == CLOSE_BY_PEER
    assert during(seen.closed, actor)
    assert totals(seen) == (len(HELLO), 4)
    assert [call.data for call in seen.moved(0)] == [b"good"]


def established(recorder: Recorder, actor: Actor, far: TunPeer) -> tuple[int, int]:
    recorder.listen_to(actor.pid)
    actor.tell(f"s = socket.create_connection(('{PEER}', {PEER_PORT}))")
    numbers = far.accept()
    actor.answer()
    return numbers


@pytest.mark.parametrize("first", ["close", "shutdown"])
def test_both_ends_close_at_once(recorder: Recorder, peer: tuple[Actor, TunPeer], first: str) -> None:
    actor, far = peer
    ours, theirs = established(recorder, actor, far)
    actor.do("s.close()" if first == "close" else "s.shutdown(socket.SHUT_WR)")
    far.until(FIN)
    far.send(FIN | ACK, ours, theirs)  # not having seen theirs
    far.until(ACK)
    far.send(ACK, ours + 1, theirs + 1)
    if first == "shutdown":
        actor.do("select.select([s], [], [])")
        assert actor.do("_ = s.recv(1)") == b""
        assert not recorder.connection(far.port).closes
        actor.do("s.close()")
    seen = ended(recorder, far.port, actor.pid)
    assert seen.closed.flags == (0 if first == "close" else CLOSE_PEER_ENDED | CLOSE_SHUT_FIRST)
    assert totals(seen) == (0, 0)
    if first == "shutdown":
        assert during(seen.closed, actor)


def test_the_peer_falls_silent(recorder: Recorder, peer: tuple[Actor, TunPeer]) -> None:
    actor, far = peer
    established(recorder, actor, far)
    actor.do("s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300); s.sendall(b'anybody?')")
    actor.do("s.recv(1)")
    assert actor.errno == errno.ETIMEDOUT
    actor.do("s.close()")
    seen = ended(recorder, far.port, actor.pid)
    assert seen.closed.flags == CLOSE_BY_PEER
    assert during(seen.closed, actor)
    assert seen.closed.retransmitted > 0
    assert totals(seen) == (8, 0)


def test_a_reset_before_accept(recorder: Recorder, actor: Actor) -> None:
    recorder.listen_to(actor.pid)
    port = actor.do("l = socket.create_server(('127.0.0.1', 0)); _ = l.getsockname()[1]")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"good")
        theirs = client.getsockname()[1]
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    actor.do("s, _ = l.accept(); _ = None")
    assert actor.do("_ = s.recv(100)") == b"good"
    actor.do("s.close()")
    recorder.until_closed(port, theirs)
    seen = recorder.connection(port, theirs)
    assert seen.closed.flags == CLOSE_BY_PEER
    assert totals(seen) == (0, 4)


def test_the_peer_resets_instead_of_answering_a_close(recorder: Recorder, peer: tuple[Actor, TunPeer]) -> None:
    actor, far = peer
    ours, theirs = established(recorder, actor, far)
    actor.do("s.close()")
    close = (actor.enter_ns, actor.exit_ns)
    far.until(FIN)
    far.send(RST | ACK, ours, theirs + 1)
    seen = ended(recorder, far.port, actor.pid)
    assert seen.closed.flags == 0
    assert close[0] <= seen.closed.enter_ns <= seen.closed.exit_ns <= close[1]
