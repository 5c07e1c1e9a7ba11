# SPDX-License-Identifier: Apache-2.0
"""Births, programs, listeners and deaths of processes, and cgroups made and removed (bpf/process_events.c)."""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from rover_plugin.capture.bpf import Map
from rover_plugin.capture.loader import LoadedProgram, load
from rover_plugin.capture.plan import available_tracepoints
from rover_plugin.capture.ring import RingReader
from rover_plugin.discovery.model import ProcessKey
from rover_plugin.discovery.procfs import parse_cmdline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.cancellation import Cancellation
    from rover_plugin.discovery.cgroup_tree import Hierarchy

RING_PAGES = 128  # 512 KiB: about half a second of 1000 forks, execs and exits a second each
MAX_BATCH = 2048  # records of one `poll`
# struct process_event up to and without the file name; at an exec that and the program's strings follow.
HEAD = struct.Struct("<IIIIQQQIIHHH16s")
FILENAME_SIZE = 256
CGROUP_HEAD = struct.Struct("<IIQ")  # struct cgroup_event up to the path
_KIND = struct.Struct("<I")
_OPTIONAL = ("cgroup_mkdir", "cgroup_rmdir")  # without them, paths are read from /proc, while the process is there
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_FIRST = b"\0\0\0\0"


class Kind(IntEnum):
    """What happened; the numbers are the kernel side's."""

    FORK = 1
    EXEC = 2
    EXIT = 3
    LISTEN = 4
    CGROUP_MADE = 5
    CGROUP_REMOVED = 6


class ProcessEvent(NamedTuple):
    """One event, with the facts as they were at that moment.

    Attributes:
        parent: at a fork the process that forked, else the parent.
        cgroup_id: in the unified hierarchy.
        filename: at an exec the path that was executed, for a script the script's.
        arguments: at an exec its first kilobyte of arguments; none if they could not be copied.
        port: the TCP port listen(2) is for, 0 where it is still to choose one.
        cgroup_v1_id: in the hierarchy of version 1 where it is deepest, 0 without one.
        hierarchy: the number of that hierarchy.
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
    port: int = 0
    cgroup_v1_id: int = 0
    hierarchy: int = 0


class CgroupEvent(NamedTuple):
    """A cgroup was made or removed.

    Attributes:
        hierarchy: its number in /proc/PID/cgroup.
        path: from the root of the hierarchy.
    """

    kind: int
    hierarchy: int
    cgroup_id: int
    path: str


def decode(record: bytes) -> ProcessEvent | CgroupEvent:
    """Reads one record of the ring."""
    (kind,) = _KIND.unpack_from(record)
    if kind not in {Kind.CGROUP_MADE, Kind.CGROUP_REMOVED}:
        return decode_event(record)
    _, hierarchy, cgroup_id = CGROUP_HEAD.unpack_from(record)
    return CgroupEvent(kind, hierarchy, cgroup_id, _c_string(record[CGROUP_HEAD.size :]))


def decode_event(record: bytes) -> ProcessEvent:
    """Reads one record of `struct process_event`."""
    (kind, tgid, parent, uid, start_ns, cgroup, cgroup_v1, hierarchy, namespace, size, count, port, comm) = (
        HEAD.unpack_from(record)
    )
    # As nsec_to_clock_t() does for /proc/PID/stat.
    key = ProcessKey(tgid, start_ns // _NS_PER_TICK)
    filename = os.fsdecode(_c_bytes(record[HEAD.size : HEAD.size + FILENAME_SIZE]))
    start = HEAD.size + FILENAME_SIZE
    strings = record[start : start + size].split(b"\0")
    arguments = parse_cmdline(b"\0".join(strings[:count]))
    return ProcessEvent(
        kind, key, parent, uid, cgroup, namespace, _c_string(comm), filename, arguments, port, cgroup_v1, hierarchy
    )


def _c_string(raw: bytes) -> str:
    return _c_bytes(raw).decode(errors="replace")


def _c_bytes(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


class ProcessEvents:
    """The stream of events, from the moment it is made until `close`.

    Args:
        trees: hierarchies of cgroups whose ids events are to carry.
        listeners: whether to report listen(2). It costs a program at every change of any TCP socket's state.

    Raises:
        CaptureError: BPF cannot be used here (`PrivilegeError` for want of rights).
        CancelledError: the build was cancelled.
    """

    def __init__(
        self,
        ring_pages: int = RING_PAGES,
        cancellation: Cancellation | None = None,
        *,
        trees: Sequence[Hierarchy] = (),
        listeners: bool = False,
    ) -> None:
        defines: dict[str, str | int] = {"RING_PAGES": ring_pages}
        controllers = ",".join(tree.enumerator for tree in trees if tree.controller)
        if controllers:
            defines["V1_CONTROLLERS"] = controllers
        without = {name for name in _OPTIONAL if name not in (available_tracepoints() or _OPTIONAL)}
        if listeners:
            defines["WATCH_LISTENERS"] = 1
        else:
            without.add("inet_sock_set_state")
        self._program: LoadedProgram = load("process_events.c", defines, without=without, cancellation=cancellation)
        self._ring = RingReader(self._program.maps["events"])
        self._lost = Map(self._program.maps["lost"])
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ring.also_wait_for(self._wake)

    def poll(self, timeout_s: float) -> list[ProcessEvent | CgroupEvent]:
        """Waits for events and returns those there are; none after `timeout_s` seconds or a `wake`."""
        if not self._ring.pending():
            self._ring.wait(timeout_s)
        records: list[bytes] = []
        self._ring.read(lambda data, start, end: records.append(bytes(data[start:end])), MAX_BATCH)
        return [decode(record) for record in records]

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
