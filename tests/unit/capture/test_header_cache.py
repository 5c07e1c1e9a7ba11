# SPDX-License-Identifier: Apache-2.0
"""The generated kernel headers are made once for each kernel and bpftool, and never used with another's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture import headers
from rover_plugin.capture.btf import BTF_PATH
from rover_plugin.capture.headers import kernel_tree
from rover_plugin.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(not BTF_PATH.exists(), reason="this kernel has no BTF")

_BPFTOOL = """#!/bin/sh
case $1 in
version) echo bpftool VERSION; echo using libbpf LIBBPF ;;
btf) echo dumped >>FOLDER/dumps; echo '/* by VERSION */' ;;
esac
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(headers, "cache_roots", lambda: [tmp_path / "cache"])
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "cache"


def install(folder: Path, version: str, libbpf: str = "v1.1") -> None:
    tool = folder / "bpftool"
    tool.write_text(_BPFTOOL.replace("VERSION", version).replace("LIBBPF", libbpf).replace("FOLDER", str(folder)))
    tool.chmod(0o755)


def dumps(folder: Path) -> int:
    return len((folder / "dumps").read_text().splitlines())


def test_the_second_time_nothing_is_dumped(tmp_path: Path) -> None:
    install(tmp_path, "v7.1.0")
    assert kernel_tree() == kernel_tree()
    assert dumps(tmp_path) == 1


@pytest.mark.parametrize("other", [("v7.5.0", "v1.1"), ("v7.1.0", "v1.5")])
def test_another_bpftool_or_libbpf_makes_headers_of_its_own(tmp_path: Path, other: tuple[str, str]) -> None:
    install(tmp_path, "v7.1.0")
    first = kernel_tree()
    install(tmp_path, *other)
    second = kernel_tree()
    assert second != first
    assert dumps(tmp_path) == 2
    assert f"/* by {other[0]} */" in (second / "include/linux/vmlinux.h").read_text()
    install(tmp_path, "v7.1.0")
    assert kernel_tree() == first
    assert dumps(tmp_path) == 2


def test_a_bpftool_that_does_not_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "bpftool").write_text("#!/bin/sh\necho no such kernel >&2; exit 2\n")
    (tmp_path / "bpftool").chmod(0o755)
    with pytest.raises(CaptureError, match="bpftool does not run: no such kernel"):
        kernel_tree()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user: needs root")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: os.chown(tree, 65534, 65534),
        lambda tree: os.chown(tree.parent, 65534, 65534),
        lambda tree: tree.chmod(0o777),
        lambda tree: tree.parent.chmod(0o1777),
        lambda tree: os.chown(tree / "include/linux/kconfig.h", 65534, 65534),
        lambda tree: (tree / "include/linux/kconfig.h").chmod(0o666),
        lambda tree: (tree.rename(f"{tree}-moved"), tree.symlink_to(f"{tree}-moved")),
        lambda tree: (tree / "include/linux/extra.h").symlink_to("/etc/shadow"),
        lambda tree: (tree.parent / "twice").hardlink_to(tree / "include/linux/kconfig.h"),
        lambda tree: (tree / "complete").unlink(),
    ],
)
def test_headers_that_others_may_have_touched_are_not_used(
    tmp_path: Path, cache: Path, spoil: Callable[[Path], object]
) -> None:
    install(tmp_path, "v7.1.0")
    first = kernel_tree()
    assert first.parent == cache
    (first / "include/linux/kconfig.h").write_text("planted")
    spoil(first)
    second = kernel_tree()
    assert "planted" not in (second / "include/linux/kconfig.h").read_text()
    assert second != first


def test_where_nothing_can_be_kept_headers_are_made_for_once(tmp_path: Path, cache: Path) -> None:
    install(tmp_path, "v7.1.0")
    cache.write_text("in the way")
    tree = kernel_tree()
    assert (tree / "complete").exists()
    assert tree.stat().st_mode & 0o777 == 0o700
    assert kernel_tree() != tree


def test_no_cache_is_in_a_folder_that_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/one:/var/cache/two")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    roots = [str(root) for root in headers.cache_roots()]
    assert roots == ["/var/cache/one", "/var/cache/rover", "/run/one", "/run/rover"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert "/home/me/.cache/rover" in [str(root) for root in headers.cache_roots()]
