# SPDX-License-Identifier: Apache-2.0
"""Which container a process is in, and what that is called."""

from __future__ import annotations

import os
import pwd
import re
import time
import tomllib
from collections import OrderedDict
from dataclasses import replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, TypeVar

from rover_plugin.discovery.container_names import Container, ContainerFiles
from rover_plugin.discovery.foreign_files import ForeignFiles, fit_to_show, member
from rover_plugin.discovery.procfs import PROC, pids, read_process
from rover_plugin.telemetry.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rover_plugin.discovery.cgroups import Cgroup
    from rover_plugin.discovery.model import ProcessKey
    from rover_plugin.discovery.procfs import ProcessFacts

_Value = TypeVar("_Value")

MAX_KNOWN = 2048  # of each kind: containers of 1.5 KB at the most, paths of 4 KB at the most and 150 bytes as a rule
_MAX_PLACES = 64  # learnt from processes, of each kind
_MAX_ELSEWHERE = 16  # mount namespaces with a containerd of their own
_UNKNOWN_S = 0.5  # a runtime may write the name after the container's first process runs
_MAX_CONFIG_BYTES = 1 << 16

_TASK_DIRECTORY = "io.containerd.runtime.v2.task"
# State directories of containerd where distributions of it put them; others are learnt from its shims.
_TASKS = (
    *(
        f"{state}/{_TASK_DIRECTORY}"
        for state in (
            "/run/containerd",
            "/run/docker/containerd/daemon",
            "/run/k3s/containerd",
            "/run/k0s/containerd",
            "/var/snap/microk8s/common/run/containerd",
            "/run/snap.docker/containerd/daemon",
        )
    ),
    "/run/containerd/io.containerd.runtime.v1.linux",
)
_DOCKER = ("/var/lib/docker/containers", "/var/snap/docker/common/var-lib-docker/containers")
_STORAGES = ("/var/lib/containers/storage", "/run/containers/storage")
_STATES = ("/run/runc", "/run/crun")  # runc(8) and crun(1), --root
# The same for a user's own runtimes: below the home directory, and below /run/user/UID.
_USER_STORAGE = ".local/share/containers/storage"
_USER_DOCKER = ".local/share/docker/containers"
_USER_TASKS = (f"docker/containerd/daemon/{_TASK_DIRECTORY}", f"containerd/{_TASK_DIRECTORY}")

_USER_SLICE = re.compile(r"/user-(\d+)\.slice/")
_ID = re.compile(r"[0-9a-f]{64}")
_CONMON_BUNDLE = re.compile(r"(/.*)/[^/]+-containers/[0-9a-f]{64}/userdata")


class Containers:
    """Not thread-safe. Everything it keeps is bounded; the container used the longest ago gives way.

    Args:
        counters: take what was wrong with runtimes' files.
        root: where the host's root directory is seen from here, if that is neither `/` nor process 1's.
    """

    def __init__(self, counters: Counters | None = None, root: str | None = None, proc: str = PROC) -> None:
        self._proc = proc
        self._host = root is None
        self._raw = ForeignFiles(_host_roots(proc) if root is None else (root,), counters or Counters())
        self._files = ContainerFiles(self._raw)
        self._known: OrderedDict[str, Container] = OrderedDict()
        self._by_path: OrderedDict[str, Container] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()  # id or path, to when it may be looked up again
        # Places, used as ordered sets: those of the distributions first, then configured and learnt ones.
        self._tasks = dict.fromkeys(_TASKS)
        self._docker = dict.fromkeys((*_DOCKER, *self._configured_docker()))
        self._storages = dict.fromkeys((*_STORAGES, *self._configured_storages()))
        # Mount namespace and directory of a containerd's namespace, to a root that shows it.
        self._elsewhere: OrderedDict[tuple[int, str], str] = OrderedDict()
        self._monitored: OrderedDict[str, str] = OrderedDict()  # id to the name its monitor was given
        # Containers without a cgroup of their own: pid namespace to id and first process.
        self._by_pid_namespace: dict[int, tuple[str, ProcessKey]] = {}
        self._first_processes: dict[ProcessKey, int] = {}

    def place(
        self, found: Mapping[int, ProcessFacts], others: Mapping[int, ProcessFacts] | None = None
    ) -> dict[int, ProcessFacts]:
        """The processes `found`, by pid, with their containers.

        Args:
            found: processes that have just been looked at.
            others: processes known besides, among which parents may be.
        """
        for facts in found.values():
            self.notice(facts)
        placed = {}
        for pid, facts in found.items():
            parent = found.get(facts.parent) or (others or {}).get(facts.parent)
            container = self.of(facts, parent)
            placed[pid] = facts if container is None else replace(facts, container=container)
        return placed

    def of(self, facts: ProcessFacts, parent: ProcessFacts | None = None) -> Container | None:
        """The container a process is in, `None` for a process of the host.

        Args:
            facts: of the process.
            parent: of its parent, as far as it is known.
        """
        cgroup = facts.cgroup
        if cgroup.machine:
            return _called(cgroup.machine)
        if cgroup.container_id:
            return self._by_id(cgroup.container_id, cgroup.path)
        return self._by_chosen_id(cgroup) or self._by_monitor(facts, parent)

    def notice(self, facts: ProcessFacts) -> None:
        """Learns from a process that runs or watches containers where their files are."""
        learn = _LEARN.get(facts.exe.rpartition("/")[2])
        if learn is not None:
            learn(self, facts)

    def ended(self, key: ProcessKey) -> None:
        """A process has ended, and with the first of a pid namespace the namespace."""
        namespace = self._first_processes.pop(key, None)
        if namespace is not None:
            self._by_pid_namespace.pop(namespace, None)

    # -- by id --

    def _by_id(self, container_id: str, path: str) -> Container:
        found = self._known.get(container_id)
        if found is None:
            found = self._once_in_a_while(container_id, lambda: self._look_up(container_id, path))
            if found is None:
                return Container(container_id, self._monitored.get(container_id, ""))
            _keep(self._known, container_id, found)
        self._known.move_to_end(container_id)
        return found

    def _look_up(self, container_id: str, path: str) -> Container | None:
        user = _USER_SLICE.search(path)
        home = self._home(int(user[1])) if user else ""
        run = f"/run/user/{user[1]}" if user else ""
        attempts: Iterator[Container | None] = (
            look(place, container_id)
            for look, places in (
                (self._files.in_bundles, [*self._tasks, *(f"{run}/{tasks}" for tasks in _USER_TASKS if run)]),
                (self._files.in_docker, [*self._docker, *([f"{home}/{_USER_DOCKER}"] if home else [])]),
                (self._files.in_storage, [*self._storages, *([f"{home}/{_USER_STORAGE}"] if home else [])]),
            )
            for place in places
        )
        elsewhere = (
            self._files.in_bundle(root, below, container_id) for (_, below), root in reversed(self._elsewhere.items())
        )
        return next(filter(None, chain(attempts, elsewhere)), None)

    def _once_in_a_while(self, key: str, look: Callable[[], Container | None]) -> Container | None:
        now = time.monotonic()
        if self._unknown.get(key, 0.0) > now:
            return None
        found = look()
        if found is None:
            _keep(self._unknown, key, now + _UNKNOWN_S)
        else:
            self._unknown.pop(key, None)
        return found

    def _home(self, uid: int) -> str:
        for line in self._raw.text("/etc", "passwd", _MAX_CONFIG_BYTES * 16).splitlines():
            fields = line.split(":")
            if len(fields) == 7 and fields[2] == str(uid):  # passwd(5)
                return fields[5]
        try:
            return pwd.getpwuid(uid).pw_dir if self._host else ""  # users of a directory service
        except KeyError:
            return ""

    # -- without an id in the path: `ctr run IMAGE web` makes /default/web, `runc run web` /web --

    def _by_chosen_id(self, cgroup: Cgroup) -> Container | None:
        path = cgroup.path
        if path == "/":
            return None
        found = self._by_path.get(path) or self._once_in_a_while(path, lambda: self._chosen(path.split("/")[1:]))
        if found is not None:
            _keep(self._by_path, path, found)
        return found

    def _chosen(self, parts: list[str]) -> Container | None:
        for tasks in self._tasks:
            for namespace, container_id in pairwise(parts):
                if self._files.has_task(tasks, namespace, container_id):
                    found = self._files.in_bundle(tasks, namespace, container_id)
                    return found or _called(container_id)
        for container_id in parts:
            if any(self._files.has_state(states, container_id) for states in _STATES):
                return _called(container_id)
        return None

    # -- by the process beside it, where the cgroup does not tell: podman of a user with cgroups v1, nspawn by hand --

    def _by_monitor(self, facts: ProcessFacts, parent: ProcessFacts | None) -> Container | None:
        namespace = facts.pid_namespace
        known = self._by_pid_namespace.get(namespace)
        if known is None and parent is not None and parent.pid_namespace not in {0, namespace}:
            container_id = _watched_by(parent)
            if container_id and namespace:
                known = self._by_pid_namespace[namespace] = container_id, facts.key
                self._first_processes[facts.key] = namespace
        if known is None:
            return None
        container_id, _ = known
        if _ID.fullmatch(container_id):
            return self._by_id(container_id, facts.cgroup.path)
        return _called(container_id)

    # -- places --

    def _configured_docker(self) -> list[str]:
        """dockerd(8), daemon configuration file."""
        config = self._raw.document("/etc", "docker/daemon.json", _MAX_CONFIG_BYTES)
        data_root = member(config, "data-root") or member(config, "graph")
        return [f"{data_root}/containers"] if isinstance(data_root, str) else []

    def _configured_storages(self) -> list[str]:
        """containers-storage.conf(5)."""
        text = self._raw.text("/etc", "containers/storage.conf", _MAX_CONFIG_BYTES)
        try:
            storage = tomllib.loads(text).get("storage")
        except tomllib.TOMLDecodeError:
            return []
        roots = (member(storage, key) for key in ("graphroot", "runroot"))
        return [root for root in roots if isinstance(root, str)]

    def _learn_from_shim(self, facts: ProcessFacts) -> None:
        # Its working directory is a bundle, TASKS/NAMESPACE/ID (containerd, pkg/shim), as its mount namespace has it.
        try:
            bundle = os.readlink(f"{self._proc}/{facts.key.pid}/cwd")  # noqa: PTH115  a text is all
        except OSError:
            return
        if bundle.count("/") <= 2:  # three names at least
            return
        tasks, namespace, container_id = bundle.rsplit("/", 2)
        if self._files.has_task(tasks, namespace, container_id):
            self._learn(self._tasks, tasks)
        else:
            self._learn_elsewhere(facts.key.pid, f"{tasks}/{namespace}".lstrip("/"))

    def _learn_elsewhere(self, pid: int, below: str) -> None:
        """Containers of a containerd in a mount namespace of its own: a user's, or of a node that is a container.

        They are seen through the latest of its shims, for as long as that runs.
        """
        root = f"{self._proc}/{pid}/root"
        try:
            namespace = os.stat(f"{self._proc}/{pid}/ns/mnt").st_ino  # noqa: PTH116  a number is all
        except OSError:
            return
        self._elsewhere[namespace, below] = root
        self._elsewhere.move_to_end((namespace, below))
        self._unknown.clear()
        if len(self._elsewhere) > _MAX_ELSEWHERE:
            self._elsewhere.popitem(last=False)

    def _learn_from_conmon(self, facts: ProcessFacts) -> None:
        # conmon(8): -c id, -n name, -b bundle.
        container_id, name = _option(facts, "-c"), _option(facts, "-n")
        if _ID.fullmatch(container_id) and name:
            _keep(self._monitored, container_id, fit_to_show(name))
        if match := _CONMON_BUNDLE.fullmatch(_option(facts, "-b")):
            self._learn(self._storages, match[1])

    def _learn_from_dockerd(self, facts: ProcessFacts) -> None:
        root = _option(facts, "--data-root") or _option(facts, "-g") or _option(facts, "--graph")
        if root.startswith("/"):
            self._learn(self._docker, f"{root.rstrip('/')}/containers")

    def _learn(self, places: dict[str, None], place: str) -> None:
        if place not in places and len(places) < _MAX_PLACES:
            places[place] = None
            self._unknown.clear()


_LEARN: dict[str, Callable[[Containers, ProcessFacts], None]] = {
    "containerd-shim": Containers._learn_from_shim,  # noqa: SLF001  a table of its own methods
    "containerd-shim-runc-v1": Containers._learn_from_shim,  # noqa: SLF001
    "containerd-shim-runc-v2": Containers._learn_from_shim,  # noqa: SLF001
    "conmon": Containers._learn_from_conmon,  # noqa: SLF001
    "dockerd": Containers._learn_from_dockerd,  # noqa: SLF001
}


def _called(name: str) -> Container:
    """A container whose id is what it is called."""
    return Container(fit_to_show(name), fit_to_show(name))


def contained(facts: ProcessFacts, proc: str = PROC) -> ProcessFacts:
    """One process with its container, for who looks only once: all others are looked at for what they tell."""
    everybody = {pid: found for pid in pids(proc) if (found := read_process(pid, proc)) is not None}
    return Containers(proc=proc).place({**everybody, facts.key.pid: facts})[facts.key.pid]


def _host_roots(proc: str) -> tuple[str, ...]:
    """Our own root, and where that is a container's the host's, which process 1 has."""
    try:
        theirs, ours = os.stat(f"{proc}/1/root/."), os.stat("/")  # noqa: PTH116  a pair of numbers is all
    except OSError:
        return ("",)
    return ("",) if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) else ("", f"{proc}/1/root")


def _watched_by(monitor: ProcessFacts) -> str:
    """Id of the container that a process is the monitor of, an empty string for any other process."""
    program = monitor.exe.rpartition("/")[2]
    if program == "conmon":
        container_id = _option(monitor, "-c")
        return container_id if _ID.fullmatch(container_id) else ""
    if program == "systemd-nspawn":
        machine = _option(monitor, "-M") or _option(monitor, "--machine")
        directory = _option(monitor, "-D") or _option(monitor, "--directory")
        return machine or directory.rstrip("/").rpartition("/")[2]
    return ""


def _option(facts: ProcessFacts, option: str) -> str:
    """Value of `--option VALUE` or `--option=VALUE`, an empty string without one."""
    for argument, following in zip(facts.cmdline, (*facts.cmdline[1:], ""), strict=True):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return ""


def _keep(kept: OrderedDict[str, _Value], key: str, value: _Value) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > MAX_KNOWN:
        kept.popitem(last=False)
