# SPDX-License-Identifier: Apache-2.0
"""bpf/records.h and rover_plugin/capture/records.py say the same, number by number. Needs gcc, no privileges."""

from __future__ import annotations

import re
import struct  # noqa: TC003 used at run time by the table below
import subprocess
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture import records
from rover_plugin.capture.session import Statistic
from rover_plugin.data import data_path

if TYPE_CHECKING:
    from enum import IntEnum
    from pathlib import Path

HEADER = ["kind", "call", "direction", "flags", "lane", "sequence", "tgid", "connection", "enter_ns", "exit_ns"]
OPEN = [
    "local",
    "remote",
    "local_port",
    "remote_port",
    "family",
    "cause",
    "state",
    "netns",
    "error",
    "written",
    "read",
    "cookie",
]
# The fields each Struct unpacks, in its order; `reserved` is skipped by both.
STRUCTS = {
    "record_header": (records.HEADER, HEADER),
    "call_record": (records.CALL, [*HEADER, *["size", "offset", "captured", "position", "opposite", "tid"]]),
    "call_piece": (records.PIECE, ["unseen", "length"]),
    "call_chunks": (records.CHUNKS, ["front", "unseen", "content", "left"]),
    "open_record": (records.OPEN, [*HEADER, *OPEN]),
    "met_record": (records.MET, [*HEADER, *OPEN, "first_written", "first_read"]),
    "close_record": (
        records.CLOSE,
        [*HEADER, *["written", "read", "retransmitted", "smoothed_rtt_us", "bytes_received", "bytes_acked"]],
    ),
}
ENUMS = {"record_kind": records.RecordKind, "open_cause": records.OpenCause, "call_class": records.CallClass}
TYPES = "".join(
    f"typedef {'' if sign == 's' else 'u'}int{bits}_t __{sign}{bits};" for sign in "us" for bits in (8, 16, 32, 64)
)


def member(name: str, field: str) -> str:
    if name == "met_record" and field in (*HEADER, *OPEN):
        return f"open.{member('open_record', field)}"
    return field if name == "record_header" or field not in HEADER else f"header.{field}"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """sizeof and offsetof of everything, and the constants, as gcc sees them."""
    folder: Path = tmp_path_factory.mktemp("layout")
    header = data_path("bpf") / "records.h"
    wanted = {}
    for name, (_, fields) in STRUCTS.items():
        wanted[f"sizeof {name}"] = f"sizeof(struct {name})"
        for field in fields:
            place = member(name, field)
            wanted[f"{name}.{field}"] = f"offsetof(struct {name}, {place})"
            wanted[f"{name}.{field} size"] = f"sizeof(((struct {name} *)0)->{place})"
    constants = re.findall(r"^\t(\w+) = \d+,", header.read_text(), re.MULTILINE)
    constants += re.findall(r"^#define (\w+) \d+", header.read_text(), re.MULTILINE)
    wanted |= {name: name for name in constants}
    prints = "".join(f'printf("{label}=%lld\\n", (long long)({what}));' for label, what in wanted.items())
    source = folder / "layout.c"
    source.write_text(
        f'#include <stdint.h>\n#include <stddef.h>\n#include <stdio.h>\n{TYPES}\n#include "{header}"\n'
        f"int main(void) {{ {prints} return 0; }}\n"
    )
    program = folder / "layout"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    return {label: int(value) for label, _, value in (line.partition("=") for line in lines)}


def places(layout: struct.Struct) -> list[tuple[int, int]]:
    """(offset, size) of every field of a Struct, found by unpacking: no second reading of its format."""
    marks: dict[int, list[int]] = {}
    blank = layout.unpack(bytes(layout.size))
    for at in range(layout.size):
        raw = bytearray(layout.size)
        raw[at] = 1
        for index, (value, empty) in enumerate(zip(layout.unpack(raw), blank, strict=True)):
            if value != empty:
                marks.setdefault(index, []).append(at)
    return [(marks[index][0], len(marks[index])) for index in range(len(blank))]


@pytest.mark.parametrize("name", STRUCTS)
def test_every_size_and_offset_is_the_same_on_both_sides(compiled: dict[str, int], name: str) -> None:
    layout, fields = STRUCTS[name]
    assert layout.size == compiled[f"sizeof {name}"]
    assert layout.size % 8 == 0
    expected = [(compiled[f"{name}.{field}"], compiled[f"{name}.{field} size"]) for field in fields]
    assert places(layout) == expected


@pytest.mark.parametrize("name", ENUMS)
def test_enums_have_the_same_members(compiled: dict[str, int], name: str) -> None:
    python: type[IntEnum] = ENUMS[name]
    prefix = {"record_kind": "RECORD_", "open_cause": "CAUSE_", "call_class": "CALL_"}[name]
    kernel = {label.removeprefix(prefix): value for label, value in compiled.items() if label.startswith(prefix)}
    kernel.pop("CLASSES", None)
    assert kernel == {item.name: item.value for item in python}


def test_flags_are_the_same(compiled: dict[str, int]) -> None:
    assert compiled["OPEN_FAILED"] == records.OPEN_FAILED
    assert compiled["OPEN_BEGINNINGS"] == records.OPEN_BEGINNINGS
    assert compiled["CLOSE_BY_PEER"] == records.CLOSE_BY_PEER
    assert compiled["CLOSE_PEER_ENDED"] == records.CLOSE_PEER_ENDED
    assert compiled["CLOSE_SHUT_FIRST"] == records.CLOSE_SHUT_FIRST


def test_statistics_are_the_same() -> None:
    text = (data_path("bpf") / "maps.h").read_text()
    kernel = {name: int(value) for name, value in re.findall(r"^\tSTAT_(\w+) = (\d+),", text, re.MULTILINE)}
    assert kernel == {item.name: item.value for item in Statistic}
