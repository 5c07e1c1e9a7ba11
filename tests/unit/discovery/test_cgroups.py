# SPDX-License-Identifier: Apache-2.0
"""What /proc/PID/cgroup tells, for the managers and runtimes there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from rover_plugin.discovery.cgroups import Cgroup, container_name, parse_cgroup, unified_mount

if TYPE_CHECKING:
    from pathlib import Path

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


@pytest.mark.parametrize(
    ("path", "unit", "generic", "container"),
    [
        ("/", "", False, ""),
        ("/system.slice/nginx.service", "nginx.service", False, ""),
        ("/system.slice/system-postgresql.slice/postgresql@15-main.service", "postgresql@15-main.service", False, ""),
        (r"/system.slice/my\x2dshop.service", "my-shop.service", False, ""),
        ("/user.slice/user-0.slice/session-3.scope", "session-3.scope", True, ""),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service", True, ""),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service", "shop.service", False, ""),
        ("/system.slice/run-u12.service", "run-u12.service", True, ""),
        ("/init.scope", "init.scope", True, ""),
        (f"/docker/{ID}", "", False, ID),
        (f"/system.slice/docker-{ID}.scope", "", False, ID),
        (f"/docker/{ID}/system.slice/nginx.service", "nginx.service", False, ID),
        (f"/machine.slice/libpod-{ID}.scope/container", "", False, ID),
        (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", True, ""),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", "", False, ID),
        (f"/kubepods/burstable/pod1/{ID}", "", False, ID),
        (f"/kubepods.slice/crio-{ID}.scope", "", False, ID),
        (f"/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}", "", False, ID),
        (f"/docker/{ID}/kubelet/kubepods/pod1/{OTHER}", "", False, OTHER),
    ],
)
def test_unit_and_container_come_from_the_path(path: str, unit: str, generic: bool, container: str) -> None:
    assert parse_cgroup(f"0::{path}\n") == Cgroup(path, unit, generic, container)


def test_on_hosts_with_both_hierarchies_systemds_names_the_unit() -> None:
    text = "12:memory:/x\n1:name=systemd:/system.slice/nginx.service\n0::/\n"
    assert parse_cgroup(text).unit == "nginx.service"


def test_without_systemd_any_hierarchy_can_name_the_container() -> None:
    assert parse_cgroup(f"4:memory:/docker/{ID}\n3:cpu:/\n").container_id == ID


def test_docker_tells_the_name_of_a_container(tmp_path: Path) -> None:
    config = tmp_path / "var/lib/docker/containers" / ID / "config.v2.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"Name": "/shop"}))
    assert container_name(ID, tmp_path) == "shop"


def test_podman_tells_the_name_of_a_container(tmp_path: Path) -> None:
    index = tmp_path / "var/lib/containers/storage/overlay-containers/containers.json"
    index.parent.mkdir(parents=True)
    index.write_text(json.dumps([{"id": OTHER, "names": ["x"]}, {"id": ID, "names": ["cart"]}]))
    assert container_name(ID, tmp_path) == "cart"


def test_a_container_nobody_names_is_called_by_the_start_of_its_id(tmp_path: Path) -> None:
    broken = tmp_path / "var/lib/docker/containers" / ID / "config.v2.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("not json")
    assert container_name(ID, tmp_path) == ID[:12]


def test_the_unified_hierarchy_is_found_among_the_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "24 1 0:21 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "25 1 0:22 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 none rw\n"
    )
    assert unified_mount(mounts) == "/sys/fs/cgroup/unified"
    mounts_without = tmp_path / "none"
    mounts_without.write_text("24 1 0:21 / /proc rw - proc proc rw\n")
    assert unified_mount(mounts_without) == ""
