# SPDX-License-Identifier: Apache-2.0
"""A table of the kernel side that was full makes the agent unhealthy for a minute."""

from __future__ import annotations

from rover_plugin.access_log.telemetry import Overflows
from rover_plugin.capture.session import Statistic


def test_a_full_table_is_named_for_a_minute_after_it_was_last_seen_to_grow() -> None:
    counts = dict.fromkeys(Statistic, 0)
    now = 0.0
    subject = Overflows(lambda: counts, lambda: now)
    assert subject.reason() == ""
    counts[Statistic.RING_FULL] = 5  # the ledger's, and no table
    assert subject.reason() == ""
    counts[Statistic.CONNECTIONS_FULL] = 1
    assert "access_log.connections.max" in subject.reason()
    now = 59.0
    assert subject.reason()
    counts[Statistic.THREADS_FULL] = 1
    assert subject.reason().count("full") == 2
    now = 61.0
    assert "connections" not in subject.reason()
    assert "threads" in subject.reason()
    now = 200.0
    assert subject.reason() == ""
