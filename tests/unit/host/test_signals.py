# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import threading

import pytest

from rover_plugin.host.lifecycle import Stop
from rover_plugin.host.signals import STOP_SIGNALS, stop_on_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_requests_the_stop(number: int) -> None:
    stop = Stop()
    with stop_on_signals(stop):
        os.kill(os.getpid(), number)
        stop.wait()
    assert stop.requested()
    assert stop.error is None


def test_handlers_and_descriptor_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    threads = threading.active_count()
    with stop_on_signals(Stop()):
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_other_signals_with_a_handler_stop_nothing() -> None:
    stop = Stop()
    handled = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())
    try:
        with stop_on_signals(stop):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert handled.wait(10)
        assert not stop.requested()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_child_forked_outside_keeps_the_handlers_it_has() -> None:
    before = signal.getsignal(signal.SIGTERM)
    child = os.fork()
    if not child:
        os._exit(signal.getsignal(signal.SIGTERM) is not before)
    assert os.waitpid(child, 0)[1] == 0
