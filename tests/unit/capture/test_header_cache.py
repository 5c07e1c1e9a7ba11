# SPDX-License-Identifier: Apache-2.0
"""The generated kernel headers are made once for each kernel and bpftool, and never used with another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture import headers
from rover_plugin.capture.btf import BTF_PATH
from rover_plugin.capture.headers import kernel_tree
from rover_plugin.errors import CaptureError

if TYPE_CHECKING:
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
    monkeypatch.setattr(headers, "CACHE_ROOTS", (tmp_path / "cache",))
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
