# SPDX-License-Identifier: Apache-2.0
"""New processes are watched apart until somebody chooses them; not at all where no rule can choose their program."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.records import PROVISIONAL_LANE, OpenCause
from rover_plugin.capture.session import CaptureOptions, Statistic
from tests.support.capture import CallRecord, OpenRecord, Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Connects, says its pid, and writes a line for each line it reads; "fork" lets a child do the rest.
_TALKER = """
import os, socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(os.getpid(), flush=True)
for line in sys.stdin:
    if line == "fork\\n":
        if child := os.fork():
            os.waitpid(child, 0)
            os._exit(0)
        print(os.getpid(), flush=True)
    else:
        s.sendall(line.encode())
        print("done", flush=True)
"""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(CaptureOptions(shards=2, ring_bytes=1 << 20)) as running:
        yield running


class Talker:
    def __init__(self, port: int, python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            # Children of the capture's own process are its workers and never watched; grandchildren are anybody.
            ["/bin/sh", "-c", '"$@"; :', "sh", python, "-c", _TALKER, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = int(self.answer())

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def say(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def said(recorder: Recorder, pid: int) -> list[tuple[bytes, bool]]:
    """What a process wrote, and whether it came through the provisional ring."""
    return [
        (record.data, bool(record.lane & PROVISIONAL_LANE))
        for record in recorder.records
        if isinstance(record, CallRecord) and record.tgid == pid and record.data
    ]


def test_a_new_process_goes_apart_until_it_is_chosen(recorder: Recorder) -> None:
    recorder._keep = lambda _: True
    with socket.create_server(("127.0.0.1", 0)) as listener:
        talker = Talker(listener.getsockname()[1])
        talker.say("before")
        assert recorder.capture.watch(talker.pid)
        talker.say("after")
        child = int(talker.say("fork"))
        talker.say("child")
        recorder.until(lambda: bool(said(recorder, child)), "what the child wrote")
        talker.end()
    assert said(recorder, talker.pid) == [(b"before\n", True), (b"after\n", False)]
    # A child of a chosen process runs what was chosen.
    assert said(recorder, child) == [(b"child\n", False)]
    opens = [record for record in recorder.records if isinstance(record, OpenRecord) and record.tgid == talker.pid]
    # Announced again once it is chosen: the reader need not have kept the first.
    assert [(bool(record.lane & PROVISIONAL_LANE), record.cause) for record in opens] == [
        (True, OpenCause.CONNECT),
        (False, OpenCause.CONNECT),
    ]
    assert opens[0].connection == opens[1].connection
    assert recorder.capture.statistics()[Statistic.PROVISIONAL] >= 2


def test_one_that_is_let_go_is_silent_and_may_still_be_chosen(recorder: Recorder) -> None:
    recorder._keep = lambda _: True
    with socket.create_server(("127.0.0.1", 0)) as listener:
        talker = Talker(listener.getsockname()[1])
        recorder.capture.unwatch(talker.pid)
        talker.say("refused")
        assert recorder.capture.watch(talker.pid)
        talker.say("chosen")
        recorder.until(lambda: (b"chosen\n", False) in said(recorder, talker.pid), "what it wrote")
        talker.end()
    assert said(recorder, talker.pid) == [(b"chosen\n", False)]


def test_a_child_of_a_provisional_process_is_provisional(recorder: Recorder) -> None:
    recorder._keep = lambda _: True
    with socket.create_server(("127.0.0.1", 0)) as listener:
        talker = Talker(listener.getsockname()[1])
        child = int(talker.say("fork"))
        talker.say("child")
        recorder.until(lambda: bool(said(recorder, child)), "what the child wrote")
        talker.end()
    assert said(recorder, child) == [(b"child\n", True)]


@pytest.mark.parametrize(
    ("only", "never", "watched"),
    [
        (None, (), True),
        (None, ("python-of-this-test",), False),
        (("python-of-this-test",), (), True),
        (("nginx",), (), False),
        ((), (), False),
        (("python-of-this-test", "nginx"), ("python-of-this-test",), False),
        (tuple(f"n{number}" for number in range(2000)), (), True),  # too many to look them up
    ],
)
def test_programs_that_no_rule_can_choose_are_not_watched_from_their_exec_on(
    recorder: Recorder, tmp_path: Path, only: tuple[str, ...] | None, never: tuple[str, ...], watched: bool
) -> None:
    python = tmp_path / "python-of-this-test"
    shutil.copy(sys.executable, python)
    recorder.capture.expect_executables(None if only is None else frozenset(only), frozenset(never))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        talker = Talker(listener.getsockname()[1], str(python))
        assert (talker.pid in recorder.capture.watched()) is watched
        talker.end()


def test_a_flood_of_provisional_records_fills_their_own_ring_only(recorder: Recorder) -> None:
    share = recorder.capture.options.provisional_pages() * 4096
    assert share <= recorder.capture.options.ring_pages() * 4096
    with socket.create_server(("127.0.0.1", 0)) as listener:
        talker = Talker(listener.getsockname()[1])
        peer, _ = listener.accept()
        before = recorder.capture.statistics()
        pending = [reader.pending() for reader in recorder._readers]
        for number in range(40):
            talker.say(f"{number}" * 8000)
            peer.recv(1 << 20)
        now = recorder.capture.statistics()
        assert now[Statistic.PROVISIONAL_FULL] > before[Statistic.PROVISIONAL_FULL]
        assert now[Statistic.RING_FULL] == before[Statistic.RING_FULL]
        assert [reader.pending() for reader in recorder._readers] == pending
        assert sum(reader.pending() for reader in recorder._provisional) <= 2 * share
        talker.end()
        peer.close()
