# SPDX-License-Identifier: Apache-2.0
"""What /proc says about a process. Any read may find the process gone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rover_plugin.discovery.cgroups import Cgroup, parse_cgroup, unified_id
from rover_plugin.discovery.model import ProcessKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rover_plugin.discovery.container_names import Container

PROC = "/proc"
MAX_CMDLINE_BYTES = 32768  # Java's main class stands behind its class path
_PF_KTHREAD = 0x00200000  # include/linux/sched.h
NO_CGROUP = Cgroup()
_GONE = " (deleted)"


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What is known of a process, before anybody gives it a name.

    Attributes:
        key: pid as the agent's pid namespace counts.
        parent: pid of the parent; for a process first seen at its fork, of the process that forked.
        comm: the kernel's short name, at most 15 bytes.
        exe: path of the executable, empty if it cannot be read.
        cmdline: arguments, at most `MAX_CMDLINE_BYTES` together.
        uid: effective user id.
        container: the container it is in, filled in by who looks for containers.
        ports: TCP ports it listens on, filled in only when rules ask for them.
    """

    key: ProcessKey
    parent: int = 0
    comm: str = ""
    exe: str = ""
    cmdline: tuple[str, ...] = ()
    uid: int = 0
    cgroup: Cgroup = NO_CGROUP
    cgroup_id: int = 0
    pid_namespace: int = 0
    ports: frozenset[int] = frozenset()
    container: Container | None = None


def pids(proc: str = PROC) -> Iterator[int]:
    """All processes there are now, as their pids."""
    return (int(name) for name in os.listdir(proc) if name.isdigit())  # noqa: PTH208  Path objects of no use


def read_process(pid: int, proc: str = PROC) -> ProcessFacts | None:
    """Reads one process; `None` for one that is gone, a zombie, or a thread of the kernel.

    Everything is read through one descriptor of its directory, so the facts are of one process even if its pid is
    reused meanwhile.
    """
    try:
        directory = os.open(f"{proc}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(pid, directory)
    except OSError:
        return None
    finally:
        os.close(directory)


def _read(pid: int, directory: int) -> ProcessFacts | None:
    stat = _contents(directory, "stat")
    # The name is in parentheses and may hold anything, parentheses too (proc(5), /proc/PID/stat).
    opening, closing = stat.index(b"("), stat.rindex(b")")
    fields = stat[closing + 2 :].split()
    if int(fields[6]) & _PF_KTHREAD:
        return None
    thread = _living_thread(directory, pid) if fields[0] in b"ZX" else ""
    if thread is None:
        return None
    cgroup_text = _contents(directory, "cgroup").decode(errors="replace")
    return ProcessFacts(
        key=ProcessKey(pid, int(fields[19])),
        parent=int(fields[1]),
        comm=stat[opening + 1 : closing].decode(errors="replace"),
        exe=_link(directory, f"{thread}exe").removesuffix(_GONE),
        cmdline=parse_cmdline(_contents(directory, f"{thread}cmdline", MAX_CMDLINE_BYTES)),
        uid=_effective_uid(_contents(directory, "status")),
        cgroup=parse_cgroup(cgroup_text),
        cgroup_id=unified_id(cgroup_text),
        pid_namespace=_namespace(directory, f"{thread}ns/pid"),
    )


def _living_thread(directory: int, pid: int) -> str | None:
    """Where to read what a leader that has ended no longer has while its threads live on; `None` if there are none."""
    tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return next((f"task/{tid}/" for tid in os.listdir(tasks) if tid != str(pid)), None)  # noqa: PTH208  no path
    finally:
        os.close(tasks)


def parse_cmdline(raw: bytes) -> tuple[str, ...]:
    """Splits /proc/PID/cmdline; a program that wrote a title over its arguments leaves one and a tail of NULs."""
    raw = raw.rstrip(b"\0")
    return tuple(part.decode(errors="replace") for part in raw.split(b"\0")) if raw else ()


def _contents(directory: int, name: str, limit: int = 8192) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)


def _link(directory: int, name: str) -> str:
    """Target of a symbolic link, empty where it needs more rights than we have."""
    try:
        return os.readlink(name, dir_fd=directory)
    except PermissionError:
        return ""


def _namespace(directory: int, name: str) -> int:
    """Inode number out of `pid:[4026531836]` (namespaces(7)), 0 where reading it needs more rights."""
    return int(_link(directory, name).rpartition("[")[2].rstrip("]") or 0)


def _effective_uid(status: bytes) -> int:
    start = status.index(b"\nUid:")
    return int(status[start + 5 :].split(None, 2)[1])
