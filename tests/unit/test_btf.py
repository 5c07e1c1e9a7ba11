# SPDX-License-Identifier: Apache-2.0
"""Type numbers out of BTF: of a section written by hand, and of the running kernel as bpftool counts them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess

import pytest

from rover_plugin.capture.btf import Kind, type_ids
from rover_plugin.capture.headers import BTF_PATH

STRINGS = b"\0int\0my_file\0file\0read\0"
INT, STRUCT, PTR, ENUM, FUNC = 1, 4, 2, 6, 12


def a_type(kind: int, name: str, members: int, behind: bytes = b"") -> bytes:
    return struct.pack("=III", STRINGS.index(name.encode() + b"\0") if name else 0, kind << 24 | members, 0) + behind


def section(*types: bytes) -> bytes:
    body = b"".join(types)
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(STRINGS)) + body + STRINGS


def test_numbers_count_every_type_and_names_are_whole() -> None:
    blob = section(
        a_type(INT, "int", 0, bytes(4)),
        a_type(STRUCT, "my_file", 2, bytes(24)),
        a_type(PTR, "", 0),
        a_type(ENUM, "read", 3, bytes(24)),
        a_type(STRUCT, "file", 0),
        a_type(STRUCT, "file", 0),
        a_type(FUNC, "read", 0),
    )
    wanted = [(Kind.STRUCT, "file"), (Kind.FUNC, "read"), (Kind.FUNC, "write")]
    assert type_ids(blob, wanted) == {(Kind.STRUCT, "file"): 5, (Kind.FUNC, "read"): 7}


def test_other_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="not BTF"):
        type_ids(bytes(64), [(Kind.STRUCT, "file")])


@pytest.mark.skipif(not BTF_PATH.exists(), reason="this kernel has no BTF")
def test_the_running_kernel_as_bpftool_counts() -> None:
    bpftool = shutil.which("bpftool", path="/usr/sbin:/usr/bin")
    if bpftool is None:
        pytest.skip("bpftool is not installed")
    text = subprocess.run([bpftool, "btf", "dump", "file", BTF_PATH], capture_output=True, text=True, check=True).stdout
    wanted = [(Kind.STRUCT, "file"), (Kind.STRUCT, "tcp_sock"), (Kind.FUNC, "tcp_close")]
    expected = {}
    for kind, name in wanted:
        match = re.search(rf"^\[(\d+)\] {kind.name} '{name}'", text, re.MULTILINE)
        assert match
        expected[kind, name] = int(match[1])
    assert type_ids(BTF_PATH.read_bytes(), wanted) == expected
