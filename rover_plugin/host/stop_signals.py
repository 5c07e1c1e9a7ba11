# SPDX-License-Identifier: Apache-2.0
"""The signals that stop the host, and how to keep them from a process or a moment that cannot deal with them."""

from __future__ import annotations

import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rover_plugin.host.children import environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def hold() -> None:
    """Lets stop signals wait until `release`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def release() -> None:
    """Takes stop signals again, those that waited at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def _held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts a process of ours that no stop signal ends, from its first instruction on, nor what it starts itself.

    It begins in / and with `children.environment`, unless `options` of Popen say otherwise.

    Terminals, make, systemd and supervisord send theirs to every process there is; the host decides when ours end.

    Raises:
        OSError: as Popen.
    """
    # Blocked signals stay blocked in a new program; ignored ones would have to be ignored in this process, too.
    with _held():
        return subprocess.Popen(command, **{"cwd": "/", "env": environment(), **options})
