# SPDX-License-Identifier: Apache-2.0
"""What lines are written to: standard output, or a file that is opened with care and may be rotated."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.errors import RoverError
from rover_plugin.outlet import DescriptorOutlet, stream_outlet

if TYPE_CHECKING:
    from typing import IO

    from rover_plugin.outlet import Outlet

log = structlog.get_logger(__name__)

# How often to look whether a file was rotated, or a FIFO has a reader.
_LOOK_S: Final = 1.0
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MODE: Final = 0o600
_STANDARD_OUTPUT: Final = frozenset(("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"))


def is_standard_output(path: str) -> bool:
    """Whether `path` is one of the names of standard output."""
    return path in _STANDARD_OUTPUT


class StreamTarget:
    """A standard stream, or None if it was closed when this process began."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._outlet: Outlet | None = None
        if stream is not None:
            try:
                self._outlet = stream_outlet(stream)
            except OSError:
                return

    def outlet(self) -> Outlet | None:
        """See `Target.outlet`."""
        if self._outlet is None:
            raise OSError(errno.EBADF, "it is closed")
        return self._outlet

    def broken(self) -> bool:
        """See `Target.broken`: of what has no name there is only the one reader."""
        return self._outlet is not None and self._outlet.lasting

    def cut(self, written: int) -> None:
        """Who else writes there is not known, so it stays."""

    def close(self) -> None:
        """See `Target.close`."""
        if self._outlet is not None:
            self._outlet.close()


class FileTarget:
    """A file or FIFO of ours, appended to; when another stands in its place, as after a rotation, that one.

    A symbolic link, a file of another user, and one with several names are refused: this process may be root, and
    whoever made them would choose what it writes to, and who reads it. A new file can be read by its owner only; the
    mode of one that was there is its owner's choice.

    Raises:
        RoverError: it cannot be opened. A FIFO without a reader can.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self._outlet: DescriptorOutlet | None = None
        self._torn = False
        self._looked_at = 0.0
        try:
            self._open()
        except OSError as error:
            raise RoverError(
                f"cannot write access logs to {path}: {error.strerror}",
                hint="set access_log.jsonl.path to a file in a writable directory, or to - for standard output",
                path=path,
            ) from error

    def outlet(self) -> Outlet | None:
        """See `Target.outlet`."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            if self._outlet is None or self._replaced():
                self._reopen()
        if self._torn:  # whoever wrote it before could not finish its last line
            os.write(self._descriptor, b"\n")
            self._torn = False
        return self._outlet

    def broken(self) -> bool:
        """See `Target.broken`: a FIFO may be opened by another reader."""
        self._release()
        self._looked_at = 0.0
        return True

    def cut(self, written: int) -> None:
        """Takes the beginning of a line back that will not get an end."""
        if self._outlet is None or not self._outlet.regular:
            return
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if os.fstat(self._descriptor).st_size == end:
            os.ftruncate(self._descriptor, end - written)

    def close(self) -> None:
        """See `Target.close`."""
        self._release()

    def _open(self) -> None:
        try:
            descriptor = os.open(self._path, _FLAGS, _MODE)
        except OSError as error:
            if error.errno == errno.ENXIO and stat.S_ISFIFO(os.lstat(self._path).st_mode):
                return
            if error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, "it is a symbolic link") from error
            raise
        try:
            _check(os.fstat(descriptor))
            outlet = DescriptorOutlet(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._release()
        self._descriptor, self._outlet = descriptor, outlet
        self._torn = outlet.regular and _ends_in_the_middle(descriptor)

    def _reopen(self) -> None:
        try:
            self._open()
        except OSError as error:
            if self._outlet is None:
                raise
            log.warning("output_not_reopened", path=self._path, error=error.strerror)

    def _replaced(self) -> bool:
        if self._outlet is None or not self._outlet.regular:
            return False
        try:
            there = Path(self._path).lstat()
        except OSError:
            return True
        ours = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _release(self) -> None:
        if self._outlet is not None:
            self._outlet.close()
            os.close(self._descriptor)
            self._outlet = None


def _check(facts: os.stat_result) -> None:
    if stat.S_ISCHR(facts.st_mode):
        return  # a terminal, /dev/null
    if facts.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"it belongs to another user (uid {facts.st_uid})")
    if facts.st_nlink > 1:
        raise OSError(errno.EPERM, "it has another name, too (a hard link)")
    if stat.S_ISREG(facts.st_mode) and facts.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        log.warning("output_open_to_others", mode=oct(stat.S_IMODE(facts.st_mode)))


def _ends_in_the_middle(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    if not size:
        return False
    try:
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
            file.seek(size - 1)
            return file.read(1) != b"\n"
    except OSError:
        return False
