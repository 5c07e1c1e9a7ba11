# SPDX-License-Identifier: Apache-2.0
"""What a cgroup path tells about a process: its systemd unit, its container or machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

# The scopes and services systemd makes for logins and for commands it was not given a unit file for name nothing.
_GENERIC_UNIT = re.compile(r"(?:user@\d+|run-[\w\\-]+)\.service|.*\.scope")
# docker-<id>.scope, cri-containerd-<id>.scope, crio-<id>.scope, libpod-<id>.scope, <slice>:cri-containerd:<id>, <id>.
# `conmon` is the monitor beside a container, not in it.
_CONTAINER = re.compile(r"(?:^|.*(?<!conmon)[-:])([0-9a-f]{64})(?:\.scope)?")
# pod<UID>, kubepods-burstable-pod<UID with _>.slice; of a static pod 32 digits (k8s.io/kubernetes/pkg/kubelet/cm).
_POD = re.compile(r"(?:^|.*-)pod(?:[0-9a-f]{32}|[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?:\.slice.*)?")
# Machines registered with systemd-machined (machinectl(1)): nspawn's and libvirt's containers. `qemu` are processes of
# the host that run virtual machines.
_MACHINE_SCOPE = re.compile(r"machine-(?!qemu-)(?:lxc-\d+-)?(.+)\.scope")
# A unit that runs systemd-nspawn, its own template or any other: what it runs is below `payload`, itself beside that
# in `supervisor` (create_subcgroup(), src/nspawn/nspawn-cgroup.c). Old ones do without `payload`.
_NSPAWN_SERVICE = re.compile(r"(systemd-nspawn@)?(.+)\.service")
_NSPAWN_OWN = "supervisor"
_NSPAWN_PAYLOAD = "payload"
_LXC_PAYLOAD = "lxc.payload."  # LXC 4 and newer, Incus
_LXC = "lxc"  # older, Proxmox VE: lxc/NAME
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_OWN_NAMESPACE = re.compile(r"(?:/\.\.)+(?=/|$)")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where a process stands.

    Attributes:
        path: in the unified hierarchy, or in systemd's own one where the host still has both.
        unit: the systemd unit (`nginx.service`), of the host or of the container; empty without one.
        generic: the unit exists only to hold a login or a command line, so it is no name for a service.
        container_id: 64 hexadecimal digits, empty where a container is not known by such an id.
        machine: name of the LXC, Incus or nspawn container, empty outside of those.
    """

    path: str = "/"
    unit: str = ""
    generic: bool = False
    container_id: str = ""
    machine: str = ""


def parse_cgroup(text: str) -> Cgroup:
    """Reads the contents of /proc/PID/cgroup (cgroups(7))."""
    return parse_path(cgroup_path(text))


@lru_cache(maxsize=4096)
def parse_path(path: str) -> Cgroup:
    """Reads the path of a cgroup.

    Of containers in a container the outermost counts, as only that one's name is kept on this host; where a pod is in
    the path, its container. Of units only those inside of it count: `containerd.service` does not name what it runs.
    """
    parts = path.split("/")
    inside, container_id, machine = _innermost_pod_container(parts) or _outermost_container(parts)
    units = [part for part in parts[inside:] if part.endswith((".service", ".scope"))]
    unit = _unescaped(units[-1]) if units else ""
    return Cgroup(path, unit, bool(_GENERIC_UNIT.fullmatch(unit)), container_id, machine)


# Index of the first part inside the container, id, machine name.
_Boundary = tuple[int, str, str]


def _innermost_pod_container(parts: list[str]) -> _Boundary | None:
    pods = [index for index, part in enumerate(parts) if _POD.fullmatch(part)]
    for index in range(pods[-1], len(parts)) if pods else ():
        if match := _CONTAINER.fullmatch(parts[index]):
            return index + 1, match[1], ""
    return None


def _outermost_container(parts: list[str]) -> _Boundary:
    for index, part in enumerate(parts):
        if match := _CONTAINER.fullmatch(part):
            return index + 1, match[1], ""
        following = parts[index + 1] if index + 1 < len(parts) else ""
        if machine := _machine(part, following):
            return index + (2 if part == _LXC else 1), "", machine
    return 0, "", ""


def _machine(part: str, following: str) -> str:
    if part.startswith(_LXC_PAYLOAD):
        return part.removeprefix(_LXC_PAYLOAD)
    if part == _LXC:
        return following
    name = _unescaped(part)
    inside = following not in {"", _NSPAWN_OWN}
    if (match := _MACHINE_SCOPE.fullmatch(name)) and following != _NSPAWN_OWN:
        return match[1]
    if (match := _NSPAWN_SERVICE.fullmatch(name)) and (following == _NSPAWN_PAYLOAD or (match[1] and inside)):
        return match[2]
    return ""


def _unescaped(unit: str) -> str:
    return _ESCAPED.sub(lambda escaped: chr(int(escaped.group(1), 16)), unit)


def cgroup_path(text: str) -> str:
    """The path that says most: unified, else systemd's named hierarchy, else the deepest of the others."""
    paths = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        # Seen from a cgroup namespace of our own, paths outside begin with `/..` (cgroup_namespaces(7)).
        paths[controllers] = _OWN_NAMESPACE.sub("", path, count=1) or "/"
    for controllers in ("", "name=systemd"):
        if paths.get(controllers, "/") != "/":
            return paths[controllers]
    return max(paths.values(), key=len, default="/")


@cache
def unified_mount(mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """Where the unified hierarchy is mounted (proc(5), mountinfo), or an empty string."""
    for line in mountinfo.read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return fields[4]
    return ""


def unified_id(text: str) -> int:
    """The id of a process's cgroup as BPF knows it: the inode number of its directory. 0 if there is no telling."""
    mount = unified_mount()
    for line in text.splitlines():
        if mount and line.startswith("0::"):
            try:
                return os.stat(mount + line[3:]).st_ino  # noqa: PTH116  Path costs twice the call, once a process
            except OSError:
                return 0
    return 0
