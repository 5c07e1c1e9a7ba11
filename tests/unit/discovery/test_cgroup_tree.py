# SPDX-License-Identifier: Apache-2.0
"""Paths of cgroups by id: from the trees, from events, for a while after the end, within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.discovery import cgroup_tree
from rover_plugin.discovery.cgroup_tree import KEEP_S, CgroupTree, Hierarchy, hierarchies
from rover_plugin.telemetry.counters import Counters

if TYPE_CHECKING:
    from pathlib import Path

UNIFIED = Hierarchy(0, "/sys/fs/cgroup")
PIDS = Hierarchy(8, "/sys/fs/cgroup/pids", "pids")


def test_a_scan_finds_every_cgroup_by_its_inode(tmp_path: Path) -> None:
    deepest = tmp_path / "a.slice/b.service/c"
    deepest.mkdir(parents=True)
    (tmp_path / "cgroup.procs").touch()
    tree = CgroupTree([Hierarchy(0, str(tmp_path))])
    tree.scan()
    assert len(tree) == 4
    assert tree.path(deepest.stat().st_ino) == "/a.slice/b.service/c"
    assert tree.path(tmp_path.stat().st_ino) == "/"
    assert tree.path(1) == ""


def test_a_tree_that_is_not_there_is_empty() -> None:
    tree = CgroupTree([Hierarchy(0, "/nowhere")])
    tree.scan()
    assert len(tree) == 0


def test_a_removed_cgroup_is_known_for_a_while() -> None:
    tree = CgroupTree([UNIFIED])
    tree.made(0, 7, "/a")
    tree.removed(0, 7, now=100)
    assert tree.path(7) == "/a"
    tree.made(0, 8, "/b")
    tree.removed(0, 8, now=100 + KEEP_S)
    assert (tree.path(7), tree.path(8)) == ("", "/b")


def test_of_two_hierarchies_the_unified_one_counts_unless_it_says_nothing() -> None:
    tree = CgroupTree([UNIFIED, PIDS])
    tree.made(0, 1, "/")
    tree.made(0, 7, "/unified")
    tree.made(8, 1, "/")
    tree.made(8, 7, "/pids")
    paths = [tree.path(unified, 8, version_1) for unified, version_1 in ((7, 7), (1, 7), (1, 1), (9, 7), (1, 9))]
    assert paths == ["/unified", "/pids", "/", "/pids", "/"]


def test_without_the_unified_hierarchy_version_1_alone_tells() -> None:
    tree = CgroupTree([PIDS])
    tree.made(8, 7, "/pids")
    assert (tree.path(1, 8, 7), tree.path(7, 8, 1), tree.path(1, 9, 7)) == ("/pids", "", "")


def test_other_hierarchies_are_left_out() -> None:
    tree = CgroupTree([UNIFIED])
    tree.made(3, 7, "/x")
    tree.removed(3, 7, now=0)
    assert len(tree) == 0


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 30), st.text("ab/", max_size=40), st.floats(0, 1000)), max_size=200
    )
)
@settings(max_examples=100, deadline=None)
def test_what_is_kept_is_bounded_in_bytes_and_what_gives_way_is_counted(
    changes: list[tuple[bool, int, str, float]],
) -> None:
    counters, limit = Counters(), 3000
    tree = CgroupTree([UNIFIED], counters, limit)
    now = 0.0
    for made, number, path, later in changes:
        now += later
        if made:
            tree.made(0, number, path)
        else:
            tree.removed(0, number, now)
        kept = [*tree._living.values(), *(path for path, _ in tree._removed.values())]
        assert tree._bytes == sum(250 + len(path) for path in kept) <= limit
    assert counters.value("cgroup_paths_forgotten") <= sum(made for made, *_ in changes)


def test_removed_cgroups_give_way_first() -> None:
    tree = CgroupTree([UNIFIED], Counters(), max_bytes=3 * 255)
    tree.made(0, 1, "/one")
    tree.made(0, 2, "/two")
    tree.removed(0, 2, now=0)
    tree.made(0, 3, "/new")
    tree.made(0, 4, "/too")
    assert [tree.path(number) for number in (1, 2, 3, 4)] == ["/one", "", "/new", "/too"]


SYSTEMD_HYBRID = """\
30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
36 30 0:32 / /sys/fs/cgroup/pids rw shared:16 - cgroup cgroup rw,pids
"""
UNIFIED_ONLY = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
A_PART = "30 25 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mounts", "groups", "found"),
    [
        (
            SYSTEMD_HYBRID,
            "8:pids:/\n4:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n",
            (
                Hierarchy(0, "/sys/fs/cgroup/unified"),
                Hierarchy(8, "/sys/fs/cgroup/pids", "pids"),
                Hierarchy(4, "/sys/fs/cgroup/cpu,cpuacct", "cpu"),
            ),
        ),
        (
            SYSTEMD_HYBRID.replace("cgroup2 cgroup2", "tmpfs tmpfs"),
            "4:cpu,cpuacct:/\n1:name=systemd:/\n",
            (Hierarchy(4, "/sys/fs/cgroup/cpu,cpuacct", "cpu"),),
        ),
        (UNIFIED_ONLY, "0::/init.scope\n", (Hierarchy(0, "/sys/fs/cgroup"),)),
        (A_PART, "0::/\n", ()),
        ("", "", ()),
    ],
)
def test_hierarchies_are_found_among_the_mounts(
    tmp_path: Path, mounts: str, groups: str, found: tuple[Hierarchy, ...]
) -> None:
    """Seen through process 1, as from a cgroup namespace of our own."""
    for process in ("self", "1"):
        (tmp_path / process / "ns").mkdir(parents=True)
        (tmp_path / process / "ns/cgroup").touch()
        (tmp_path / process / "mountinfo").write_text(mounts)
        (tmp_path / process / "cgroup").write_text(groups)
    root = f"{tmp_path}/1/root"
    expected = tuple(Hierarchy(one.number, root + one.mount, one.controller) for one in found)
    assert hierarchies(str(tmp_path)) == expected


def test_our_own_mounts_come_first_where_they_show_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for process, mounts in (("self", UNIFIED_ONLY), ("1", UNIFIED_ONLY.replace("/sys/fs/cgroup", "/other"))):
        (tmp_path / process / "ns").mkdir(parents=True)
        (tmp_path / process / "ns/cgroup").touch()
        (tmp_path / process / "mountinfo").write_text(mounts)
        (tmp_path / process / "cgroup").write_text("0::/\n")
    namespace = (tmp_path / "self/ns/cgroup").stat().st_ino
    monkeypatch.setattr(cgroup_tree, "_INITIAL_NAMESPACE", namespace)
    assert hierarchies(str(tmp_path)) == (Hierarchy(0, "/sys/fs/cgroup"),)
    (tmp_path / "self/mountinfo").write_text(A_PART)
    assert hierarchies(str(tmp_path)) == (Hierarchy(0, f"{tmp_path}/1/root/other"),)


def test_this_host_has_a_hierarchy() -> None:
    assert {one.controller for one in hierarchies()} != set()


def test_the_kernels_name_of_blkio_is_io() -> None:
    assert (Hierarchy(7, "/x", "blkio").enumerator, PIDS.enumerator) == ("io_cgrp_id", "pids_cgrp_id")
