# SPDX-License-Identifier: Apache-2.0
"""Module `process_discovery`: finds the processes of this host, serves them as a feed, reports them to the OAP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import structlog

from rover_plugin.capture.privileges import require_initial_pid_namespace
from rover_plugin.discovery.cgroup_tree import CgroupTree, hierarchies
from rover_plugin.discovery.containers import Containers
from rover_plugin.discovery.feed_server import FeedServer
from rover_plugin.discovery.local_finder import Finder, local_finder
from rover_plugin.discovery.model import Executables
from rover_plugin.discovery.observer import ProcessObserver
from rover_plugin.discovery.reporter import ProcessReporter
from rover_plugin.discovery.table import ProcessTable
from rover_plugin.discovery.watcher import HostWatcher
from rover_plugin.errors import SettingsError
from rover_plugin.telemetry.metrics import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.backend.caller import Caller
    from rover_plugin.host.module import Context
    from rover_plugin.settings import Settings

log = structlog.get_logger(__name__)


class Core(Protocol):
    """What this module needs of the module `core`."""

    instance_id: str
    cluster_name: str

    def open_caller(self, transport: str) -> Caller:
        """A way to make calls to the OAP."""


class ProcessDiscoveryModule:
    """See the module's docstring.

    Attributes:
        table: the processes, for others in this host that want to look without following.
    """

    name = "process_discovery"
    requires = ("core",)

    def __init__(self) -> None:
        self.table = ProcessTable()
        self._server: FeedServer | None = None
        self._watcher: HostWatcher | None = None
        self._reporter: ProcessReporter | None = None

    def active(self, settings: Settings) -> bool:
        """Whether any finder is."""
        return settings.flag("process_discovery.local.active") or settings.flag("process_discovery.kubernetes.active")

    def start(self, context: Context) -> None:
        """Serves the feed and begins to observe.

        Raises:
            SettingsError: a rule is wrong.
            CaptureError: this process is in a pid namespace of its own.
            FeedError: the feed cannot be served.
        """
        require_initial_pid_namespace()
        settings = context.settings
        core = cast("Core", context.modules["core"])
        finders = _finders(settings, core.cluster_name)
        self.table.executables = _executables(finders)
        self._server = _serve(settings, self.table)
        context.telemetry.register(lambda: [Sample("rover_discovered_processes", len(self.table))])
        if not finders:
            log.warning("no_finder_active", hint="set process_discovery.local.active to true to watch local processes")
            return
        observer = ProcessObserver(
            self.table,
            finders,
            tree=CgroupTree(hierarchies(), context.counters),
            containers=Containers(context.counters),
        )
        self._watcher = HostWatcher(observer, context.counters, context.fail)
        self._watcher.start()
        if "skywalking" in settings.items("access_log.outputs"):
            self._reporter = ProcessReporter(
                self.table,
                core.open_caller("reports"),
                core.instance_id,
                context.counters,
                period_s=settings.seconds("process_discovery.heartbeat_period"),
                full_every=settings.integer("process_discovery.properties_report_period"),
            )

    def notify_start_success(self) -> None:
        """Begins to report."""
        if self._reporter is not None:
            self._reporter.start()

    def shutdown(self) -> None:
        """Stops reporting, observing and serving."""
        for part in (self._reporter, self._watcher, self._server):
            if part is not None:
                part.stop()


def _finders(settings: Settings, cluster: str) -> list[Finder]:
    if settings.flag("process_discovery.kubernetes.active"):
        message = "process_discovery.kubernetes.active: this version has no Kubernetes finder"
        raise SettingsError(message, hint="set it to false, and process_discovery.local.active to true")
    return [local_finder(settings, cluster)] if settings.flag("process_discovery.local.active") else []


def _executables(finders: Sequence[Finder]) -> Executables:
    """Which programs any of the finders may choose."""
    each = [finder.executables for finder in finders]
    limits = [one.only for one in each if one.only is not None]
    only = frozenset().union(*limits) if len(limits) == len(each) else None
    return Executables(only, frozenset.intersection(*(one.never for one in each)) if each else frozenset())


def _serve(settings: Settings, table: ProcessTable) -> FeedServer | None:
    path = settings.text("process_discovery.feed.socket")
    tcp = settings.text("process_discovery.feed.tcp")
    if not path and not tcp:
        return None
    server = FeedServer(table, Path(path) if path else None, tcp)
    server.start()
    return server
