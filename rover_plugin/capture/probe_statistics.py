# SPDX-License-Identifier: Apache-2.0
"""Run counts and times of the BPF programs. The kernel counts them only while somebody asks: it costs every run."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.capture.bpf import enable_statistics, program_runs
from rover_plugin.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

# Longer than scrapes are usually apart, so that a scraper that asks each time sees growing counters.
_LEASE_S: Final = 120.0


class ProbeStatistics:
    """Thread-safe.

    Args:
        programs: descriptors by name; they stay the caller's.
        lease_s: statistics are switched off this long after they were last wanted.
    """

    def __init__(self, programs: Mapping[str, int], lease_s: float = _LEASE_S) -> None:
        self._programs = programs
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._enabled: int | None = None
        self._end: threading.Timer | None = None

    def want(self) -> None:
        """Switches them on, or leaves them on for longer; a kernel that cannot count is logged."""
        with self._lock:
            if self._end is not None:
                self._end.cancel()
            if self._enabled is None:
                try:
                    self._enabled = enable_statistics()
                except CaptureError as error:
                    log.warning("probe_statistics_unavailable", reason=error.message)
                    return
                log.info("probe_statistics_on", seconds=self._lease_s)
            self._end = threading.Timer(self._lease_s, self.close)
            self._end.daemon = True
            self._end.start()

    @property
    def enabled(self) -> bool:
        """Whether runs are being counted because of us."""
        return self._enabled is not None

    def read(self) -> dict[str, tuple[int, float]]:
        """Runs, and seconds spent in them, by program; without what happened while nobody asked."""
        return {name: (runs, nanoseconds / 1e9) for name, (nanoseconds, runs, _) in self._each() if runs}

    def _each(self) -> list[tuple[str, tuple[int, int, int]]]:
        return [(name, program_runs(descriptor)) for name, descriptor in self._programs.items()]

    def close(self) -> None:
        """Switches them off."""
        with self._lock:
            if self._end is not None:
                self._end.cancel()
                self._end = None
            if self._enabled is not None:
                os.close(self._enabled)
                self._enabled = None
