# SPDX-License-Identifier: Apache-2.0
"""Starts and ends the worker processes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import psutil

from rover_plugin.access_log.worker_options import READY
from rover_plugin.errors import CaptureError
from rover_plugin.host.children import python_command
from rover_plugin.host.stop_signals import spawn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.worker_options import WorkerOptions
    from rover_plugin.cancellation import Cancellation

_RECEIVE_BUFFER: Final = 8 << 20
_START_S: Final = 20.0
_SO_RCVBUFFORCE: Final = 33  # root may go beyond net.core.rmem_max


class WorkerProcess:
    """One worker, and our end of its link. It starts up while the kernel side is built; `begin` gives it its ring."""

    def __init__(self, options: WorkerOptions) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for buffer in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
                with contextlib.suppress(OSError):
                    self.channel.setsockopt(socket.SOL_SOCKET, buffer, _RECEIVE_BUFFER)
            arguments = (str(theirs.fileno()), json.dumps(asdict(options)))
            command = python_command("rover_plugin.access_log.worker", *arguments)
            try:
                self._process = spawn(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
            except OSError as error:
                raise CaptureError(f"cannot start a worker process: {error.strerror}") from error

    def begin(self, maps: Sequence[int], cancellation: Cancellation) -> None:
        """Hands over the descriptors of its ring and its provisional ring, of policies and connections; waits for it.

        Raises:
            CaptureError: it has ended, or does not get that far in time.
            CancelledError: the wait was cancelled.
        """
        self.channel.settimeout(_START_S)
        with cancellation.interrupting(self._process.kill):
            try:
                socket.send_fds(self.channel, [READY], list(maps))
                started = self.channel.recv(len(READY)) == READY
            except OSError:
                started = False
        self.channel.settimeout(None)
        if not started:
            raise CaptureError("an access log worker did not start", hint="its last words are above")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether somebody has halted it (SIGSTOP)."""
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        except psutil.Error:
            return False

    def ask_to_finish(self) -> None:
        """Lets it read its ring to the end, hand everything on, and exit."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Ends it at once; what it has read is lost."""
        self._process.kill()

    def wait(self, timeout_s: float) -> None:
        """Waits for its end, and forces it after `timeout_s` seconds."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.channel.close()
