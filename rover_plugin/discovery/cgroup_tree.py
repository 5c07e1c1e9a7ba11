# SPDX-License-Identifier: Apache-2.0
"""Paths of cgroups by the id events carry: a process that is gone, cgroup and all, still tells where it was."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rover_plugin.discovery.procfs import PROC

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rover_plugin.telemetry.counters import Counters

MAX_BYTES = 8 << 20  # 20 000 cgroups with paths of 150 bytes
KEEP_S = 60.0  # what is removed, as long as the dead stay listed
_ENTRY_BYTES = 250  # around a path: two numbers, a tuple, an entry of a dictionary (tracemalloc, CPython 3.11)

UNIFIED = 0  # number of the unified hierarchy (cgroups(7), /proc/PID/cgroup)
# Controllers of version 1 that managers and runtimes make cgroups for, the most used first.
_CONTROLLERS = ("pids", "memory", "cpu", "devices", "freezer", "cpuset", "blkio")
_ENUMERATORS = {"blkio": "io_cgrp_id"}  # enum cgroup_subsys_id, include/linux/cgroup_subsys.h
_INITIAL_NAMESPACE = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO, include/linux/proc_ns.h

_Key = tuple[int, int]  # number of the hierarchy, id of the cgroup


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted tree of cgroups.

    Attributes:
        number: as the first field of /proc/PID/cgroup.
        mount: where it is mounted.
        controller: a controller of version 1 that it is for, empty for the unified one.
    """

    number: int
    mount: str
    controller: str = ""

    @property
    def enumerator(self) -> str:
        """The kernel's name for the controller's number."""
        return _ENUMERATORS.get(self.controller, f"{self.controller}_cgrp_id")


def hierarchies(proc: str = PROC) -> tuple[Hierarchy, ...]:
    """The unified hierarchy, and those of version 1, as far as they are mounted and can be seen whole.

    Where our own mounts show a part only, as in a container, those of process 1 are looked at.
    """
    own = () if _in_own_namespace(proc) else _hierarchies(f"{proc}/self", "")
    return own or _hierarchies(f"{proc}/1", f"{proc}/1/root")


def _in_own_namespace(proc: str) -> bool:
    """Whether we are in a cgroup namespace that shows a part of the tree as if it were the whole."""
    try:
        return os.stat(f"{proc}/self/ns/cgroup").st_ino != _INITIAL_NAMESPACE  # noqa: PTH116  a number is all
    except OSError:
        return False


def _hierarchies(process: str, root: str) -> tuple[Hierarchy, ...]:
    try:
        with (
            open(f"{process}/mountinfo", encoding="utf-8", errors="replace") as mounts,  # noqa: PTH123
            open(f"{process}/cgroup", encoding="utf-8", errors="replace") as groups,  # noqa: PTH123
        ):
            found = list(_mounted(mounts.read().splitlines(), groups.read().splitlines(), root))
    except OSError:
        return ()
    unified = [hierarchy for hierarchy in found if hierarchy.number == UNIFIED][:1]
    version_1: dict[int, Hierarchy] = {}  # one of the controllers that share a hierarchy
    for name in _CONTROLLERS:
        for hierarchy in found:
            if hierarchy.controller == name:
                version_1.setdefault(hierarchy.number, hierarchy)
    return (*unified, *version_1.values())


def _mounted(mounts: Sequence[str], groups: Sequence[str], root: str) -> Iterator[Hierarchy]:
    numbers = {}
    for line in groups:
        number, controllers, _ = line.split(":", 2)
        numbers.update(dict.fromkeys(controllers.split(","), int(number)))
    for line in mounts:
        left, _, right = line.partition(" - ")
        _, _, _, top, mount, *_ = left.split(" ")
        kind, _, options = right.split(" ", 2)
        if top.replace("/..", "") not in {"", "/"}:  # a part of the tree
            continue
        if kind == "cgroup2":
            yield Hierarchy(UNIFIED, root + mount)
        elif kind == "cgroup":
            for option in options.split(","):
                if option in _CONTROLLERS and option in numbers:
                    yield Hierarchy(numbers[option], root + mount, option)


class CgroupTree:
    """Ids to paths, in the hierarchies given. Not thread-safe; times are seconds of any clock that does not jump.

    Beyond `max_bytes` the oldest gives way, removed cgroups first, and is counted as `cgroup_paths_forgotten`.
    """

    def __init__(
        self, trees: Sequence[Hierarchy] = (), counters: Counters | None = None, max_bytes: int = MAX_BYTES
    ) -> None:
        self.hierarchies = tuple(trees)
        self._counters = counters
        self._max_bytes = max_bytes
        self._bytes = 0
        self._living: OrderedDict[_Key, str] = OrderedDict()
        self._removed: OrderedDict[_Key, tuple[str, float]] = OrderedDict()  # with the time it is forgotten

    def __len__(self) -> int:
        return len(self._living) + len(self._removed)

    def scan(self) -> None:
        """Takes in all cgroups there are; what is known of removed ones stays."""
        for hierarchy in self.hierarchies:
            for number, path in _walk(hierarchy.mount):
                self._add((hierarchy.number, number), path)

    def made(self, hierarchy: int, number: int, path: str) -> None:
        """A cgroup was made."""
        if any(hierarchy == followed.number for followed in self.hierarchies):
            self._add((hierarchy, number), path)

    def removed(self, hierarchy: int, number: int, now: float) -> None:
        """A cgroup was removed; its path is kept for `KEEP_S`."""
        key = hierarchy, number
        path = self._living.pop(key, None)
        if path is not None:
            self._removed[key] = path, now + KEEP_S
        while self._removed and next(iter(self._removed.values()))[1] <= now:
            _, (path, _) = self._removed.popitem(last=False)
            self._bytes -= _size(path)

    def path(self, unified: int, hierarchy: int = UNIFIED, version_1: int = 0) -> str:
        """The path that says most, empty if none is known.

        Args:
            unified: id in the unified hierarchy.
            hierarchy: number of another one.
            version_1: id in that.
        """
        path = self._path((UNIFIED, unified))
        return path if path not in {"", "/"} else self._path((hierarchy, version_1)) or path

    def _path(self, key: _Key) -> str:
        return self._living.get(key) or self._removed.get(key, ("", 0.0))[0]

    def _add(self, key: _Key, path: str) -> None:
        before = self._living.get(key)
        if before is not None:
            self._bytes -= _size(before)
        self._living[key] = path
        self._bytes += _size(path)
        while self._bytes > self._max_bytes and self:
            path = self._removed.popitem(last=False)[1][0] if self._removed else self._living.popitem(last=False)[1]
            self._bytes -= _size(path)
            if self._counters is not None:
                self._counters.add("cgroup_paths_forgotten")


def _size(path: str) -> int:
    return _ENTRY_BYTES + len(path)


def _walk(mount: str) -> Iterator[tuple[int, str]]:
    """Id and path of every cgroup below a mount, itself included; ids are inode numbers (fs/kernfs)."""
    try:
        yield os.stat(mount).st_ino, "/"  # noqa: PTH116  thousands of calls a scan
    except OSError:
        return
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(mount + parent) as entries:
                children = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # removed meanwhile
        for child in children:
            path = f"{parent}/{child.name}"
            yield child.inode(), path
            waiting.append(path)
