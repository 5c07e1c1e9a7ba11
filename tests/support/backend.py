# SPDX-License-Identifier: Apache-2.0
"""A started `core` module for tests."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rover_plugin.backend.module import CoreModule
from rover_plugin.host.module import Context
from rover_plugin.settings import Settings, load
from rover_plugin.telemetry.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS_LOG_COLLECT = "/skywalking.v3.EBPFAccessLogService/collect"


def settings(**values: object) -> Settings:
    """Defaults, with dots of keys written as double underscores: `core__backend__addr="localhost:1"`."""
    return load(environ={}, overrides=[f"{name.replace('__', '.')}={value}" for name, value in values.items()])


@contextmanager
def started_core(address: str, **values: object) -> Iterator[CoreModule]:
    """Core for the backend at `address` (a comma list works), with more settings by key."""
    core = CoreModule()
    core.start(Context(settings(core__backend__addr=address, **values), Counters()))
    try:
        yield core
    finally:
        core.shutdown()
