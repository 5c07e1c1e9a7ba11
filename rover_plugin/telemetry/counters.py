# SPDX-License-Identifier: Apache-2.0
"""Counters: monotonically growing numbers with labels, cheap to add to from any thread."""

from __future__ import annotations

import threading
from collections import defaultdict

Labels = tuple[tuple[str, str], ...]


class Counters:
    """All counters of this process. Names follow Prometheus: snake case, unit last, `_total` left to the exporter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, Labels], int] = defaultdict(int)

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Adds `amount` to the counter `name` with these labels, creating it at 0."""
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            self._values[key] += amount

    def value(self, name: str, **labels: str) -> int:
        """The counter's value, 0 if it was never added to."""
        with self._lock:
            return self._values.get((name, tuple(sorted(labels.items()))), 0)

    def snapshot(self) -> dict[tuple[str, Labels], int]:
        """A copy of all counters: (name, labels) to value."""
        with self._lock:
            return dict(self._values)
