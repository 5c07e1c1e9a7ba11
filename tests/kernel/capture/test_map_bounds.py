# SPDX-License-Identifier: Apache-2.0
"""Tables of the kernel side that are full: what finds no place is counted, and places come back. UDP is counted only.

Other programs of the machine are born and watched meanwhile, so counts are at least, never exactly, what a test caused.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.records import OpenCause
from rover_plugin.capture.session import CaptureOptions, Statistic
from tests.support.actor import Actor
from tests.support.capture import OpenRecord, Recorder, needs_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, needs_capture]

PLACES = 64
MANY = 2 * PLACES


@pytest.fixture(scope="module")
def small() -> Iterator[Recorder]:
    """A capture with few places in every table."""
    options = CaptureOptions(max_connections=PLACES, max_processes=PLACES, max_threads=PLACES)
    with Recorder(options) as recorder:
        yield recorder


@pytest.fixture
def actor() -> Iterator[Actor]:
    with Actor() as running:
        yield running


def grown(recorder: Recorder, statistic: Statistic, before: dict[Statistic, int]) -> int:
    return recorder.capture.statistics()[statistic] - before[statistic]


def test_more_connections_than_places(small: Recorder, actor: Actor) -> None:
    small.listen_to(actor.pid)
    before = small.capture.statistics()
    with socket.create_server(("127.0.0.1", 0), backlog=MANY) as listener:
        port = listener.getsockname()[1]
        actor.do(f"many = [socket.create_connection(('127.0.0.1', {port})) for _ in range({MANY})]")
        assert 0 < small.held(actor.pid) <= PLACES
        assert grown(small, Statistic.CONNECTIONS_FULL, before) >= MANY - PLACES
        held = small.held(actor.pid)
        actor.do("[s.sendall(b'x') for s in many]")
        # Who had no place is met again at each call, for a place may have come free: counted again.
        assert grown(small, Statistic.CONNECTIONS_FULL, before) >= 2 * (MANY - PLACES)
        actor.do("[s.close() for s in many]")
        small.until(lambda: small.held(actor.pid) == 0, "an empty table")
        opens = [record for record in small.records if isinstance(record, OpenRecord)]
        assert len(opens) == held
        # Those that were seen are whole.
        seen = [small.connection(record.local_port) for record in opens]
        assert {(len(one.calls), len(one.closes)) for one in seen} == {(1, 1)}
        actor.do(f"s = socket.create_connection(('127.0.0.1', {port})); s.close()")
        small.until(lambda: len([1 for one in small.records if isinstance(one, OpenRecord)]) > held, "a new connection")


def test_more_threads_than_places(small: Recorder, actor: Actor) -> None:
    actor.do(
        "import threading\n"
        f"gate = threading.Barrier({MANY} + 1)\n"
        "ready, go = os.pipe()\n"
        "def work():\n"
        "    os.write(go, b'x'); ids.append(threading.get_native_id()); gate.wait(); gate.wait()\n"
        "ids = []"
    )
    small.listen_to(actor.pid)
    before = small.capture.statistics()
    actor.do(f"ts = [threading.Thread(target=work) for _ in range({MANY})]; [t.start() for t in ts]; gate.wait()")
    ids = set(actor.do("_ = ids"))
    assert 0 < len(small.threads() & ids) <= PLACES
    assert grown(small, Statistic.THREADS_FULL, before) >= MANY - PLACES
    actor.do("gate.wait(); [t.join() for t in ts]; _ = None")
    small.until(lambda: not small.threads() & ids, "no trace of threads that ended")


def test_more_processes_than_places(small: Recorder, actor: Actor) -> None:
    small.listen_to(actor.pid)
    before = small.capture.statistics()
    children = set(
        actor.do(
            "ready, go = os.pipe(); _ = []\n"
            f"for at in range({MANY}):\n"
            "    child = os.fork()\n"
            "    if child == 0:\n        os.close(go); os.read(ready, 1); os._exit(0)\n"
            "    _.append(child)"
        )
    )
    assert 0 < len(small.capture.watched() & children) <= PLACES
    assert grown(small, Statistic.PROCESSES_FULL, before) >= MANY - PLACES
    full = [pid for pid in children if not small.capture.watch(pid)]
    assert full  # the feed's choice finds no place either, and is told so
    actor.do("os.close(go)")
    actor.do(f"for _ in range({MANY}): os.wait()")
    small.until(lambda: not small.capture.watched() & children, "no trace of processes that ended")
    assert small.capture.watch(actor.pid)


def test_nothing_is_left_of_what_came_and_went(recorder: Recorder, actor: Actor) -> None:
    """Processes that connect and end, in every order; many more than are ever there at once."""
    recorder.listen_to(actor.pid)
    recorder._keep = lambda _: True
    with socket.create_server(("127.0.0.1", 0), backlog=MANY) as listener:
        port = listener.getsockname()[1]
        children = set(
            actor.do(
                "_ = []\n"
                f"for at in range({MANY}):\n"
                "    child = os.fork()\n"
                "    if child == 0:\n"
                f"        s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'x')\n"
                "        if at % 3 == 0: s.close()\n"
                "        os.kill(os.getpid(), signal.SIGKILL) if at % 3 == 1 else os._exit(0)\n"
                "    os.waitpid(child, 0)\n"
                "    _.append(child)"
            )
        )
        servers = [listener.accept()[0] for _ in range(MANY)]
        for server in servers:
            assert server.recv(10) == b"x"
            server.close()
    recorder.until(lambda: recorder.held(*children) == 0, "no connections")
    recorder.until(lambda: not recorder.threads() & children, "no threads")
    assert not recorder.capture.watched() & children
    opens = [record for record in recorder.records if isinstance(record, OpenRecord) and record.remote_port == port]
    assert {record.tgid for record in opens} == children
    assert len(opens) == MANY


def test_udp_is_counted_and_no_connection(recorder: Recorder, actor: Actor) -> None:
    recorder.listen_to(actor.pid)
    before = recorder.capture.statistics()
    actor.do(
        "a = socket.socket(type=socket.SOCK_DGRAM); a.bind(('127.0.0.1', 0))\n"
        "b = socket.socket(type=socket.SOCK_DGRAM); b.connect(a.getsockname())\n"
        "[b.send(b'datagram') for _ in range(10)]; [a.recvfrom(100) for _ in range(10)]\n"
        "left, right = socket.socketpair(); left.sendall(b'x'); right.recv(1)\n"
        "[s.close() for s in (a, b, left, right)]"
    )
    assert actor.errno == 0
    assert grown(recorder, Statistic.NOT_TCP, before) >= 22  # 20 datagrams, and 2 calls on the pair
    recorder.read()
    assert [record for record in recorder.records if isinstance(record, OpenRecord)] == []
    assert recorder.held(actor.pid) == 0


def test_a_full_table_forgets_nobody_it_has(small: Recorder, actor: Actor) -> None:
    small.listen_to(actor.pid)
    with socket.create_server(("127.0.0.1", 0), backlog=MANY) as listener:
        port = listener.getsockname()[1]
        actor.do(f"first = socket.create_connection(('127.0.0.1', {port})); _ = None")
        mine = actor.do("_ = first.getsockname()[1]")
        actor.do(
            f"many = [socket.create_connection(('127.0.0.1', {port})) for _ in range({MANY})]; first.send(b'here')"
        )
        actor.do("[s.close() for s in many]; first.close()")
        seen = small.until_closed(mine)
    assert seen.opened.cause is OpenCause.CONNECT
    assert [call.data for call in seen.calls] == [b"here"]


def test_nothing_is_left_of_threads_that_executed_another_program(recorder: Recorder, actor: Actor) -> None:
    recorder.listen_to(actor.pid)
    with socket.create_server(("127.0.0.1", 0), backlog=20) as listener:
        port = listener.getsockname()[1]
        ids = set(
            actor.do(
                "import threading; _ = []\n"
                "def work(told):\n"
                f"    s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'x')\n"
                "    os.write(told, str(threading.get_native_id()).encode()); os.close(told)\n"
                "    os.execv('/bin/true', ['true'])\n"
                "for at in range(10):\n"
                "    ready, told = os.pipe()\n"
                "    child = os.fork()\n"
                "    if child == 0:\n"
                "        t = threading.Thread(target=work, args=(told,)); t.start(); t.join()\n"
                "    os.close(told); _.append(int(os.read(ready, 20))); os.close(ready); os.waitpid(child, 0)"
            )
        )
        assert len(ids) == 10
        recorder.until(lambda: not recorder.threads() & ids, "no trace of threads that executed something")
