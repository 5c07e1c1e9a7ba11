# SPDX-License-Identifier: Apache-2.0
"""The kernel side follows framing: what it copies of real sockets' calls is, piece by piece, what its model says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.model import Side
from rover_plugin.access_log.parts import unpack
from rover_plugin.capture.records import HOW_CHUNKS
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
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def sendmmsg(out, parts):
    # struct mmsghdr: name, its length, vector, segments, control, its length, flags; then the length sent
    vectors = [ctypes.create_string_buffer(part, len(part)) for part in parts]
    segments = [ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(v), len(v))) for v in vectors]
    headers = b"".join(struct.pack("QIxxxxQQQQixxxxIxxxx", 0, 0, ctypes.addressof(s), 1, 0, 0, 0, 0) for s in segments)
    table = ctypes.create_string_buffer(headers, len(headers))
    done = libc.sendmmsg(out.fileno(), table, len(parts), 0)
    return sum(struct.unpack_from("I", table.raw, 64 * i + 56)[0] for i in range(done))
def move(out, into, data, sizes, means, reads):
    moved = read = turn = 0
    while read < len(data):
        if moved < len(data) and moved - read < 300000:
            how = means[turn % len(means)]
            part = memoryview(data)[moved : moved + min(sizes[turn % len(sizes)], 250000)]
            if how == "sendfile":
                place = memory.seek(0, os.SEEK_END)  # what was sent before may still be sent from there
                memory.write(part)
                memory.flush()
                moved += os.sendfile(out.fileno(), memory.fileno(), place, len(part))
            elif how == "writev":
                pieces = [part[at : at + 4 + len(part) // 7] for at in range(0, len(part), 4 + len(part) // 7)]
                moved += os.writev(out.fileno(), pieces)
            elif how == "sendmmsg":
                step = 1 + len(part) // 5
                moved += sendmmsg(out, [bytes(part[at : at + step]) for at in range(0, len(part), step)])
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
            read += into.recvmsg_into([bytearray(5), bytearray(room // 3), bytearray(room)])[0]
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
        got = (record.flags, record.offset, len(record.data), record.data)
        wanted = (expected.flags, expected.offset, len(expected.captured), expected.captured)
        assert got == wanted, (record.direction, at, record.size)
    assert sum(call.size for call in seen.calls) == sum(map(len, streams))


MEANS = st.lists(st.sampled_from(("send", "send", "writev", "sendmsg", "sendmmsg")), min_size=1, max_size=4)
READS = st.lists(st.one_of(st.integers(1, 1100), st.integers(1000, 300_000)), min_size=1, max_size=4)
# Each example takes a connection of its own: making a failing one smaller would take minutes.
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


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


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("means", ["send", "writev", "sendmsg", "sendmmsg"])
@pytest.mark.parametrize(
    ("chunk", "size"), [(3, 700), (3, 5000), (300, 700), (300, 5000), (300, 40_000), (9000, 700), (9000, 40_000)]
)
def test_chunks_in_calls_of_every_size(wide: Recorder, actor: Actor, chunk: int, size: int, means: str) -> None:
    content = talks.body(min(80_000, chunk * 1500))
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for part in (content[at : at + chunk] for at in range(0, len(content), chunk))
    )
    talk = talks.Talk([(Side.REQUEST, b"GET / HTTP/1.1\r\n\r\n"), (Side.RESPONSE, CHUNKED + chunks + b"0\r\n\r\n")])
    move(wide, actor, talk, [size], [means], [size + 1])


@pytest.mark.parametrize("means", ["send", "writev"])
@pytest.mark.parametrize("head", [4000, 4090, 4095, 4096, 4097, 4102, 5000, 20_000, 60_000])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_content_is_not_copied_behind_a_head_of_any_size(
    wide: Recorder, actor: Actor, head: int, framing: str, means: str
) -> None:
    field, content = {
        "length": (b"Content-Length: 100000\r\n\r\n", bytes(100_000)),
        "chunks": (b"Transfer-Encoding: chunked\r\n\r\n", (b"c350\r\n%s\r\n" % bytes(50_000)) * 2 + b"0\r\n\r\n"),
    }[framing]
    start = b"HTTP/1.1 200 OK\r\n"
    filler = head - len(start) - len(field)
    lines = b"".join(b"X-%05d: %s\r\n" % (at, b"v" * 88) for at in range(0, filler - 120, 99))
    start += lines + b"X: " + b"w" * (filler - len(lines) - 5) + b"\r\n" + field
    assert len(start) == head
    talk = talks.Talk([(Side.REQUEST, b"GET / HTTP/1.1\r\n\r\n"), (Side.RESPONSE, start + content)])
    ports = move(wide, actor, talk, [250_000], [means], [len(start + content) + 1])
    written = [call for call in wide.until_closed(*ports[::-1]).calls if call.size > 1000]
    assert [len(call.data) < head + 64 for call in written] == [True]


@pytest.mark.parametrize("means", ["send", "writev"])
def test_of_more_chunks_than_one_call_is_walked_for_as_many_bytes_as_the_limit_are_copied(
    wide: Recorder, actor: Actor, means: str
) -> None:
    """The head in front counts towards the limit; the record is there."""
    wide.listen_to(actor.pid)
    talk = CHUNKED + b"a\r\n0123456789\r\n" * 8000 + b"0\r\n\r\n"
    actor.do(
        "server = socket.create_server(('127.0.0.1', 0)); s = socket.create_connection(server.getsockname());"
        " peer, _ = server.accept(); server.close();"
        " s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)"
    )
    ports = actor.do("_ = s.getsockname()[1], peer.getsockname()[1]")
    actor.do(f"move(s, peer, {talk!r}, [{len(talk)}], [{means!r}], [301])")
    actor.do("s.close(); peer.close()")
    seen = wide.until_closed(*ports)
    assert [call.size for call in seen.calls] == [len(talk)]
    (call,) = seen.calls
    data, unseen, parts = unpack(call.flags, call.size, call.offset, call.data)
    assert call.flags == HOW_CHUNKS
    assert (data, unseen) == (CHUNKED, 0)
    walked, copied = parts
    assert walked.unseen > 0
    assert walked.content == walked.unseen // 15 * 10 + min(max(walked.unseen % 15 - 3, 0), 10)
    at = len(CHUNKED) + walked.unseen
    assert copied.data == talk[at : at + LIMIT - len(CHUNKED)]
    assert copied.unseen == len(talk) - at - len(copied.data)


@pytest.mark.parametrize("means", ["writev", "sendmmsg"])
def test_bytes_nobody_can_read_move_the_walk_on(wide: Recorder, actor: Actor, means: str) -> None:
    """Content by sendfile between chunk-size lines, as servers do it; then framing itself by sendfile."""
    chunk = b"2000\r\n" + bytes(0x2000) + b"\r\n"
    answer = CHUNKED + chunk * 4 + b"0\r\n\r\n"
    sizes = [len(CHUNKED) + 6, 0x2000, 8, 0x2000, 8, 0x2000, 8, 0x2000, 7, 1]
    talk = talks.Talk([(Side.REQUEST, b"GET / HTTP/1.1\r\n\r\n"), (Side.RESPONSE, answer), (Side.RESPONSE, answer)])
    move(wide, actor, talk, sizes, [means, "sendfile"], [70_000, 33])
