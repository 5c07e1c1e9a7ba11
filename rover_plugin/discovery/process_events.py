# SPDX-License-Identifier: Apache-2.0
"""Births, programs and deaths of processes as the kernel tells them (bpf/process_events.c)."""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rover_plugin.capture.bpf import Map
from rover_plugin.capture.loader import LoadedProgram, load
from rover_plugin.capture.ring import RingReader
from rover_plugin.discovery.model import ProcessKey
from rover_plugin.discovery.procfs import parse_cmdline
from rover_plugin.errors import CaptureError

if TYPE_CHECKING:
    from rover_plugin.cancellation import Cancellation

RING_PAGES = 128  # 512 KiB: about half a second of 1000 forks, execs and exits a second each
MAX_BATCH = 2048  # records of one `poll`
# struct process_event up to and without the file name; at an exec that and the program's strings follow.
HEAD = struct.Struct("<IIIIQQIHH16s")
FILENAME_SIZE = 256
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_FIRST = b"\0\0\0\0"
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


class Kind(IntEnum):
    """What happened; the numbers are the kernel side's."""

    FORK = 1
    EXEC = 2
    EXIT = 3


class ProcessEvent(NamedTuple):
    """One event, with the facts as they were at that moment.

    Attributes:
        parent: at a fork the process that forked, else the parent.
        filename: at an exec the path that was executed, for a script the script's.
        arguments: at an exec its first kilobyte of arguments; none if they could not be copied.
    """

    kind: int
    key: ProcessKey
    parent: int
    uid: int
    cgroup_id: int
    pid_namespace: int
    comm: str
    filename: str
    arguments: tuple[str, ...] = ()


def decode_event(record: bytes) -> ProcessEvent:
    """Reads one record of `struct process_event`."""
    kind, tgid, parent, uid, start_ns, cgroup_id, pid_namespace, size, count, comm = HEAD.unpack_from(record)
    # As nsec_to_clock_t() does for /proc/PID/stat.
    key = ProcessKey(tgid, start_ns // _NS_PER_TICK)
    filename = os.fsdecode(_c_bytes(record[HEAD.size : HEAD.size + FILENAME_SIZE]))
    start = HEAD.size + FILENAME_SIZE
    strings = record[start : start + size].split(b"\0")
    arguments = parse_cmdline(b"\0".join(strings[:count]))
    return ProcessEvent(kind, key, parent, uid, cgroup_id, pid_namespace, _c_string(comm), filename, arguments)


def _c_string(raw: bytes) -> str:
    return _c_bytes(raw).decode(errors="replace")


def _c_bytes(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


class ProcessEvents:
    """The stream of events, from the moment it is made until `close`.

    Raises:
        CaptureError: BPF cannot be used here (`PrivilegeError` for want of rights).
        CancelledError: the build was cancelled.
    """

    def __init__(self, ring_pages: int = RING_PAGES, cancellation: Cancellation | None = None) -> None:
        _check_pid_namespace()
        defines = {"RING_PAGES": ring_pages}
        self._program: LoadedProgram = load("process_events.c", defines, cancellation=cancellation)
        self._ring = RingReader(self._program.maps["events"])
        self._lost = Map(self._program.maps["lost"])
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ring.also_wait_for(self._wake)

    def poll(self, timeout_s: float) -> list[ProcessEvent]:
        """Waits for events and returns those there are; none after `timeout_s` seconds or a `wake`."""
        if not self._ring.pending():
            self._ring.wait(timeout_s)
        records: list[bytes] = []
        self._ring.read(lambda data, start, end: records.append(bytes(data[start:end])), MAX_BATCH)
        return [decode_event(record) for record in records]

    def lost(self) -> int:
        """How many events found the ring full, since the beginning."""
        return int.from_bytes(self._lost.get(_FIRST) or b"", "little")

    def wake(self) -> None:
        """Makes `poll` return, from another thread; it does not wait again after this."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Detaches from the kernel; nobody may be in `poll`."""
        self._ring.close()
        self._program.close()
        os.close(self._wake)


def _check_pid_namespace() -> None:
    """Events name processes as the initial pid namespace does, so /proc must be the same."""
    if Path("/proc/self/ns/pid").stat().st_ino != _INITIAL_PID_NAMESPACE:
        message = "this process is in a pid namespace of its own"
        raise CaptureError(message, hint="run it with the host's (hostPID)")
