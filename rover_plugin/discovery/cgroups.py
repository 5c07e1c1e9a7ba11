# SPDX-License-Identifier: Apache-2.0
"""What a cgroup path tells about a process: its systemd unit, its container, its id in the unified hierarchy."""

from __future__ import annotations

import json
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
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")

_DOCKER_CONFIG = "var/lib/docker/containers/{id}/config.v2.json"
_PODMAN_INDEX = "var/lib/containers/storage/overlay-containers/containers.json"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where a process stands.

    Attributes:
        path: in the unified hierarchy, or in systemd's own one where the host still has both.
        unit: the systemd unit (`nginx.service`), empty without one.
        generic: the unit exists only to hold a login or a command line, so it is no name for a service.
        container_id: 64 hexadecimal digits, empty outside containers.
    """

    path: str = "/"
    unit: str = ""
    generic: bool = False
    container_id: str = ""


@lru_cache(maxsize=4096)
def parse_cgroup(text: str) -> Cgroup:
    """Reads the contents of /proc/PID/cgroup (cgroups(7)).

    Of nested containers the innermost counts, and of units only those inside of it: `containerd.service` does not name
    the containers it runs.
    """
    path = cgroup_path(text)
    unit = container_id = ""
    for part in path.split("/"):
        if match := _CONTAINER.fullmatch(part):
            container_id, unit = match.group(1), ""
        elif part.endswith((".service", ".scope")):
            unit = _ESCAPED.sub(lambda escaped: chr(int(escaped.group(1), 16)), part)
    return Cgroup(path, unit, bool(_GENERIC_UNIT.fullmatch(unit)), container_id)


def cgroup_path(text: str) -> str:
    """The path that says most: unified, else systemd's named hierarchy, else the deepest of the others."""
    paths = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths[controllers] = path
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


@lru_cache(maxsize=1024)
def container_name(container_id: str, root: Path = Path("/")) -> str:
    """The name docker or podman gave a container, from their files; its first 12 digits if they tell none."""
    return _docker_name(container_id, root) or _podman_name(container_id, root) or container_id[:12]


def _docker_name(container_id: str, root: Path) -> str:
    try:
        config = json.loads((root / _DOCKER_CONFIG.format(id=container_id)).read_text())
        return str(config["Name"]).lstrip("/")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _podman_name(container_id: str, root: Path) -> str:
    try:
        index = json.loads((root / _PODMAN_INDEX).read_text())
        return next((str(entry["names"][0]) for entry in index if entry["id"] == container_id), "")
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""
