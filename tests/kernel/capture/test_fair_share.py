# SPDX-License-Identifier: Apache-2.0
"""Who floods a ring that nobody reads loses, by connection and by process; others find room in it to the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.session import CaptureOptions, Statistic
from tests.support.actor import Actor
from tests.support.capture import CallRecord, CloseRecord, OpenRecord, Recorder, needs_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, needs_capture]

RING = 1 << 20
# Each is a record of about 600 bytes when written, and one when read.
FLOOD = 4000
# Fewer than a ring has room for, by far.
QUIET = 20

# `pairs` holds both ends of connections of the process with itself, `speak` lets one of them carry `count` messages.
_TALK = """
pairs = []
def connect(count):
    server = socket.create_server(("127.0.0.1", 0), backlog=512)
    for _ in range(count):
        one = socket.create_connection(server.getsockname())
        pairs.append((one, server.accept()[0]))
    server.close()
def speak(pair, count, word):
    for number in range(count):
        pairs[pair][0].send(b"%s %06d" % (word, number) + b"." * 500)
        pairs[pair][1].recv(1000)
"""


@pytest.fixture(scope="module", params=[False, True], ids=["typed", "plain"])
def running(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    with Recorder(CaptureOptions(shards=1, ring_bytes=RING, plain=request.param)) as recorder:
        yield recorder


@pytest.fixture
def recorder(running: Recorder) -> Recorder:
    """Nothing read yet."""
    running.listen_to()
    return running


def talker(recorder: Recorder, connections: int = 1) -> Actor:
    actor = Actor()
    assert recorder.capture.watch(actor.pid)
    actor.do(_TALK)
    actor.do(f"connect({connections})")
    return actor


def heard(recorder: Recorder, word: str) -> int:
    """How many messages of this word were recorded as written, and as read: the lesser."""
    found = [record for record in recorder.records if isinstance(record, CallRecord)]
    start = word.encode()
    return min(sum(call.direction == end and call.data.startswith(start) for call in found) for end in (0, 1))


def refused(recorder: Recorder) -> tuple[int, int]:
    counts = recorder.capture.statistics()
    return counts[Statistic.SHARE], counts[Statistic.RING_FULL]


def test_nobody_is_refused_before_a_ring_is_a_quarter_full(recorder: Recorder) -> None:
    before = refused(recorder)
    with talker(recorder) as actor:
        actor.do("speak(0, 150, b'few')")
        recorder.read()
    assert heard(recorder, "few") == 150
    assert refused(recorder) == before


def test_a_flood_leaves_room_for_other_processes_and_for_its_own_process_s_other_connections(
    recorder: Recorder,
) -> None:
    before = refused(recorder)
    with talker(recorder, 2) as loud, talker(recorder) as quiet:
        loud.do(f"speak(0, {FLOOD}, b'flood')")
        loud.do(f"speak(1, {QUIET}, b'beside')")
        quiet.do(f"speak(0, {QUIET}, b'quiet')")
        waiting = recorder._readers[0].pending()
        recorder.read()
        # Its share is no ban.
        loud.do("speak(0, 10, b'again')")
        recorder.read()
    assert RING / 3 < waiting < RING
    share, full = (now - then for now, then in zip(refused(recorder), before, strict=True))
    assert (share > FLOOD, full) == (True, 0)
    assert 100 < heard(recorder, "flood") < FLOOD / 2
    assert heard(recorder, "beside") == QUIET
    assert heard(recorder, "quiet") == QUIET
    assert heard(recorder, "again") == 10


def test_many_connections_of_a_process_have_one_share(recorder: Recorder) -> None:
    before = refused(recorder)
    with talker(recorder, 100) as loud, talker(recorder) as quiet:
        loud.do(f"for pair in range(100): speak(pair, {FLOOD // 100}, b'flood')")
        quiet.do(f"speak(0, {QUIET}, b'quiet')")
        recorder.read()
    assert refused(recorder)[0] > before[0]
    assert refused(recorder)[1] == before[1]
    assert heard(recorder, "quiet") == QUIET


def test_several_processes_that_flood_leave_room_for_one_that_does_not(recorder: Recorder) -> None:
    before = refused(recorder)
    loud = [talker(recorder, 5) for _ in range(3)]
    with talker(recorder) as quiet:
        for actor in loud:
            actor.do(f"for pair in range(5): speak(pair, {FLOOD // 5}, b'flood')")
        quiet.do(f"speak(0, {QUIET}, b'quiet')")
        recorder.read()
    for actor in loud:
        actor.__exit__()
    assert refused(recorder)[1] == before[1]
    assert heard(recorder, "quiet") == QUIET


def test_beginnings_and_ends_of_connections_outlast_a_flood_on_them(recorder: Recorder) -> None:
    with talker(recorder) as loud:
        loud.do(f"speak(0, {FLOOD}, b'flood')")
        loud.do("connect(10)")
        loud.do("for pair in pairs: pair[0].close(); pair[1].close()")
        recorder.read()
    opened, closed = (
        {record.connection for record in recorder.records if isinstance(record, kind) and record.tgid == loud.pid}
        for kind in (OpenRecord, CloseRecord)
    )
    assert len(opened) == len(closed) == 22
