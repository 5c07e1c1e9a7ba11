# SPDX-License-Identifier: Apache-2.0
"""Turns SIGINT, SIGTERM, SIGHUP and SIGQUIT into an orderly stop, and the second of them into an exit at once.

A thread listens on Python's wakeup descriptor, which the C-level handler writes to directly. So a second signal works
even while the main thread sits in a C call that never comes back to the interpreter, where Python handlers would wait.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from rover_plugin.host.logs import say
from rover_plugin.host.stop_signals import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rover_plugin.host.lifecycle import Stop

log = structlog.get_logger()

FORCED_EXIT = 128  # plus the signal's number, as shells report it
# make sends its SIGTERM on to its children, who have had it already if it went to the whole process group.
_ONE_REQUEST_S = 1.0

_installed = False


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Within this context the first signal calls `stop.request()`, the second ends the process with 128 + its number.

    The same signal again within a second is one with the first. Signals that were held (`stop_signals.hold`) come
    now, and are held again afterwards.

    To be entered in the main thread. Forked children get the default for SIGTERM and ignore the others, which a
    terminal sends to the whole process group: the parent decides when they end.
    """
    global _installed  # noqa: PLW0603 - signal handlers belong to the process, so does what we know about them
    receiver, sender = socket.socketpair()
    sender.settimeout(0)  # set_wakeup_fd wants it not to block
    handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(receiver, stop), name="signals", daemon=True)
    listener.start()
    _installed = True
    if signal.sigpending() & set(STOP_SIGNALS):
        stop.request()  # at once: the listener may come to it only after the first module has started
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _installed = False
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sender.close()
        listener.join()
        receiver.close()


def _listen(receiver: socket.socket, stop: Stop) -> None:
    """Reads the number of each signal the process gets, until the other end is closed."""
    first, first_s = 0, 0.0
    while numbers := receiver.recv(64):
        for number in numbers:
            if number not in STOP_SIGNALS:
                continue
            if number == first and time.monotonic() - first_s < _ONE_REQUEST_S:
                continue
            if first:
                say("rover-host: second signal, exit without flushing")
                os._exit(FORCED_EXIT + number)
            first, first_s = number, time.monotonic()
            stop.request()
            log.info("signal_received", signal=signal.Signals(number).name)


def _in_child() -> None:
    """Without this a child's signals would be written to its parent's descriptor and taken for the parent's own."""
    if not _installed:
        return
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


os.register_at_fork(after_in_child=_in_child)
