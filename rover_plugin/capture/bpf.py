# SPDX-License-Identifier: Apache-2.0
"""The few bpf(2) commands that are needed once programs are loaded: maps by descriptor, and attaching.

bcc compiles and loads in a helper process that exits (see `loader`); what it leaves are file descriptors. The command
numbers and `union bpf_attr` layouts are the kernel's UAPI (include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from rover_plugin.errors import CaptureError, PrivilegeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAP_LOOKUP_ELEM = 1
_MAP_UPDATE_ELEM = 2
_MAP_DELETE_ELEM = 3
_MAP_GET_NEXT_KEY = 4
_OBJ_GET_INFO_BY_FD = 15
_RAW_TRACEPOINT_OPEN = 17
_MAP_LOOKUP_BATCH = 24
_ENABLE_STATS = 32

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
# union bpf_attr, `batch`: in_batch, out_batch, keys, values, count, map_fd, elem_flags, flags
_BATCH = struct.Struct("=QQQQIIQQ")
_BATCH_ENTRIES = 4096
# struct bpf_prog_info: run_time_ns, run_cnt, recursion_misses
_RUNS_OFFSET = 192
_RUNS = struct.Struct("=QQQ")
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise CaptureError(f"no bpf(2) number is known for {platform.machine()}", hint="x86-64 and arm64 are supported")
    result: int = _libc.syscall(number, command, attributes, len(attributes))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def possible_cpus() -> int:
    """Number of CPUs the kernel may ever have; per-CPU map values have one slot each."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1].split("-")[-1]
    return int(last) + 1


class Map:
    """A BPF map behind a file descriptor; keys and values are bytes of exactly the map's sizes."""

    def __init__(self, descriptor: int) -> None:
        self.fd = descriptor
        info = ctypes.create_string_buffer(88)
        _bpf(
            _OBJ_GET_INFO_BY_FD,
            ctypes.create_string_buffer(struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info))),
        )
        self.type, self.id, self.key_size, self.value_size, self.max_entries = struct.unpack_from("=IIIII", info)
        per_cpu_types = (5, 6, 10)  # PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
        slots = possible_cpus() if self.type in per_cpu_types else 1
        self._size = (self.value_size + 7 & ~7) * slots if slots > 1 or self.type in per_cpu_types else self.value_size

    def _call(self, command: int, key: bytes | None, value: object | None, flags: int = 0) -> None:
        key_buffer = ctypes.create_string_buffer(key, len(key)) if key is not None else None
        attributes = struct.pack(
            "=IIQQQ",
            self.fd,
            0,
            ctypes.addressof(key_buffer) if key_buffer is not None else 0,
            ctypes.addressof(value) if value is not None else 0,  # type: ignore[arg-type]
            flags,
        )
        _bpf(command, ctypes.create_string_buffer(attributes, len(attributes)))

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None. Per-CPU maps return all slots one after another, each padded to 8 bytes."""
        value = ctypes.create_string_buffer(self._size)
        try:
            self._call(_MAP_LOOKUP_ELEM, key, value)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def set(self, key: bytes, value: bytes) -> None:
        """Inserts or replaces. Raises OSError(E2BIG) when the map is full."""
        self._call(_MAP_UPDATE_ELEM, key, ctypes.create_string_buffer(value, len(value)))

    def delete(self, key: bytes) -> bool:
        """Deletes `key`; False if it was not there."""
        try:
            self._call(_MAP_DELETE_ELEM, key, None)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def count(self) -> int:
        """Number of entries of a hash map, read in batches (kernel/bpf/hashtab.c, __htab_map_lookup_batch)."""
        # A batch ends before the first bucket that does not fit, so it must hold the longest chain there may be.
        most = min(self.max_entries, _BATCH_ENTRIES)
        keys = ctypes.create_string_buffer(most * self.key_size)
        values = ctypes.create_string_buffer(most * self._size)
        place = ctypes.create_string_buffer(4)  # the next bucket
        beginning, total = 0, 0
        while True:
            addresses = (ctypes.addressof(place), ctypes.addressof(keys), ctypes.addressof(values))
            attributes = ctypes.create_string_buffer(
                _BATCH.pack(beginning, *addresses, most, self.fd, 0, 0), _BATCH.size
            )
            try:
                _bpf(_MAP_LOOKUP_BATCH, attributes)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                return total + int(_BATCH.unpack(attributes.raw)[4])  # this was the last
            total += int(_BATCH.unpack(attributes.raw)[4])
            beginning = ctypes.addressof(place)

    def keys(self) -> Iterator[bytes]:
        """Every key. Entries added or deleted meanwhile may be missed or seen twice."""
        key: bytes | None = None
        while True:
            following = ctypes.create_string_buffer(self.key_size)
            try:
                self._call(_MAP_GET_NEXT_KEY, key, following)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = following.raw
            yield key


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Attaches a loaded program to the raw tracepoint `name`; it stays attached while the returned descriptor is open.

    Raises:
        PrivilegeError: the kernel refuses us.
        CaptureError: the kernel has no such tracepoint.
    """
    text = ctypes.create_string_buffer(name.encode())
    attributes = struct.pack("=QII", ctypes.addressof(text), program, 0)
    try:
        return _bpf(_RAW_TRACEPOINT_OPEN, ctypes.create_string_buffer(attributes, len(attributes)))
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise PrivilegeError(
                f"not allowed to attach to the tracepoint {name}", hint="run as root, or with CAP_BPF and CAP_PERFMON"
            ) from error
        raise CaptureError(f"cannot attach to the tracepoint {name}: {error.strerror}", tracepoint=name) from error


def program_statistics(program: int) -> dict[str, int]:
    """Runs, nanoseconds (both only while BPF statistics are on) and recursion misses of a loaded program."""
    info = ctypes.create_string_buffer(232)
    _bpf(
        _OBJ_GET_INFO_BY_FD,
        ctypes.create_string_buffer(struct.pack("=IIQ", program, len(info), ctypes.addressof(info))),
    )
    run_time_ns, run_count, misses = struct.unpack_from("=QQQ", info, 192)
    return {"run_time_ns": run_time_ns, "runs": run_count, "misses": misses}


def enable_statistics() -> int:
    """Has the kernel count runs of all BPF programs until the returned descriptor is closed (since 5.8).

    Raises:
        CaptureError: the kernel refuses.
    """
    attributes = ctypes.create_string_buffer(struct.pack("=I", 0), 4)  # BPF_STATS_RUN_TIME
    try:
        return _bpf(_ENABLE_STATS, attributes)
    except OSError as error:
        raise CaptureError(f"the kernel does not count the runs of BPF programs: {error.strerror}") from error


def program_runs(program: int) -> tuple[int, int, int]:
    """Nanoseconds spent in a program, its runs, and runs missed because it was running, while they were counted."""
    info = ctypes.create_string_buffer(_RUNS_OFFSET + _RUNS.size)
    request = struct.pack("=IIQ", program, len(info), ctypes.addressof(info))
    _bpf(_OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(request, len(request)))
    nanoseconds, runs, missed = _RUNS.unpack_from(info, _RUNS_OFFSET)
    return nanoseconds, runs, missed
