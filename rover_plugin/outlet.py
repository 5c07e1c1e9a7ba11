# SPDX-License-Identifier: Apache-2.0
"""A descriptor that is written to and never waited for: standard output and error, files, pipes, terminals, sockets.

O_NONBLOCK belongs to the open file, which standard streams share with the shell and with other processes. So a pipe or
terminal is opened a second time for us alone, through /proc; a socket takes MSG_DONTWAIT; a regular file waits for no
reader.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from typing import IO

_PIPE_BUF: Final = select.PIPE_BUF


class Outlet(Protocol):
    """Where bytes go."""

    lasting: bool  # one that fails because nobody reads may have a reader again

    def write(self, data: bytes | memoryview) -> int:
        """Writes what can be written now; returns how many bytes that was, 0 if it would have to wait.

        Raises:
            OSError: nothing can be written.
        """

    def wait(self, timeout_s: float) -> bool:
        """Waits until something can be written, or has failed; False if that takes too long."""

    def close(self) -> None:
        """Frees it."""


class DescriptorOutlet:
    """Writes to what `descriptor` is open for; the descriptor stays the caller's, as it is.

    Raises:
        OSError: it is not open.
    """

    def __init__(self, descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        self._socket: socket.socket | None = None
        self._careful = False
        self.regular = stat.S_ISREG(mode)
        self.lasting = not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) or _has_name(descriptor)
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
            self.descriptor = self._socket.fileno()
        elif self.regular:
            self.descriptor = os.dup(descriptor)
        else:
            try:
                self.descriptor = _open_again(descriptor)
            except OSError:  # another user's, or its reader has gone
                self.descriptor = os.dup(descriptor)
                self._careful = True
        self._poll = select.poll()
        self._poll.register(self.descriptor, select.POLLOUT)

    def write(self, data: bytes | memoryview) -> int:
        """See `Outlet.write`."""
        if self._careful:
            if not self._poll.poll(0):
                return 0
            # One that polls as writable takes so many without waiting (pipe(7)).
            data = data[:_PIPE_BUF]
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            return os.write(self.descriptor, data)
        except BlockingIOError:
            return 0

    def wait(self, timeout_s: float) -> bool:
        """See `Outlet.wait`."""
        return bool(self._poll.poll(timeout_s * 1000))

    def reader_left(self) -> bool:
        """Whether the other end of a pipe is closed; of anything else, False."""
        return any(event & select.POLLERR for _, event in self._poll.poll(0))

    def close(self) -> None:
        """See `Outlet.close`."""
        # Once only: by then the number may be another file's.
        descriptor, self.descriptor = self.descriptor, -1
        if self._socket is not None:
            self._socket.close()
        elif descriptor >= 0:
            os.close(descriptor)


class StreamOutlet:
    """Writes to a text stream without a descriptor, such as one that a test reads."""

    lasting = True

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, data: bytes | memoryview) -> int:
        """See `Outlet.write`."""
        self._stream.write(bytes(data).decode(errors="replace"))
        self._stream.flush()
        return len(data)

    def wait(self, timeout_s: float) -> bool:  # noqa: ARG002 it never has to
        """See `Outlet.wait`."""
        return True

    def close(self) -> None:
        """It stays the caller's."""


def stream_outlet(stream: IO[str]) -> Outlet:
    """The outlet behind a text stream; what the stream holds goes first, if it can.

    Raises:
        OSError: the stream's descriptor is not open.
    """
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return StreamOutlet(stream)
    return DescriptorOutlet(descriptor)


def _has_name(descriptor: int) -> bool:
    """Whether it is a FIFO in a file system: another reader may open it."""
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink().is_absolute()
    except OSError:
        return False


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person reads it."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def coloured(stream: IO[str] | None) -> bool:
    """Whether colours are wanted there: a terminal, and neither NO_COLOR (no-color.org) nor TERM=dumb."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


_opened_again: dict[int, int] = {}  # our own open file by standard descriptor


def _open_again(descriptor: int) -> int:
    ours = _opened_again.get(descriptor)
    if ours is not None and os.path.sameopenfile(ours, descriptor):
        return os.dup(ours)
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(f"/proc/self/fd/{descriptor}", flags)


def prepare_standard_descriptors() -> None:
    """To be called first: opens standard output and error for us alone while we may, and what is closed on /dev/null.

    A terminal or pipe may belong to the user who called sudo, and cannot be opened once capabilities are given up. Were
    a standard descriptor left closed, the next file to be opened would get its number, and what is written there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for descriptor in (1, 2):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            with contextlib.suppress(OSError):
                _opened_again[descriptor] = _open_again(descriptor)
