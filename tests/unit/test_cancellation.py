# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest

from rover_plugin.cancellation import Cancellation
from rover_plugin.errors import CancelledError, CaptureError


def test_what_is_waited_for_ends_and_the_wait_raises() -> None:
    cancellation, over = Cancellation(), threading.Event()
    threading.Thread(target=cancellation.cancel).start()
    with pytest.raises(CancelledError), cancellation.interrupting(over.set):
        assert over.wait(30)


def test_it_stands_for_the_error_that_it_brought_about() -> None:
    cancellation = Cancellation()

    def wait() -> None:
        with cancellation.interrupting(lambda: None):
            cancellation.cancel()
            raise CaptureError("the helper has gone")

    with pytest.raises(CancelledError) as caught:
        wait()
    assert isinstance(caught.value.__context__, CaptureError)


def test_once_cancelled_no_wait_begins() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    cancellation.cancel()
    with pytest.raises(CancelledError), cancellation.interrupting(lambda: None):
        pytest.fail("it began")


def test_a_wait_that_is_over_is_not_ended_later() -> None:
    cancellation, calls = Cancellation(), list[str]()
    with cancellation.interrupting(lambda: calls.append("over")):
        pass
    with pytest.raises(CancelledError), cancellation.interrupting(lambda: calls.append("now")):
        cancellation.cancel()
    assert calls == ["now"]
