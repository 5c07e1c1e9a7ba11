# SPDX-License-Identifier: Apache-2.0
"""How full the maps are, and what the programs cost, as telemetry asks for it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture import bpf
from rover_plugin.capture.probe_statistics import ProbeStatistics
from rover_plugin.capture.session import MAX_PROCESSES, Capture, CaptureOptions, Statistic
from tests.support.capture import needs_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, needs_capture]

# Process ids that nobody has: beyond the kernel's greatest (include/linux/threads.h, PID_MAX_LIMIT).
NOBODY = 1 << 23


@pytest.fixture(scope="module")
def capture() -> Iterator[Capture]:
    capture = Capture(CaptureOptions())
    yield capture
    capture.close()


@pytest.mark.parametrize("batch", [64, 4096])
def test_entries_are_counted_in_batches_of_any_size(
    capture: Capture, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf, "_BATCH_ENTRIES", batch)
    assert capture.map_fill()["processes"] == (0, MAX_PROCESSES)
    for number in (1, 63, 64, 65, 5000):
        for pid in range(NOBODY, NOBODY + number):
            assert capture.watch(pid)
        assert capture.map_fill()["processes"] == (number, MAX_PROCESSES)
    for pid in range(NOBODY, NOBODY + 5000):
        capture.unwatch(pid)


def test_a_full_table_refuses_and_says_so(capture: Capture) -> None:
    for pid in range(NOBODY, NOBODY + MAX_PROCESSES):
        assert capture.watch(pid)
    assert not capture.watch(NOBODY + MAX_PROCESSES)
    assert capture.map_fill()["processes"] == (MAX_PROCESSES, MAX_PROCESSES)
    for pid in range(NOBODY, NOBODY + MAX_PROCESSES):
        capture.unwatch(pid)


def test_runs_are_counted_only_while_somebody_wants_it(capture: Capture) -> None:
    capture.start()
    statistics = ProbeStatistics(capture.program_descriptors)
    try:
        statistics.want()
        statistics.want()
        os.getppid()
        runs, seconds = statistics.read()["on_sys_enter"]
        assert runs > 0
        assert 0 < seconds < 60
    finally:
        statistics.close()
        capture.stop()
    assert not statistics.enabled


def test_counting_ends_by_itself(capture: Capture) -> None:
    statistics = ProbeStatistics(capture.program_descriptors, lease_s=0.05)
    statistics.want()
    assert statistics.enabled
    statistics._end.join(10)
    assert not statistics.enabled


def test_sequences_tell_how_many_records_each_shard_was_made(capture: Capture) -> None:
    capture.start()
    capture.watch(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(4):
            with socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
                client.sendall(b"x")
                accepted.recv(1)
    capture.stop()
    made = capture.sequences()
    assert all(made.values())
    assert sum(made.values()) == capture.statistics()[Statistic.RECORDS]
