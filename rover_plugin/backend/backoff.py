# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next try."""

from __future__ import annotations

import random
from typing import Final

FIRST_S: Final = 0.5
MOST_S: Final = 30.0
REFUSED_S: Final = 30.0  # what waits for a person's hand is not tried often


class Backoff:
    """Exponential with jitter: each delay is drawn from the upper half of a span that doubles.

    Args:
        first_s: span of the first delay, seconds.
        most_s: span beyond which it does not grow.
        seed: for tests.
    """

    def __init__(self, first_s: float = FIRST_S, most_s: float = MOST_S, seed: int | None = None) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._random = random.Random(seed)  # noqa: S311 spreads agents out, guards nothing
        self.failures = 0

    def next(self, most_s: float | None = None) -> float:
        """Notes a failure; returns seconds to wait. `most_s` bounds this one delay further."""
        span = min(self._most_s, self._first_s * 2**self.failures, self._most_s if most_s is None else most_s)
        self.failures = min(self.failures + 1, 30)
        return self._random.uniform(span / 2, span)

    def reset(self) -> None:
        """Notes a success."""
        self.failures = 0
