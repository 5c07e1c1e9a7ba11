# SPDX-License-Identifier: Apache-2.0
"""Connect and accept, in every way they go well or wrong: one open record with the ends, the outcome and its times."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.records import OPEN_FAILED, OpenCause
from tests.support import tun
from tests.support.actor import Actor
from tests.support.capture import OpenRecord, needs_capture
from tests.support.tun import ACK, PEER, PEER_PORT, RST, SYN, TunPeer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.capture import Recorder

pytestmark = [pytest.mark.root, needs_capture]

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
MAPPED = str(ipaddress.ip_address("::ffff:127.0.0.1"))
CONNECT = "s = socket.socket({family}); _ = s.connect_ex(('{host}', {port}))"
CONNECT_AT_ONCE = "s = socket.socket({family}); s.setblocking(False); _ = s.connect_ex(('{host}', {port}))"
OUTCOME = "select.select([], [s], []); _ = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)"
# How a test's client waits for the outcome; what connect_ex says at once.
WAYS = {"blocking": (CONNECT, 0), "non_blocking": (CONNECT_AT_ONCE, errno.EINPROGRESS)}


@pytest.fixture
def actor() -> Iterator[Actor]:
    with Actor() as running:
        yield running


peer = pytest.fixture(tun.actor_with_peer)


def ends(record: OpenRecord) -> tuple[tuple[str, int], tuple[str, int]]:
    size = 4 if record.family == socket.AF_INET else 16
    local, remote = (str(ipaddress.ip_address(raw[:size])) for raw in (record.local, record.remote))
    return (local, record.local_port), (remote, record.remote_port)


def opened(recorder: Recorder, actor: Actor) -> OpenRecord:
    """The one open record of the actor, and that there is no other."""

    def opens() -> list[OpenRecord]:
        return [record for record in recorder.records if isinstance(record, OpenRecord)]

    recorder.until(lambda: bool(opens()), "an open record")
    actor.do("s.close()")
    recorder.until(lambda: recorder.held(actor.pid) == 0, "the table without the actor's connections")
    (record,) = opens()
    closes = [other for other in recorder.records if other.connection == record.connection and other is not record]
    # A connect that failed has no end of its own.
    assert len(closes) == (0 if record.error else 1)
    return record


@pytest.mark.parametrize("family", LOOPBACK, ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("way", WAYS)
def test_connect_succeeds(recorder: Recorder, actor: Actor, way: str, family: int) -> None:
    recorder.listen_to(actor.pid)
    code, _ = WAYS[way]
    with socket.socket(family) as listener:
        listener.bind((LOOPBACK[family], 0))
        listener.listen()
        port = listener.getsockname()[1]
        # On loopback the answer has come before a non-blocking connect returns; it says EINPROGRESS all the same.
        actor.do(code.format(family=int(family), host=LOOPBACK[family], port=port))
        enter_ns, exit_ns = actor.enter_ns, actor.exit_ns
        assert actor.do(OUTCOME) == 0
        ours = actor.do("_ = s.getsockname()[:2]")
        record = opened(recorder, actor)
    assert record.cause is OpenCause.CONNECT
    assert (record.flags, record.error) == (0, 0)
    assert record.tgid == actor.pid
    assert ends(record) == (ours, (LOOPBACK[family], port))
    assert enter_ns <= record.enter_ns <= record.exit_ns <= exit_ns


@pytest.mark.parametrize("way", WAYS)
def test_connect_is_refused(recorder: Recorder, actor: Actor, way: str) -> None:
    recorder.listen_to(actor.pid)
    code, _ = WAYS[way]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        actor.do(code.format(family=int(socket.AF_INET), host="127.0.0.1", port=port))
        enter_ns, exit_ns = actor.enter_ns, actor.exit_ns
        record = opened(recorder, actor)
    assert record.cause is OpenCause.CONNECT
    assert (record.flags, record.error) == (OPEN_FAILED, errno.ECONNREFUSED)
    assert ends(record)[1] == ("127.0.0.1", port)
    assert enter_ns <= record.enter_ns <= record.exit_ns <= exit_ns


@pytest.mark.parametrize("way", WAYS)
def test_connect_lasts_as_long_as_the_peer_takes(recorder: Recorder, peer: tuple[Actor, TunPeer], way: str) -> None:
    actor, far = peer
    recorder.listen_to(actor.pid)
    code, _ = WAYS[way]
    actor.tell(code.format(family=int(socket.AF_INET), host=PEER, port=PEER_PORT))
    syn = far.until(SYN)
    if way == "non_blocking":
        assert actor.answer() == errno.EINPROGRESS
        actor.tell("_ = time.monotonic_ns()")
    later_ns = actor.answer() if way == "non_blocking" else 0
    assert not [record for record in recorder.records if isinstance(record, OpenRecord)]
    far.send(SYN | ACK, 1000, syn.sequence + 1)
    if way == "blocking":
        assert actor.answer() == 0
    else:
        assert actor.do(OUTCOME) == 0
    record = opened(recorder, actor)
    assert (record.cause, record.error) == (OpenCause.CONNECT, 0)
    assert ends(record) == ((tun.HERE, syn.port), (PEER, PEER_PORT))
    assert (record.written, record.read) == (syn.sequence + 1 & tun.MASK, 1001)
    assert record.exit_ns > later_ns


def test_connect_is_reset_by_a_peer_that_took_its_time(recorder: Recorder, peer: tuple[Actor, TunPeer]) -> None:
    actor, far = peer
    recorder.listen_to(actor.pid)
    actor.do(CONNECT_AT_ONCE.format(family=int(socket.AF_INET), host=PEER, port=PEER_PORT))
    syn = far.until(SYN)
    before_ns = actor.do("_ = time.monotonic_ns()")
    far.send(RST | ACK, 0, syn.sequence + 1)
    assert actor.do(OUTCOME) == errno.ECONNREFUSED
    record = opened(recorder, actor)
    assert (record.flags, record.error) == (OPEN_FAILED, errno.ECONNREFUSED)
    assert ends(record) == ((tun.HERE, syn.port), (PEER, PEER_PORT))
    assert record.enter_ns < before_ns < record.exit_ns <= actor.exit_ns


def test_connect_times_out(recorder: Recorder, peer: tuple[Actor, TunPeer]) -> None:
    actor, _ = peer
    recorder.listen_to(actor.pid)
    actor.do("s = socket.socket(); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 200)")
    assert actor.do(f"_ = s.connect_ex(('{PEER}', {PEER_PORT}))") == errno.ETIMEDOUT
    enter_ns, exit_ns = actor.enter_ns, actor.exit_ns
    record = opened(recorder, actor)
    assert (record.flags, record.error) == (OPEN_FAILED, errno.ETIMEDOUT)
    assert ends(record)[1] == (PEER, PEER_PORT)
    assert enter_ns <= record.enter_ns < record.exit_ns <= exit_ns
    # The outcome is the end of the wait, not the beginning.
    assert record.exit_ns - record.enter_ns > (exit_ns - enter_ns) // 2


@pytest.mark.parametrize("end", ["s.close()", "kill"])
def test_connect_is_given_up_by_its_owner(recorder: Recorder, peer: tuple[Actor, TunPeer], end: str) -> None:
    actor, far = peer
    recorder.listen_to(actor.pid)
    actor.do(CONNECT_AT_ONCE.format(family=int(socket.AF_INET), host=PEER, port=PEER_PORT))
    syn = far.until(SYN)
    if end == "kill":
        actor.kill()
    else:
        actor.do(end)
    recorder.until(lambda: bool(recorder.connection(syn.port).opens), "the failed connect")
    record = recorder.connection(syn.port).opened
    assert (record.flags, record.error) == (OPEN_FAILED, errno.ECONNABORTED)
    assert ends(record)[1] == (PEER, PEER_PORT)
    recorder.until(lambda: recorder.held(actor.pid) == 0, "an empty table")
    assert recorder.connection(syn.port).closes == []


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")], ids=["ipv4", "ipv6"]
)
def test_connect_without_a_route(recorder: Recorder, peer: tuple[Actor, TunPeer], family: int, host: str) -> None:
    actor, _ = peer
    recorder.listen_to(actor.pid)
    said = actor.do(CONNECT.format(family=int(family), host=host, port=443))
    assert said == errno.ENETUNREACH
    enter_ns, exit_ns = actor.enter_ns, actor.exit_ns
    record = opened(recorder, actor)
    assert (record.cause, record.flags, record.error) == (OpenCause.CONNECT, OPEN_FAILED, said)
    assert ends(record)[1] == (host, 443)
    assert enter_ns <= record.enter_ns <= record.exit_ns <= exit_ns


def test_connect_without_a_free_port(recorder: Recorder, peer: tuple[Actor, TunPeer]) -> None:
    actor, far = peer
    actor.do("open('/proc/sys/net/ipv4/ip_local_port_range', 'w').write('40000 40000')")
    actor.do(f"first = socket.socket(); first.setblocking(False); first.connect_ex(('{PEER}', {PEER_PORT}))")
    far.accept()
    recorder.listen_to(actor.pid)
    said = actor.do(CONNECT.format(family=int(socket.AF_INET), host=PEER, port=PEER_PORT))
    assert said == errno.EADDRNOTAVAIL
    record = opened(recorder, actor)
    assert (record.flags, record.error) == (OPEN_FAILED, said)
    assert ends(record)[1] == (PEER, PEER_PORT)


def test_calls_that_connect_nothing_say_nothing(recorder: Recorder, actor: Actor) -> None:
    recorder.listen_to(actor.pid)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert actor.do(CONNECT.format(family=int(socket.AF_INET), host="127.0.0.1", port=port)) == 0
        # Connected already; a datagram socket.
        assert actor.do(f"_ = s.connect_ex(('127.0.0.1', {port}))") == errno.EISCONN
        actor.do("u = socket.socket(type=socket.SOCK_DGRAM); u.connect(('127.0.0.1', 9)); u.close()")
        record = opened(recorder, actor)
    assert ends(record)[1] == ("127.0.0.1", port)


def test_both_ends_connect_at_once(recorder: Recorder, peer: tuple[Actor, TunPeer]) -> None:
    actor, far = peer
    recorder.listen_to(actor.pid)
    actor.tell(CONNECT.format(family=int(socket.AF_INET), host=PEER, port=PEER_PORT))
    syn = far.until(SYN)
    far.send(SYN, 1000)
    far.until(SYN | ACK)
    far.send(SYN | ACK, 1000, syn.sequence + 1)
    assert actor.answer() == 0
    record = opened(recorder, actor)
    assert (record.cause, record.error) == (OpenCause.CONNECT, 0)
    assert (record.written, record.read) == (syn.sequence + 1 & tun.MASK, 1001)


@pytest.mark.parametrize("family", LOOPBACK, ids=["ipv4", "ipv6"])
def test_accept(recorder: Recorder, actor: Actor, family: int) -> None:
    recorder.listen_to(actor.pid)
    port = actor.do(
        f"l = socket.create_server(('{LOOPBACK[family]}', 0), family={int(family)}); _ = l.getsockname()[1]"
    )
    actor.tell("s, _ = l.accept(); _ = None")
    with socket.create_connection((LOOPBACK[family], port)) as client:
        actor.answer()
        enter_ns, exit_ns = actor.enter_ns, actor.exit_ns
        theirs = client.getsockname()[:2]
        record = opened(recorder, actor)
    assert (record.cause, record.flags, record.error) == (OpenCause.ACCEPT, 0, 0)
    assert ends(record) == ((LOOPBACK[family], port), theirs)
    assert enter_ns <= record.enter_ns <= record.exit_ns <= exit_ns


def test_ipv4_clients_of_an_ipv6_socket(recorder: Recorder, actor: Actor) -> None:
    recorder.listen_to(actor.pid)
    port = actor.do(
        "l = socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True); _ = l.getsockname()[1]"
    )
    with socket.create_connection(("127.0.0.1", port)) as client:
        actor.do("s, _ = l.accept(); _ = None")
        theirs = client.getsockname()[1]
        record = opened(recorder, actor)
    assert record.family == socket.AF_INET6
    assert ends(record) == ((MAPPED, port), (MAPPED, theirs))


def test_an_ipv6_socket_connects_to_an_ipv4_address(recorder: Recorder, actor: Actor) -> None:
    recorder.listen_to(actor.pid)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = CONNECT.format(family=int(socket.AF_INET6), host="::ffff:127.0.0.1", port=port)
        assert actor.do(code) == 0
        ours = actor.do("_ = s.getsockname()[1]")
        record = opened(recorder, actor)
    assert record.family == socket.AF_INET6
    assert ends(record) == ((MAPPED, ours), (MAPPED, port))


def test_accept_that_fails_says_nothing(recorder: Recorder, actor: Actor) -> None:
    recorder.listen_to(actor.pid)
    port = actor.do("l = socket.create_server(('127.0.0.1', 0)); l.setblocking(False); _ = l.getsockname()[1]")
    actor.do("l.accept()")
    assert actor.errno == errno.EAGAIN
    with socket.create_connection(("127.0.0.1", port)) as client:
        actor.do("import resource; few = len(os.listdir('/proc/self/fd')) - 1")
        actor.do("limits = resource.getrlimit(resource.RLIMIT_NOFILE)")
        actor.do("resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1])); l.accept()")
        assert actor.errno == errno.EMFILE
        actor.do("resource.setrlimit(resource.RLIMIT_NOFILE, limits)")
        actor.do("s, _ = l.accept(); _ = None")
        assert actor.errno == 0
        record = opened(recorder, actor)
        assert ends(record)[1] == client.getsockname()
