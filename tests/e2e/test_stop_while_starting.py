# SPDX-License-Identifier: Apache-2.0
"""A stop signal while the agent starts ends it at once: exit code 0, nothing but information on standard error, no
process left. Be it Ctrl-C, which every process of the group gets, or systemd's SIGTERM, which all of the service get.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.agent import ROOT, ROVER_HOST

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 60


def to_group(pid: int) -> None:
    os.killpg(pid, signal.SIGINT)


def to_every_process(pid: int) -> None:
    process = psutil.Process(pid)
    for one in (*process.children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGTERM)


def signals_are_held(pid: int) -> bool:
    if psutil.Process(pid).cmdline()[1:2] != [ROVER_HOST]:  # not yet
        return False
    blocked = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    return bool(int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1)


def runs(what: str) -> Callable[[int], bool]:
    """Whether the host has a child, or child's child, with this in its command line."""

    def found(pid: int) -> bool:
        with contextlib.suppress(psutil.Error):
            return any(what in child.cmdline() for child in psutil.Process(pid).children(recursive=True))
        return False

    return found


@pytest.mark.parametrize("send", [to_group, to_every_process])
@pytest.mark.parametrize(
    "moment",
    [signals_are_held, runs("rover_plugin.access_log.worker"), runs("rover_plugin.capture.build"), runs("btf")],
    ids=["import", "workers", "build", "bpftool"],
)
def test_it_stops_at_once_and_quietly(
    tmp_path: Path, send: Callable[[int], None], moment: Callable[[int], bool]
) -> None:
    # Headers are dumped anew in a cache of its own.
    apart = ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /var/cache; exec "$@"', "sh")
    settings = (f"process_discovery.feed.socket={tmp_path}/feed.sock", "process_discovery.local.include=exe=nobody")
    command = [*apart, ROVER_HOST, "--modules", "access_log", "--config", "contrib/standalone.toml"]
    host = subprocess.Popen(
        [*command, *(word for setting in settings for word in ("--set", setting))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not moment(host.pid):
            assert host.poll() is None, host.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        helpers = psutil.Process(host.pid).children(recursive=True)
        send(host.pid)
        _, errors = host.communicate(timeout=PATIENCE_S)
    finally:
        host.kill()
        host.wait()
    events = [json.loads(line) for line in errors.splitlines()]
    assert host.returncode == 0, errors
    assert {event["level"] for event in events} <= {"info"}
    assert "access_log_started" not in {event["event"] for event in events}
    assert psutil.wait_procs(helpers, PATIENCE_S)[1] == []
