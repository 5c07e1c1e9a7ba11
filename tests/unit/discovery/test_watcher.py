# SPDX-License-Identifier: Apache-2.0
"""The observing thread: without BPF it scans; what should not happen stops the host."""

from __future__ import annotations

import queue
import subprocess
from typing import TYPE_CHECKING

from structlog.testing import capture_logs

from rover_plugin.discovery import watcher as watcher_module
from rover_plugin.discovery.local_finder import LocalFinder
from rover_plugin.discovery.observer import ProcessObserver
from rover_plugin.discovery.process_events import (
    CGROUP_HEAD,
    FILENAME_SIZE,
    HEAD,
    CgroupEvent,
    Kind,
    ProcessEvents,
    decode,
    decode_event,
)
from rover_plugin.discovery.table import ProcessTable
from rover_plugin.discovery.watcher import HostWatcher
from rover_plugin.errors import CaptureError
from rover_plugin.telemetry.counters import Counters

if TYPE_CHECKING:
    import pytest

PATIENCE_S = 20


def no_bpf() -> ProcessEvents:
    message = "not allowed to load BPF"
    raise CaptureError(message, hint="run as root")


def test_without_events_new_processes_are_found_by_scanning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "SCAN_PERIOD_S", 0.01)
    table, failures = ProcessTable(), queue.Queue[BaseException]()
    observer = ProcessObserver(table, [LocalFinder("OS_LINUX", "h")], own_pid=-1)
    with capture_logs() as logs:
        watcher = HostWatcher(observer, Counters(), failures.put, no_bpf)
        watcher.start()
        with subprocess.Popen(["sleep", "60"]) as child:
            while not any(process.key.pid == child.pid for process in table.snapshot()[1]):
                table.wait(table.snapshot()[0], PATIENCE_S)
            child.kill()
        watcher.stop()
    warnings = [entry for entry in logs if entry["event"] == "process_events_unavailable"]
    assert [(entry["log_level"], entry["hint"]) for entry in warnings] == [("warning", "run as root")]
    assert failures.empty()


def test_an_unexpected_error_is_handed_to_the_host() -> None:
    def broken() -> ProcessEvents:
        message = "a defect"
        raise RuntimeError(message)

    failures = queue.Queue[BaseException]()
    watcher = HostWatcher(ProcessObserver(ProcessTable(), []), Counters(), failures.put, broken)
    watcher.start()
    assert str(failures.get(timeout=PATIENCE_S)) == "a defect"
    watcher.stop()


def test_a_watcher_that_never_started_can_be_stopped() -> None:
    HostWatcher(ProcessObserver(ProcessTable(), []), Counters(), lambda _error: None, no_bpf).stop()


def test_a_record_of_the_kernel_is_decoded_with_its_start_time_in_ticks() -> None:
    comm = b"nginx\0stale bytes"[:16]
    head = HEAD.pack(Kind.EXEC, 42, 7, 1000, 123_456_789_012, 99, 77, 8, 4026531836, 9, 2, 0, comm)
    filename = b"/usr/sbin/ng\xffnx\0stale".ljust(FILENAME_SIZE, b"\0")
    event = decode_event(head + filename + b"nginx\0-t\0stale bytes")
    assert (event.kind, event.key.pid, event.key.start_time) == (Kind.EXEC, 42, 12345)
    assert (event.parent, event.uid, event.cgroup_id, event.pid_namespace) == (7, 1000, 99, 4026531836)
    assert (event.cgroup_v1_id, event.hierarchy, event.port) == (77, 8, 0)
    assert (event.comm, event.filename) == ("nginx", "/usr/sbin/ng\udcffnx")
    assert event.arguments == ("nginx", "-t")
    assert (decode_event(head).filename, decode_event(head).arguments) == ("", ())


def test_a_record_about_a_cgroup_is_decoded_to_the_end_of_its_path() -> None:
    record = CGROUP_HEAD.pack(Kind.CGROUP_MADE, 8, 4711) + b"/docker/a\xffb\0stale bytes"
    assert decode(record) == CgroupEvent(Kind.CGROUP_MADE, 8, 4711, "/docker/a\ufffdb")
