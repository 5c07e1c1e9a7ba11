# SPDX-License-Identifier: Apache-2.0
"""The module as the host runs it, with the real settings and the real `core`."""

from __future__ import annotations

import os
import queue
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest
from structlog.testing import capture_logs

from rover_plugin.backend.module import CoreModule
from rover_plugin.discovery.feed_client import FeedClient
from rover_plugin.discovery.module import ProcessDiscoveryModule
from rover_plugin.discovery.table import Added, Updated
from rover_plugin.errors import FeedError, SettingsError
from rover_plugin.host.module import Context
from rover_plugin.settings import load
from rover_plugin.telemetry.counters import Counters
from tests.support.oap import OapDouble

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rover_plugin.discovery.model import Process

PATIENCE_S = 20
LOCAL = "process_discovery.local.active=true"


def discovery(path: Path, *overrides: str) -> tuple[ProcessDiscoveryModule, CoreModule, Context]:
    settings = load(environ={}, overrides=[f"process_discovery.feed.socket={path}", *overrides])
    core = CoreModule()
    failures: queue.Queue[BaseException] = queue.Queue()
    context = Context(settings, Counters(), {"core": core}, failures.put)
    return ProcessDiscoveryModule(), core, context


@contextmanager
def running(path: Path, *overrides: str) -> Iterator[ProcessDiscoveryModule]:
    module, core, context = discovery(path, *overrides)
    core.start(context)
    module.start(context)
    module.notify_start_success()
    try:
        yield module
    finally:
        module.shutdown()
        core.shutdown()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feed.sock"


def first(path: Path, pid: int) -> Process:
    """The first a client of the feed hears of a process."""
    found: queue.Queue[Process] = queue.Queue()

    def look(change: object) -> None:
        if isinstance(change, Added | Updated) and change.process.key.pid == pid:
            found.put(change.process)

    client = FeedClient(str(path))
    client.follow(look, lambda _state: None)
    try:
        return found.get(timeout=PATIENCE_S)
    finally:
        client.close()


def test_a_client_of_the_feed_sees_processes_named_by_the_settings(path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        while psutil.Process(child.pid).cmdline() != ["sleep", "60"]:
            os.sched_yield()
        ours = os.getppid()  # the test's children count as the host's own, its parent does not
        rules = f"process_discovery.local.service_rules=exe={psutil.Process(ours).exe()} -> night"
        overrides = (LOCAL, rules, "access_log.outputs=console", "core.cluster_name=east")
        with running(path, *overrides):
            (entity,) = first(path, ours).entities
            assert (entity.service, entity.cluster, entity.layer) == ("east::night", "east", "OS_LINUX")
            assert entity.instance == os.uname().nodename
            assert first(path, os.getpid()).entities == ()
            assert first(path, child.pid).entities == ()
        child.kill()


def test_processes_are_reported_only_if_the_backend_is_an_output(path: Path) -> None:
    with OapDouble() as oap:
        common = (LOCAL, f"core.backend.addr={oap.address}", "process_discovery.heartbeat_period=50ms")
        with running(path, *common, "access_log.outputs=console"):
            first(path, os.getpid())
        assert oap.calls.total() == 0
        with running(path, *common, "access_log.outputs=skywalking,console"):
            oap.wait_for(lambda: oap.processes.pings >= 2)
        assert any(row.layer == "OS_LINUX" for row in oap.processes.by_id.values())


def test_a_second_host_on_the_same_socket_does_not_start(path: Path) -> None:
    with running(path):
        module, _, context = discovery(path)
        with pytest.raises(FeedError, match="two hosts on one feed socket"):
            module.start(context)
        module.shutdown()


def test_without_a_finder_the_feed_is_empty_and_the_log_says_why(path: Path) -> None:
    with capture_logs() as logs, running(path) as module:
        assert len(module.table) == 0
    assert [entry["hint"] for entry in logs if entry["event"] == "no_finder_active"] == [
        "set process_discovery.local.active to true to watch local processes"
    ]


def test_the_module_is_active_with_any_finder(path: Path) -> None:
    module, _, idle = discovery(path)
    assert not module.active(idle.settings)
    assert module.active(discovery(path, LOCAL)[2].settings)
    assert module.active(discovery(path, "process_discovery.kubernetes.active=true")[2].settings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("process_discovery.local.include=colour=red", "process_discovery.local.include: bad rule 'colour=red'"),
        ("process_discovery.local.layer=OS_TEMPLE", "'OS_TEMPLE' is no layer of the OAP"),
        ("process_discovery.kubernetes.active=true", "has no Kubernetes finder"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(path: Path, override: str, message: str) -> None:
    module, _, context = discovery(path, LOCAL, override)
    with pytest.raises(SettingsError, match=message):
        module.start(context)
    assert not path.exists()


def test_without_any_address_nothing_is_served(path: Path) -> None:
    with running(path, "process_discovery.feed.socket="):
        assert not path.exists()
