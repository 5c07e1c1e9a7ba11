# SPDX-License-Identifier: Apache-2.0
"""Every way bytes move: sizes, order, positions, bytes and times of the records against what the caller saw."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.records import CallClass, OpenCause
from tests.support.capture import needs_capture
from tests.support.mover import pattern

if TYPE_CHECKING:
    from tests.support.capture import CallRecord, Recorder, Seen
    from tests.support.mover import Moved, Mover, Truth

pytestmark = [pytest.mark.root, needs_capture]

CAPTURE_LIMIT = 16384
MASK = (1 << 32) - 1
PATTERN = pattern(1 << 20)
SIZES = [1, 97, 4096, 70_000, 1 << 20]
SHAPES = ["one", "tiny", "holes", "huge_first", "many"]

FLAT = {
    ("write", "read"): (CallClass.WRITE, CallClass.READ),
    ("send", "recv"): (CallClass.SENDTO, CallClass.RECVFROM),
    ("send_more", "recv_all"): (CallClass.SENDTO, CallClass.RECVFROM),
    ("send", "peek"): (CallClass.SENDTO, CallClass.RECVFROM),
    ("write", "recv_trunc"): (CallClass.WRITE, CallClass.RECVFROM),
    ("sendfile", "read"): (CallClass.SENDFILE, CallClass.READ),
    ("splice_out", "splice_in"): (CallClass.SPLICE, CallClass.SPLICE),
    ("tee_out", "read"): (CallClass.SPLICE, CallClass.READ),  # vmsplice and tee fill the pipe it comes from
}
VECTORS = {
    ("writev", "readv"): (CallClass.WRITEV, CallClass.READV),
    ("pwritev2", "preadv2"): (CallClass.PWRITEV2, CallClass.PREADV2),
    ("sendmsg", "recvmsg"): (CallClass.SENDMSG, CallClass.RECVMSG),
    ("sendmsg", "recvmsg_trunc"): (CallClass.SENDMSG, CallClass.RECVMSG),
    ("sendmmsg", "recvmmsg"): (CallClass.SENDMMSG, CallClass.RECVMMSG),
}


def both_ends(recorder: Recorder, mover: Mover, *scenario: object, blocking: bool) -> tuple[Truth, Seen, Seen]:
    recorder.listen_to(mover.pid)
    truth = mover.move(*scenario, blocking=blocking)  # type: ignore[arg-type]
    if truth.failed:
        pytest.skip(f"this kernel cannot: {truth.failed}")
    client = recorder.until_closed(truth.client_port, truth.server_port)
    return truth, client, recorder.until_closed(truth.server_port, truth.client_port)


def check_calls(records: list[CallRecord], told: list[Moved], start: int, kind: CallClass) -> None:
    """Records equal what the caller saw, one for one."""
    assert [record.size for record in records] == [call.size for call in told]
    at = 0
    for record, call in zip(records, told, strict=True):
        assert record.call is kind
        assert record.position == (start + at) & MASK
        assert record.offset == 0
        assert record.captured == min(call.visible, CAPTURE_LIMIT)
        assert record.data == PATTERN[at : at + record.captured]
        assert call.enter_ns <= record.enter_ns <= record.exit_ns <= call.exit_ns
        at += record.size
    assert all(first.exit_ns <= second.exit_ns for first, second in pairwise(records))


def check(
    recorder: Recorder, mover: Mover, kinds: tuple[CallClass, CallClass], *scenario: object, blocking: bool
) -> None:
    truth, client, server = both_ends(recorder, mover, *scenario, blocking=blocking)
    size = scenario[-1]
    assert (client.opened.cause, server.opened.cause) == (OpenCause.CONNECT, OpenCause.ACCEPT)
    check_calls(client.moved(1), truth.calls["s"], client.opened.written, kinds[0])
    check_calls(server.moved(0), truth.calls["r"], server.opened.read, kinds[1])
    assert client.moved(0) == server.moved(1) == []
    assert (client.closed.written - client.opened.written) & MASK == size
    assert (server.closed.read - server.opened.read) & MASK == size


def unseen(records: list[CallRecord], start: int, end: int) -> int:
    """Bytes between `start` and `end` that are in no record: what the positions leave out."""
    at, total = start, 0
    for record in records:
        gap = (record.position - at) & MASK
        offset = (record.position - start) & MASK
        assert record.data == PATTERN[offset : offset + record.captured]
        total += gap
        at = record.position + record.size
    return total + (end - at & MASK)


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non_blocking"])
@pytest.mark.parametrize("shape", ["one", "tiny", "holes"])
@pytest.mark.parametrize(("sender", "receiver"), [("uring_mixed", "read"), ("sendmmsg_many", "recvmmsg_many")])
def test_bytes_without_a_record_are_a_gap_of_their_size(
    recorder: Recorder, mover: Mover, sender: str, receiver: str, shape: str, blocking: bool, family: int
) -> None:
    """By io_uring, or in a message beyond those that get a record; the bytes after them are where they belong."""
    truth, client, server = both_ends(recorder, mover, family, sender, receiver, shape, 70_000, blocking=blocking)
    assert 0 < truth.unseen["s"] < 70_000
    assert unseen(client.moved(1), client.opened.written, client.closed.written) == truth.unseen["s"]
    assert unseen(server.moved(0), server.opened.read, server.closed.read) == truth.unseen["r"]
    assert [call.size for call in client.moved(1)] == [call.size for call in truth.calls["s"]]
    assert [call.size for call in server.moved(0)] == [call.size for call in truth.calls["r"]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non_blocking"])
@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("calls", FLAT, ids="-".join)
def test_calls_of_one_buffer(
    recorder: Recorder, mover: Mover, calls: tuple[str, str], family: int, blocking: bool, size: int
) -> None:
    check(recorder, mover, FLAT[calls], family, *calls, "one", size, blocking=blocking)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non_blocking"])
@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("calls", VECTORS, ids="-".join)
def test_calls_of_many_buffers(
    recorder: Recorder, mover: Mover, calls: tuple[str, str], family: int, blocking: bool, shape: str, size: int
) -> None:
    check(recorder, mover, VECTORS[calls], family, *calls, shape, size, blocking=blocking)
