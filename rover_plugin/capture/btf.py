# SPDX-License-Identifier: Apache-2.0
"""Numbers of types in the kernel's BTF, as programs name them to the verifier (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

BTF_PATH = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")


class Kind(IntEnum):
    """Kinds of types that are looked for (include/uapi/linux/btf.h)."""

    STRUCT = 4
    FUNC = 12


# Bytes behind a type, by kind (INT, ARRAY, STRUCT, UNION, ENUM, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64): fixed, and
# for each of its members.
_BEHIND = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}


def type_ids(blob: bytes, wanted: Collection[tuple[Kind, str]]) -> dict[tuple[Kind, str], int]:
    """The number of each wanted type that `blob` (a whole BTF section) has; of equal names the first.

    Raises:
        ValueError: it is no BTF of this machine's byte order.
    """
    magic, _, _, header_size, type_offset, type_size, string_offset, _ = _HEADER.unpack_from(blob)
    if magic != _MAGIC:
        raise ValueError("not BTF")
    names = {(kind, name): name.encode() + b"\0" for kind, name in wanted}
    kinds = {kind for kind, _ in wanted}
    found: dict[tuple[Kind, str], int] = {}
    strings = header_size + string_offset
    at, number = header_size + type_offset, 0
    end = at + type_size
    while at < end:
        number += 1
        name_offset, info, _ = _TYPE.unpack_from(blob, at)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        if kind in kinds:
            for key, text in names.items():
                if key[0] == kind and key not in found and blob.startswith(text, strings + name_offset):
                    found[key] = number
        fixed, each = _BEHIND.get(kind, (0, 0))
        at += _TYPE.size + fixed + each * members
    return found
