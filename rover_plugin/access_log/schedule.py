# SPDX-License-Identifier: Apache-2.0
"""What time does to a shard. The caller brings the time, so that `replay` can bring a recorded one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rover_plugin.access_log.shard import Shard

TICK_NS: Final = 100_000_000
_REPORT_NS: Final = 1_000_000_000
_SHORTEST_EXPIRY_NS: Final = 250_000_000


class Schedule:
    """When to flush a shard, let its unanswered requests go, and report.

    Args:
        shard: whose time this is.
        exchange_timeout_s: a request unanswered for so long is let go.
        open_report_s: a stream that stays open is reported each time this has passed.
    """

    def __init__(self, shard: Shard, exchange_timeout_s: float, open_report_s: float = 60.0) -> None:
        self._shard = shard
        self._timeout_ns = int(exchange_timeout_s * 1e9)
        self._expiry_ns = max(self._timeout_ns // 4, _SHORTEST_EXPIRY_NS)
        self._open_report_ns = int(open_report_s * 1e9)
        self._next_tick = self._next_expiry = self._next_report = self._next_open_report = 0

    def pass_time(self, now_ns: int) -> bool:
        """To be called after each batch of records; does what is due, and returns whether a report is."""
        if now_ns < self._next_tick:
            return False
        self._next_tick = now_ns + TICK_NS
        self._shard.flush(now_ns)
        if now_ns >= self._next_expiry:
            self._next_expiry = now_ns + self._expiry_ns
            self._shard.expire(now_ns - self._timeout_ns)
        if now_ns >= self._next_open_report:
            self._next_open_report = now_ns + self._open_report_ns
            self._shard.report_open(now_ns - self._open_report_ns)
        if now_ns < self._next_report:
            return False
        self._next_report = now_ns + _REPORT_NS
        return True
