# SPDX-License-Identifier: Apache-2.0
"""What /proc/PID/cgroup tells, for the managers and runtimes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.discovery.cgroups import Cgroup, parse_cgroup, parse_path, unified_mount

if TYPE_CHECKING:
    from pathlib import Path

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
UID = "0a1b2c3d-4e5f-6789-abcd-ef0123456789"
UID_ = UID.replace("-", "_")
PARTS = ["lxc", "lxc.payload.", "lxc.payload.a", "payload", "machine-.scope", ".service", "x.service", f"pod{UID}", ""]
STATIC = UID.replace("-", "")


@pytest.mark.parametrize(
    ("path", "unit", "generic", "container", "machine"),
    [
        ("/", "", False, "", ""),
        ("/system.slice/nginx.service", "nginx.service", False, "", ""),
        (
            "/system.slice/system-postgresql.slice/postgresql@15-main.service",
            "postgresql@15-main.service",
            False,
            "",
            "",
        ),
        (r"/system.slice/my\x2dshop.service", "my-shop.service", False, "", ""),
        ("/user.slice/user-0.slice/session-3.scope", "session-3.scope", True, "", ""),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service", True, "", ""),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service", "shop.service", False, "", ""),
        ("/system.slice/run-u12.service", "run-u12.service", True, "", ""),
        ("/init.scope", "init.scope", True, "", ""),
        # docker, with both drivers, and with systemd in the container
        (f"/docker/{ID}", "", False, ID, ""),
        (f"/system.slice/docker-{ID}.scope", "", False, ID, ""),
        (f"/docker/{ID}/system.slice/nginx.service", "nginx.service", False, ID, ""),
        (f"/docker/{ID}/docker/{OTHER}", "", False, ID, ""),
        # podman: system, a user's, split below a unit, and the monitor beside it
        (f"/machine.slice/libpod-{ID}.scope/container", "", False, ID, ""),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container", "", False, ID, ""),
        (f"/system.slice/web.service/libpod-payload-{ID}", "", False, ID, ""),
        (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", True, "", ""),
        (f"/libpod_parent/libpod-{ID}", "", False, ID, ""),
        # Kubernetes, by driver and runtime
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope", "", False, ID, ""),
        (f"/kubepods/burstable/pod{UID}/{ID}", "", False, ID, ""),
        (f"/kubepods/besteffort/pod{STATIC}/{ID}", "", False, ID, ""),
        (f"/kubepods/pod{UID}/{ID}/docker/{OTHER}", "", False, ID, ""),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope/container", "", False, ID, ""),
        (
            f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{ID}.scope",
            f"crio-conmon-{ID}.scope",
            True,
            "",
            "",
        ),
        (f"/kubepods/besteffort/pod{UID}/crio-{ID}", "", False, ID, ""),
        (f"/kubepods.slice/crio-{ID}.scope", "", False, ID, ""),
        (
            f"/system.slice/containerd.service/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{ID}",
            "",
            False,
            ID,
            "",
        ),
        (f"/docker/{OTHER}/kubelet/kubepods/pod{UID}/{ID}", "", False, ID, ""),
        (
            f"/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-pod{UID_}.slice/cri-containerd-{ID}.scope",
            "",
            False,
            ID,
            "",
        ),
        # LXC, Incus, Proxmox VE
        ("/lxc.payload.web", "", False, "", "web"),
        ("/lxc.payload.web/system.slice/nginx.service", "nginx.service", False, "", "web"),
        ("/lxc.payload.web/init.scope", "init.scope", True, "", "web"),
        ("/lxc.monitor.web", "", False, "", ""),
        ("/lxc/101/ns/system.slice/nginx.service", "nginx.service", False, "", "101"),
        ("/lxc", "", False, "", ""),
        (f"/lxc/101/ns/docker/{ID}", "", False, "", "101"),
        ("/user.slice/user-1000.slice/user@1000.service/lxc.payload.dev/init.scope", "init.scope", True, "", "dev"),
        # systemd-nspawn: by its unit and by hand, with and without the supervisor beside it; libvirt
        (
            "/machine.slice/systemd-nspawn@db.service/payload/system.slice/nginx.service",
            "nginx.service",
            False,
            "",
            "db",
        ),
        (
            "/machine.slice/systemd-nspawn@db.service/supervisor",
            "systemd-nspawn@db.service",
            False,
            "",
            "",
        ),
        ("/system.slice/mydb.service/payload/system.slice/nginx.service", "nginx.service", False, "", "mydb"),
        ("/machine.slice/systemd-nspawn@db.service/system.slice/x.service", "x.service", False, "", "db"),
        ("/system.slice/mydb.service/payload", "", False, "", "mydb"),
        ("/system.slice/mydb.service/supervisor", "mydb.service", False, "", ""),
        (r"/machine.slice/machine-db\x2d1.scope/payload/init.scope", "init.scope", True, "", "db-1"),
        ("/machine.slice/machine-db.scope", "", False, "", "db"),
        ("/machine.slice/machine-db.scope/supervisor", "machine-db.scope", True, "", ""),
        (r"/machine.slice/machine-lxc\x2d4711\x2dshop.scope", "", False, "", "shop"),
        (
            r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator",
            "machine-qemu-1-vm.scope",
            True,
            "",
            "",
        ),
    ],
)
def test_unit_container_and_machine_come_from_the_path(
    path: str, unit: str, generic: bool, container: str, machine: str
) -> None:
    assert parse_cgroup(f"0::{path}\n") == Cgroup(path, unit, generic, container, machine)


def test_on_hosts_with_both_hierarchies_systemds_names_the_unit() -> None:
    text = "12:memory:/x\n1:name=systemd:/system.slice/nginx.service\n0::/\n"
    assert parse_cgroup(text).unit == "nginx.service"


def test_without_systemd_any_hierarchy_can_name_the_container() -> None:
    assert parse_cgroup(f"4:memory:/docker/{ID}\n3:cpu:/\n").container_id == ID


@pytest.mark.parametrize("outside", ["/..", "/../..", "/../../.."])
def test_from_a_cgroup_namespace_of_our_own_paths_are_taken_from_the_top(outside: str) -> None:
    path = f"/kubepods/pod{UID}/{ID}"
    assert parse_cgroup(f"0::{outside}{path}\n").path == path
    assert parse_cgroup(f"0::{outside}\n").path == "/"


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


@given(st.lists(st.sampled_from([*PARTS, ID, UID]) | st.text(max_size=8), max_size=8))
@settings(max_examples=200)
def test_any_path_yields_a_place(parts: list[str]) -> None:
    found = parse_path("/" + "/".join(parts))
    assert not (found.container_id and found.machine)
    assert found.container_id in {"", ID}
