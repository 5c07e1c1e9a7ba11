# SPDX-License-Identifier: Apache-2.0
"""The thread that observes the host."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog

from rover_plugin.cancellation import Cancellation
from rover_plugin.discovery.process_events import ProcessEvents
from rover_plugin.errors import CancelledError, CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.discovery.observer import ProcessObserver
    from rover_plugin.telemetry.counters import Counters

log = structlog.get_logger(__name__)

SCAN_PERIOD_S = 1.0  # without events
_LONGEST_WAIT_S = 60.0


class HostWatcher:
    """Feeds an observer with the kernel's events, or where there are none with a look at /proc every second.

    Args:
        fail: called with an error that ends the thread, which none should.
        open_events: where the events come from; None means the kernel.
    """

    def __init__(
        self,
        observer: ProcessObserver,
        counters: Counters,
        fail: Callable[[BaseException], None],
        open_events: Callable[[], ProcessEvents] | None = None,
    ) -> None:
        self._observer = observer
        self._counters = counters
        self._fail = fail
        self._building = Cancellation()
        self._open_events = open_events or self._ask_kernel
        self._events: ProcessEvents | None = None
        self._handover = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="process-watcher", daemon=True)

    def start(self) -> None:
        """Looks at /proc once, then goes on in a thread: compiling the BPF program holds nobody up."""
        self._observer.scan(time.monotonic())
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; harmless if it was never started."""
        self._stopping.set()
        self._building.cancel()
        with self._handover:
            if self._events is not None:
                self._events.wake()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._open()
            # Events queue up from here on, so nothing can slip between them and this look.
            self._observer.survey(time.monotonic())
            if self._events is None:
                self._follow_scans()
            else:
                self._follow_events(self._events)
        except Exception as error:  # noqa: BLE001  whatever it is, the host must not run on without a feed
            self._fail(error)
        finally:
            with self._handover:
                events, self._events = self._events, None
            if events is not None:
                events.close()

    def _ask_kernel(self) -> ProcessEvents:
        return ProcessEvents(
            cancellation=self._building,
            trees=self._observer.hierarchies,
            listeners=self._observer.wants_listeners,
        )

    def _open(self) -> None:
        try:
            events = self._open_events()
        except CancelledError:
            return
        except CaptureError as error:
            log.warning(
                "process_events_unavailable", reason=error.message, hint=error.hint, scan_period_s=SCAN_PERIOD_S
            )
            return
        with self._handover:
            self._events = events

    def _follow_scans(self) -> None:
        while not self._stopping.wait(SCAN_PERIOD_S):
            now = time.monotonic()
            self._observer.scan(now)
            self._observer.tick(now)

    def _follow_events(self, events: ProcessEvents) -> None:
        lost = 0
        while not self._stopping.is_set():
            wait_s = min(_LONGEST_WAIT_S, max(0.0, self._observer.next_due() - time.monotonic()))
            arrived = events.poll(wait_s)
            now = time.monotonic()
            self._observer.apply(arrived, now)
            if (lost_now := events.lost()) != lost:
                self._counters.add("process_events_lost", lost_now - lost)
                lost = lost_now
                self._observer.survey(now)
            self._observer.tick(now)
