# SPDX-License-Identifier: Apache-2.0
"""Parcels that memory has no room for, in files, until the backend takes them; also across a restart of the agent.

A file holds some parcels and is never changed: it is written whole, under another name until then, and removed before
the first of its parcels is sent. So nothing is sent twice, and what a crash takes are the parcels in memory.

Little-endian: magic `ROVERSPL`, u16 version, boot id (16 bytes), i64 wall clock minus CLOCK_MONOTONIC (ns), u64 kernel
logs and u64 protocol logs in the file, u32 parcels; then for each u32 length, u32 messages, u32 kernel logs, u32
protocol logs, u32 CRC-32 of the body, and the body.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import stat
import struct
import threading
import zlib
from collections import deque
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.access_log.outputs.parcel import Parcel, logs_in
from rover_plugin.backend.node import ClockBase
from rover_plugin.errors import RoverError
from rover_plugin.telemetry.ledger import Logs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = structlog.get_logger(__name__)

_MAGIC: Final = b"ROVERSPL"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sH16sqQQI")
_PARCEL: Final = struct.Struct("<IIIII")
_SUFFIX: Final = ".parcels"
_SECOND_NS: Final = 1_000_000_000
FILE_BYTES: Final = 1 << 20
_MOST_FILE_BYTES: Final = 64 << 20
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# Files of 1 MB or so that wait to be written; a disk that does not keep up must not hold more in memory.
_MOST_WAITING: Final = 8
_KEY: Final = "access_log.spool.directory"


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size: int
    logs: Logs


class DiskSpool:
    """The files of one directory. `offer` never blocks; `load` and `keep` read and write.

    Args:
        directory: made with mode 0700 if it is missing; it must be ours alone.
        most_bytes: of all files; beyond it the oldest file is removed.
        lock: the owner's, so that what is here and what the owner holds can be counted at one moment.
        lost: called with what was dropped, and why, under that lock.

    Raises:
        RoverError: the directory cannot be used, or another agent uses it.
    """

    def __init__(
        self, directory: Path, most_bytes: int, lock: threading.Condition, lost: Callable[[Logs, str], None]
    ) -> None:
        self._directory = directory
        self._most_bytes = most_bytes
        self._lock = lock
        self._lost = lost
        self._boot_id = bytes.fromhex(_BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""))
        self._lock_file = _claim(directory)
        self._files = deque(self._found())
        self._number = 1 + max((int(file.path.stem) for file in self._files), default=0)
        self._moving = Logs(0, 0)  # on their way into a file, or out of one
        self._waiting: queue.Queue[list[Parcel] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="disk-spool", daemon=True)
        self._thread.start()

    @property
    def logs(self) -> Logs:
        """What is in files, and what is on its way into one or out of it; under the lock."""
        total = self._moving
        for file in self._files:
            total = _sum(total, file.logs)
        return total

    @property
    def filled(self) -> bool:
        """Whether there is a file to load; under the lock."""
        return bool(self._files)

    def offer(self, parcels: Sequence[Parcel]) -> bool:
        """Takes parcels, to be written soon; false if the disk does not keep up. Under the lock."""
        try:
            self._waiting.put_nowait(list(parcels))
        except queue.Full:
            return False
        self._moving = _sum(self._moving, logs_in(parcels))
        return True

    def keep(self, parcels: Sequence[Parcel]) -> None:
        """Writes parcels now; what cannot be written is lost. Under the lock: the owner gives them up with this."""
        self._moving = _sum(self._moving, logs_in(parcels))
        self._write(parcels)

    def load(self, take: Callable[[list[Parcel]], None]) -> None:
        """Gives the oldest file's parcels, if there is one, to `take`, under the lock, and removes the file."""
        with self._lock:
            if not self._files:
                return
            file = self._files.popleft()
            self._moving = _sum(self._moving, file.logs)
        parcels: list[Parcel] = []
        try:
            parcels = _read(file.path, self._boot_id)
        except (OSError, ValueError, struct.error) as error:
            log.warning("spool_file_damaged", path=str(file.path), error=str(error))
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            # It would be sent again by the next run, and the backend cannot recognise that.
            log.warning("spool_file_not_removed", path=str(file.path), error=error.strerror)
        with self._lock:
            self._moving = _difference(self._moving, file.logs)
            missing = _difference(file.logs, logs_in(parcels))
            if any(missing):
                self._lost(missing, "spool_damaged")
            take(parcels)

    def close(self) -> None:
        """Writes what is on its way, and gives the directory up; a second time it does nothing."""
        if self._lock_file < 0:
            return
        self._waiting.put(None)
        self._thread.join()
        os.close(self._lock_file)
        self._lock_file = -1

    def _run(self) -> None:
        while (parcels := self._waiting.get()) is not None:
            self._write(parcels)

    def _write(self, parcels: Sequence[Parcel]) -> None:
        for _, group in groupby(parcels, key=lambda parcel: parcel.boot_seconds):
            together: list[Parcel] = []
            for parcel in group:
                together.append(parcel)
                if sum(len(one.body) for one in together) >= FILE_BYTES:
                    self._write_file(together)
                    together = []
            if together:
                self._write_file(together)

    def _write_file(self, parcels: Sequence[Parcel]) -> None:
        logs = logs_in(parcels)
        data = _pack(parcels, self._boot_id)
        with self._lock:
            path = self._directory / f"{self._number:020d}{_SUFFIX}"
            self._number += 1
        fresh = path.with_suffix(".new")
        written = True
        try:
            _write_whole(fresh, data)
            fresh.rename(path)
        except OSError as error:
            written = False
            log.warning("spool_file_not_written", path=str(path), error=error.strerror)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
        with self._lock:
            self._moving = _difference(self._moving, logs)
            if written:
                self._files.append(_File(path, len(data), logs))
                self._trim()
            else:
                self._lost(logs, "spool_not_written")

    def _trim(self) -> None:
        """Removes the oldest files until the rest is within the bound; under the lock."""
        while sum(file.size for file in self._files) > self._most_bytes:
            file = self._files.popleft()
            with contextlib.suppress(OSError):
                file.path.unlink(missing_ok=True)
            self._lost(file.logs, "spool_full")

    def _found(self) -> list[_File]:
        """The files that an earlier run left, the oldest first; what is no such file is left alone."""
        files = []
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                with os.fdopen(descriptor, "rb") as file:
                    size = _checked_size(file.fileno())
                    logs = Logs(*_HEAD.unpack(file.read(_HEAD.size))[4:6])
            except (OSError, ValueError, struct.error) as error:
                log.warning("spool_file_damaged", path=str(path), error=str(error))
                continue
            if path.stem.isdecimal() and path.stem.isascii():
                files.append(_File(path, size, logs))
        for leftover in self._directory.glob("*.new"):
            leftover.unlink(missing_ok=True)
        return files


def _claim(directory: Path) -> int:
    """Makes sure that the directory is ours alone; returns the descriptor that holds the claim."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            raise RoverError(
                f"the spool's directory {directory} is not this user's alone",
                hint=f"set {_KEY} to a directory that only this user can write to",
                key=_KEY,
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(directory / "lock", flags, 0o600)
    except OSError as error:
        message = f"the spool's directory {directory} cannot be used ({error.strerror})"
        raise RoverError(message, hint=f"set {_KEY} to a writable directory, or leave it empty", key=_KEY) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        message = f"another agent uses the spool's directory {directory}"
        raise RoverError(message, hint=f"give each agent its own {_KEY}", key=_KEY) from error
    return descriptor


def _checked_size(descriptor: int) -> int:
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_size > _MOST_FILE_BYTES:
        message = "not a file of this agent"
        raise ValueError(message)
    return facts.st_size


def _read(path: Path, boot_id: bytes) -> list[Parcel]:
    """The parcels of a file that are whole.

    Raises:
        OSError, ValueError, struct.error: it cannot be read, or is no such file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_checked_size(file.fileno()))
    magic, version, written_in, boot_ns, _, _, count = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        message = "not a file of this version"
        raise ValueError(message)
    boot_seconds = 0 if written_in == boot_id else (boot_ns + _SECOND_NS // 2) // _SECOND_NS
    parcels = []
    at = _HEAD.size
    for _ in range(count):
        if at + _PARCEL.size > len(data):
            break
        length, messages, kernel_logs, protocol_logs, checksum = _PARCEL.unpack_from(data, at)
        at += _PARCEL.size
        body = bytearray(data[at : at + length])
        at += length
        if len(body) < length or zlib.crc32(body) != checksum:
            break
        parcels.append(Parcel(body, messages, kernel_logs, protocol_logs, boot_seconds))
    return parcels


def _pack(parcels: Sequence[Parcel], boot_id: bytes) -> bytes:
    """A file's content; all parcels are of one boot."""
    base = ClockBase.now()
    boot_ns = base.boot_seconds * _SECOND_NS + base.offset_ns
    if parcels[0].boot_seconds:
        boot_id, boot_ns = bytes(16), parcels[0].boot_seconds * _SECOND_NS
    parts: list[bytes | bytearray] = [_HEAD.pack(_MAGIC, _VERSION, boot_id, boot_ns, *logs_in(parcels), len(parcels))]
    for parcel in parcels:
        sums = (parcel.messages, parcel.kernel_logs, parcel.protocol_logs, zlib.crc32(parcel.body))
        parts += (_PARCEL.pack(len(parcel.body), *sums), parcel.body)
    return b"".join(parts)


def _write_whole(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) or 0 :]


def _sum(first: Logs, second: Logs) -> Logs:
    return Logs(first.kernel + second.kernel, first.protocol + second.protocol)


def _difference(first: Logs, second: Logs) -> Logs:
    return Logs(first.kernel - second.kernel, first.protocol - second.protocol)
