# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to where lines go: whole lines in order, each log counted once, as exported only what got there."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from rover_plugin.access_log.outputs import line_writer
from rover_plugin.access_log.outputs.line_writer import MOST_WAITING_BYTES, LineWriter
from rover_plugin.access_log.outputs.targets import StreamTarget
from rover_plugin.telemetry.counters import Counters

if TYPE_CHECKING:
    import pytest

    from rover_plugin.outlet import Outlet

FULL, BROKEN, STALLED, ABSENT = "full", "broken", "stalled", "absent"


class Moody:
    """A target and its outlet that do what the script says: take so many bytes, or fail. At its end they take all.

    Attributes:
        readers: what each reader got; the next comes after one has left.
    """

    lasting = True

    def __init__(self, script: list[int | str]) -> None:
        self._script = deque(script)
        self.readers = [b""]
        self.patience = 0

    def outlet(self) -> Outlet | None:
        if self._script and self._script[0] == ABSENT:
            self._script.popleft()
            return None
        return self

    def write(self, data: bytes | memoryview) -> int:
        mood = self._script.popleft() if self._script else len(data)
        if mood == FULL:
            raise OSError(errno.ENOSPC, "No space left on device")
        if mood == BROKEN:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        if not isinstance(mood, int):
            return 0
        self.readers[-1] += bytes(data[:mood])
        return min(mood, len(data))

    def wait(self, timeout_s: float) -> bool:
        self.patience += timeout_s > 0
        return True

    def broken(self) -> bool:
        self.readers.append(b"")
        return True

    def cut(self, written: int) -> None:
        self.readers[-1] = self.readers[-1][:-written]

    def close(self) -> None:
        pass


def sums(counters: Counters, name: str) -> int:
    return sum(
        value
        for (counter, labels), value in counters.snapshot().items()
        if counter == name and ("unit", "protocol") in labels
    )


MOODS = st.one_of(st.integers(1, 30), st.sampled_from([FULL, BROKEN, STALLED, ABSENT]))


@settings(max_examples=300, deadline=None)
@given(
    script=st.lists(MOODS, max_size=25),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=15),
    ticks=st.lists(st.booleans(), min_size=1, max_size=5),
)
def test_lines_arrive_whole_in_order_and_once_and_are_counted_as_what_they_became(
    script: list[int | str], sizes: list[int], ticks: list[bool]
) -> None:
    counters = Counters()
    target = Moody(script)
    writer = LineWriter("lines", target, counters)
    lines = [f"{number:03}".encode() + b"x" * size for number, size in enumerate(sizes)]
    with capture_logs():
        for number, line in enumerate(lines):
            writer.put(line, 2, 1)
            if ticks[number % len(ticks)]:
                writer.flush()
            held = writer.standing().held.protocol
            assert sums(counters, "logs_exported") + sums(counters, "logs_lost") + held == number + 1
        writer.close(0.0)
    got: list[bytes] = []
    for text in target.readers[:-1]:
        got += text.split(b"\n")[:-1]  # what a reader that left did not get whole is counted as lost
    assert target.readers[-1] == b"" or target.readers[-1].endswith(b"\n")
    got += target.readers[-1].split(b"\n")[:-1]
    assert [line for line in lines if line in got] == got
    assert sums(counters, "logs_exported") == len(got)
    assert sums(counters, "logs_lost") == len(lines) - len(got)
    assert writer.standing().held == (0, 0)


@settings(max_examples=100, deadline=None)
@given(script=st.lists(st.one_of(st.integers(1, 30), st.just(STALLED)), max_size=40), count=st.integers(1, 20))
def test_a_patient_writer_loses_nothing(script: list[int | str], count: int) -> None:
    counters = Counters()
    target = Moody(script)
    writer = LineWriter("lines", target, counters, patient=True)
    for number in range(count):
        writer.put(b"%03d" % number, 1, 1)
    writer.close(0.0)
    assert target.readers == [b"".join(b"%03d\n" % number for number in range(count))]
    assert sums(counters, "logs_exported") == count


def test_what_waits_is_bounded_in_bytes_and_what_finds_no_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "_STANDSTILL_S", 0.05)
    read_end, write_end = os.pipe()
    counters = Counters()
    with open(write_end, "w") as stream:  # noqa: PTH123 a descriptor
        writer = LineWriter("lines", StreamTarget(stream), counters)
        line = b"x" * 9_999
        with capture_logs() as logs:
            for _ in range(1500):
                writer.put(line, 1, 1)
            writer.flush()
        held = writer.standing().held.protocol
        assert held * 10_000 <= MOST_WAITING_BYTES
        assert sums(counters, "logs_lost") == 1500 - held
        assert writer.trouble() == "its reader has stopped reading"
        assert [line["event"] for line in logs] == ["output_stands_still"]
        began = time.monotonic()
        writer.close(30.0)
        assert time.monotonic() - began < 10  # the reader takes nothing: the deadline is not waited for
    os.close(read_end)
    assert sums(counters, "logs_exported") + sums(counters, "logs_lost") == 1500


def test_after_a_full_disk_the_line_that_was_cut_is_finished_first() -> None:
    counters = Counters()
    target = Moody([4, FULL])
    writer = LineWriter("lines", target, counters)
    writer.put(b"first line", 1, 1)
    writer.flush()
    assert (writer.trouble(), target.readers) == ("No space left on device", [b"firs"])
    writer.put(b"second line", 1, 1)
    writer.flush()
    assert (writer.trouble(), target.readers) == ("", [b"first line\nsecond line\n"])
