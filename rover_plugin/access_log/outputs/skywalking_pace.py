# SPDX-License-Identifier: Apache-2.0
"""How many messages one call to the backend may carry: slow start, and steps that follow the time an answer takes."""

from __future__ import annotations

from typing import Final

# A call that fails midway may lose all it carried, so the first ones are small: 256 exchanges are some 800 logs.
FIRST_MESSAGES: Final = 256
# Beyond some thousand a call costs no less per message (docs/performance.md).
MOST_MESSAGES: Final = 4000
# A backend that dies in the middle of a call leaves uncertain what it takes in 1-3 s; the pause between two calls, a
# round trip, stays small beside that.
_FAST_S: Final = 1.0
_SLOW_S: Final = 3.0


class Pace:
    """The size of the next call.

    Attributes:
        messages: how many the next call may carry; a single parcel goes whatever it holds.
    """

    def __init__(self) -> None:
        self.messages = FIRST_MESSAGES

    def answered(self, took_s: float, *, whole: bool) -> None:
        """A call was answered after `took_s` seconds; `whole`: it carried all it was given."""
        if took_s > _SLOW_S or not whole:
            self.messages = max(1, self.messages // 2)
        elif took_s < _FAST_S:
            self.messages = min(MOST_MESSAGES, self.messages * 2)

    def failed(self) -> None:
        """A call failed: the next one risks little."""
        self.messages = max(1, min(FIRST_MESSAGES, self.messages // 2))
