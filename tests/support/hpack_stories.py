# SPDX-License-Identifier: Apache-2.0
"""The third-party HPACK stories in tests/data/hpack."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rover_plugin.access_log.protocols.http2.hpack import READERS, Kept

if TYPE_CHECKING:
    from collections.abc import Iterable

_FOLDER = Path(__file__).parents[1] / "data" / "hpack"

ENCODERS = sorted(path.stem for path in _FOLDER.glob("*.txt"))


@dataclass(frozen=True)
class Case:
    """One header block.

    Attributes:
        table_size: what SETTINGS_HEADER_TABLE_SIZE became before it, or None.
        block: as encoded.
        headers: what it says.
    """

    table_size: int | None
    block: bytes
    headers: list[tuple[str, str]]

    @property
    def is_request(self) -> bool:
        return any(name == ":method" for name, _ in self.headers)

    def first(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


def stories(encoder: str) -> dict[str, list[Case]]:
    """What one encoder made of each story; the blocks of a story share one dynamic table."""
    headers = {}
    for line in (_FOLDER / "stories.jsonl").read_text().splitlines():
        story, number, fields = json.loads(line)
        headers[story, number] = [(name, value) for name, value in fields]
    result = defaultdict(list)
    for line in (_FOLDER / f"{encoder}.txt").read_text().splitlines():
        story, number, size, block = line.split(" ")
        case = Case(None if size == "-" else int(size), bytes.fromhex(block), headers[story, int(number)])
        result[story].append(case)
    return result


def as_kept(name: bytes, value: bytes) -> Kept:
    """What a decoder keeps of a field's value."""
    return READERS[name](value) if name in READERS else ""


def as_read(fields: Iterable[tuple[bytes, bytes]]) -> dict[bytes, Kept]:
    """The fields of a block that a decoder gives."""
    return {name: as_kept(name, value) for name, value in fields if name in READERS}
