# SPDX-License-Identifier: Apache-2.0
"""The forms that kernels before 5.15 and 6.2 need, loaded and seen to work on this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture import session
from rover_plugin.capture.records import OpenCause
from rover_plugin.capture.session import Capture, CaptureOptions
from rover_plugin.errors import CaptureError
from tests.support.capture import Recorder, needs_capture
from tests.support.mover import pattern

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rover_plugin.capture.loader import LoadedProgram
    from tests.support.mover import Mover

pytestmark = [pytest.mark.root, needs_capture]

SIZE = 10_000


@pytest.fixture(scope="module")
def plain() -> Iterator[Recorder]:
    """A capture that reads the kernel by helper calls only."""
    with Recorder(CaptureOptions(plain=True)) as recorder:
        yield recorder


@pytest.mark.parametrize(
    ("sender", "receiver"), [("write", "read"), ("writev", "readv"), ("sendmsg", "recvmsg"), ("sendmmsg", "recvmmsg")]
)
def test_every_byte_is_seen_by_helper_calls_alone(plain: Recorder, mover: Mover, sender: str, receiver: str) -> None:
    plain.listen_to(mover.pid)
    truth = mover.move(4, sender, receiver, "holes", SIZE)
    client = plain.until_closed(truth.client_port, truth.server_port)
    server = plain.until_closed(truth.server_port, truth.client_port)
    plain.capture.unwatch(mover.pid)
    assert (client.opened.cause, server.opened.cause) == (OpenCause.CONNECT, OpenCause.ACCEPT)
    for calls, side in ((client.moved(1), "s"), (server.moved(0), "r")):
        assert [call.size for call in calls] == [call.size for call in truth.calls[side]]
        assert b"".join(call.data for call in calls) == pattern(SIZE)
    assert client.closed.written - client.opened.written in {SIZE, SIZE - (1 << 32)}


def test_a_kernel_that_refuses_the_quick_form_gets_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = session.load, []

    def load(name: str, defines: Mapping[str, str | int], **options: bool) -> LoadedProgram:
        asked.append(defines["PLAIN"])
        if not defines["PLAIN"]:
            refused = "the kernel refuses the BPF program on_sys_exit"
            raise CaptureError(refused)
        return real(name, defines, **options)

    monkeypatch.setattr(session, "load", load)
    capture = Capture(CaptureOptions())
    assert asked == [0, 1]
    assert "on_sys_exit" in capture.program_descriptors
    capture.close()


def test_a_kernel_that_refuses_to_walk_does_without(monkeypatch: pytest.MonkeyPatch, mover: Mover) -> None:
    real, asked = session.load, []

    def load(name: str, defines: Mapping[str, str | int], **options: bool) -> LoadedProgram:
        asked.append((defines["PLAIN"], defines["WALK"]))
        if defines["WALK"]:
            refused = "the kernel refuses the BPF program tail_chunks"
            raise CaptureError(refused)
        return real(name, defines, **options)

    monkeypatch.setattr(session, "load", load)
    with Recorder(CaptureOptions()) as recorder:
        assert asked == [(0, 1), (0, 0)]
        assert "tail_chunks" in recorder.capture.walk_reason
        recorder.listen_to(mover.pid)
        truth = mover.move(4, "sendmmsg", "recvmmsg", "one", SIZE)
        seen = recorder.until_closed(truth.client_port, truth.server_port)
        assert b"".join(call.data for call in seen.moved(1)) == pattern(SIZE)
