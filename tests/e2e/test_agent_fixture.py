# SPDX-License-Identifier: Apache-2.0
"""An agent that does not get where a test needs it leaves nothing running behind the failed test."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NoReturn

import psutil
import pytest

from tests.support.agent import Agent

if TYPE_CHECKING:
    from pathlib import Path


def test_an_agent_that_fails_to_start_is_ended_with_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, seen = Agent(tmp_path), list[psutil.Process]()
    wait = agent.wait_for_event

    def never(name: str, timeout_s: float = 30) -> NoReturn:
        assert name == "access_log_started"
        wait("rover_starting", timeout_s)
        deadline = time.monotonic() + timeout_s
        while len(seen) < 3:  # two workers and the build
            assert time.monotonic() < deadline
            seen[:] = psutil.Process(agent.pid).children(recursive=True)
            time.sleep(0.01)
        seen.append(psutil.Process(agent.pid))
        raise AssertionError(name)

    monkeypatch.setattr(agent, "wait_for_event", never)
    with pytest.raises(AssertionError, match="access_log_started"):
        agent.__enter__()
    assert psutil.wait_procs(seen, 20)[1] == []
