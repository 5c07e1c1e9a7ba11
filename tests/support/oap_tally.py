# SPDX-License-Identifier: Apache-2.0
"""The OAP's own counters, kept in a mapped file where they must survive a SIGKILL (oap-contract F.1)."""

from __future__ import annotations

import mmap
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = (
    "kernel",  # kernel logs accepted
    "protocol",  # protocol logs accepted
    "dropped",  # logs dropped as invalid: k8s_als_drop_count
    "errors",  # messages that threw: k8s_als_error_streams
    "messages",
    "anomalies",
    "streams",  # opened
    "completed",  # answered with an empty downstream
    "refused",  # ended by a status other than OK
)
_SLOT = struct.Struct("<Q")
_OFFSETS = {name: index * _SLOT.size for index, name in enumerate(FIELDS)}


class Tally:
    """Thread-safe counters by name of FIELDS; `tally.kernel` reads one.

    Args:
        path: a file they live in; an existing one is continued. Without it they live in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        size = _SLOT.size * len(FIELDS)
        self._lock = threading.Lock()
        if path is None:
            self._slots: mmap.mmap | bytearray = bytearray(size)
            return
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._slots = mmap.mmap(file.fileno(), size)

    def add(self, **amounts: int) -> None:
        with self._lock:
            for name, amount in amounts.items():
                if amount:
                    at = _OFFSETS[name]
                    _SLOT.pack_into(self._slots, at, _SLOT.unpack_from(self._slots, at)[0] + amount)

    def __getattr__(self, name: str) -> int:
        if name not in _OFFSETS:
            raise AttributeError(name)
        return int(_SLOT.unpack_from(self._slots, _OFFSETS[name])[0])

    @property
    def in_count(self) -> int:
        """What the OAP exports as k8s_als_in_count."""
        return self.kernel + self.protocol

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in FIELDS} | {"in_count": self.in_count}
