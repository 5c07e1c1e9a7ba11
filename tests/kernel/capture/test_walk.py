# SPDX-License-Identifier: Apache-2.0
"""The kernel side follows framing: what it copies of real sockets' calls is, piece by piece, what its model says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.model import Side
from rover_plugin.capture.session import CaptureOptions
from tests.support import talks
from tests.support.actor import Actor
from tests.support.capture import Recorder, needs_capture
from tests.support.walk_model import WalkModel, Way

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, needs_capture]

LIMIT = 1 << 16
# Writes `data` in calls of these sizes by these means, and reads at the other end with other sizes until all is there.
_MOVE = """
def move(out, into, data, sizes, means, reads):
    moved = read = turn = 0
    while read < len(data):
        if moved < len(data) and moved - read < 300000:
            how = means[turn % len(means)]
            part = memoryview(data)[moved : moved + min(sizes[turn % len(sizes)], 250000)]
            if how == "sendfile":
                memory.seek(0)
                memory.write(part)
                memory.flush()
                moved += os.sendfile(out.fileno(), memory.fileno(), 0, len(part))
            elif how == "writev":
                pieces = [part[at : at + 1 + len(part) // 7] for at in range(0, len(part), 1 + len(part) // 7)]
                moved += os.writev(out.fileno(), pieces)
            elif how == "sendmsg":
                pieces = [part[at : at + 5] for at in range(0, min(len(part), 200), 5)] + [part[200:]]
                moved += out.sendmsg(pieces)
            else:
                moved += out.send(part)
            turn += 1
            if turn % 3:
                continue
        if reads[turn % len(reads)] % 2:
            read += len(into.recv(reads[turn % len(reads)]))
        else:
            room = reads[turn % len(reads)]
            read += into.recvmsg_into([bytearray(3), bytearray(room // 3), bytearray(room)])[0]
        turn += 1
"""


@pytest.fixture(scope="module")
def wide() -> Iterator[Recorder]:
    with Recorder(CaptureOptions(ring_bytes=64 << 20, capture_limit=LIMIT)) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def actor() -> Iterator[Actor]:
    with Actor() as running:
        running.do("import tempfile; memory = tempfile.TemporaryFile()")
        running.do(_MOVE)
        yield running


def move(
    wide: Recorder, actor: Actor, talk: talks.Talk, sizes: list[int], means: list[str], reads: list[int]
) -> list[tuple[int, int]]:
    """Moves a talk over a connection of the actor; checks every record of both ends. The ports of both."""
    wide.listen_to(actor.pid)
    actor.do(
        "server = socket.create_server(('127.0.0.1', 0)); s = socket.create_connection(server.getsockname());"
        " peer, _ = server.accept(); server.close();"
        " [end.setsockopt(socket.SOL_SOCKET, name, 4 << 20) for end in (s, peer) for name in (socket.SO_SNDBUF,"
        " socket.SO_RCVBUF)]"
    )
    ports = actor.do("_ = s.getsockname()[1], peer.getsockname()[1]")
    for side, data in talk.turns:
        out, into = ("s", "peer") if side is Side.REQUEST else ("peer", "s")
        actor.do(f"move({out}, {into}, {data!r}, {sizes!r}, {means!r}, {reads!r})")
    actor.do("s.close(); peer.close()")
    streams = [b"".join(data for side, data in talk.turns if side is wanted) for wanted in Side]
    compare(wide, ports, streams)
    compare(wide, ports[::-1], streams[::-1])
    return ports


def compare(wide: Recorder, ports: tuple[int, int], streams: list[bytes]) -> None:
    """Checks the records of the end with these ports, which writes `streams[0]`, against the model."""
    seen = wide.until_closed(*ports)
    begin = {1: seen.opened.written, 0: seen.opened.read}
    model = WalkModel((Way(begin[0]), Way(begin[1])), capture_limit=LIMIT)
    data = {1: streams[0], 0: streams[1]}
    for record in sorted(seen.calls, key=lambda call: call.exit_ns):
        at = record.position - begin[record.direction] & 0xFFFFFFFF
        moved = data[record.direction][at : at + record.size]
        assert len(moved) == record.size
        unreadable = record.call.name == "SENDFILE"
        expected = model.call(record.direction, moved, record.position, record.opposite, unreadable=unreadable)
        got = (record.flags, record.offset, record.data)
        assert got == (expected.flags, expected.offset, expected.captured), (record.direction, at, record.size)
    assert sum(call.size for call in seen.calls) == sum(map(len, streams))


MEANS = st.lists(st.sampled_from(("send", "send", "writev", "sendmsg")), min_size=1, max_size=4)
READS = st.lists(st.one_of(st.integers(1, 1100), st.integers(1000, 300_000)), min_size=1, max_size=4)
BOUNDED = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@BOUNDED
@given(talk=talks.http1(), sizes=talks.CUTS, means=MEANS, reads=READS)
def test_http1_is_walked_as_the_model_does(
    wide: Recorder, actor: Actor, talk: talks.Talk, sizes: list[int], means: list[str], reads: list[int]
) -> None:
    move(wide, actor, talk, sizes, means, reads)


@BOUNDED
@given(talk=talks.http2(), sizes=talks.CUTS, means=MEANS, reads=READS)
def test_http2_is_walked_as_the_model_does(
    wide: Recorder, actor: Actor, talk: talks.Talk, sizes: list[int], means: list[str], reads: list[int]
) -> None:
    move(wide, actor, talk, sizes, means, reads)
