# SPDX-License-Identifier: Apache-2.0
"""What the module `access_log` tells of itself: samples of every part, and its health checks."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import psutil

from rover_plugin.capture.probe_statistics import ProbeStatistics
from rover_plugin.capture.session import Statistic
from rover_plugin.discovery.feed_client import FeedState
from rover_plugin.telemetry.ledger import UNITS
from rover_plugin.telemetry.metrics import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rover_plugin.access_log.hub import Hub
    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.access_log.worker_options import WorkerOptions
    from rover_plugin.access_log.workers import WorkerProcess
    from rover_plugin.capture.session import Capture
    from rover_plugin.discovery.feed_client import FeedClient
    from rover_plugin.telemetry.ledger import Ledger
    from rover_plugin.telemetry.telemetry import Telemetry

# Metrics that are an item of a worker's report.
_REPORTED: Final = {
    "rover_worker_records": "records",
    "rover_worker_lost_records": "lost_ring",
    "rover_worker_exchanges": "exchanges_out",
    "rover_worker_gap_bytes": "gap_bytes",
    "rover_worker_imbalance": "imbalance",
    "rover_worker_held_calls": "held",
    "rover_worker_connections": "connections",
    "rover_worker_evicted": "evicted",
    "rover_worker_relieved": "relieved",
    "rover_worker_held_bytes": "held_bytes",
    "rover_worker_queue_messages": "waiting_messages",
    "rover_ring_bytes": "ring_pending",
    "rover_ring_most_bytes": "ring_most_pending",
    "rover_ring_size_bytes": "ring_size",
}


# Workers report every second; on a machine that is far too busy some seconds later.
_SILENCE_S: Final = 15.0
_OVERFLOW_S: Final = 60.0
_OVERFLOWS: Final = {
    Statistic.CONNECTIONS_FULL: "the kernel's table of connections (access_log.connections.max) was full",
    Statistic.THREADS_FULL: "the kernel's table of threads was full",
    Statistic.PROCESSES_FULL: "the kernel's table of processes was full",
}


@runtime_checkable
class Spooling(Protocol):
    """An output that keeps logs while they cannot be sent."""

    def spool(self) -> tuple[int, int]:
        """Bytes kept, and room for them."""


class Overflows:
    """Which tables of the kernel side were full lately, when somebody asks.

    Args:
        statistics: of the kernel side.
        clock: seconds.
    """

    def __init__(self, statistics: Callable[[], Mapping[Statistic, int]], clock: Callable[[], float]) -> None:
        self._statistics = statistics
        self._clock = clock
        self._known: dict[Statistic, int] = {}
        self._until: dict[Statistic, float] = {}

    def reason(self) -> str:
        """What was not seen since the last question or in the last minute, for want of room; empty for nothing."""
        counts, now = self._statistics(), self._clock()
        for statistic in _OVERFLOWS:
            if counts[statistic] > self._known.get(statistic, 0):
                self._known[statistic] = counts[statistic]
                self._until[statistic] = now + _OVERFLOW_S
        full = [text for statistic, text in _OVERFLOWS.items() if now < self._until.get(statistic, now)]
        return "; ".join(full)


class AccessLogTelemetry:
    """Registers with `telemetry`; to be closed before any of the parts.

    Args:
        options: what one of the workers was told; the sizes are the same for all.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        capture: Capture,
        workers: Sequence[WorkerProcess],
        options: WorkerOptions,
        hub: Hub,
        outputs: Sequence[Output],
        feed: FeedClient,
    ) -> None:
        self._capture = capture
        self._workers = workers
        self._options = options
        self._hub = hub
        self._outputs = outputs
        self._feed = feed
        self._lock = threading.Lock()
        self._closed = False
        self._began = time.monotonic()
        self._probes = ProbeStatistics(capture.program_descriptors)
        telemetry.register(self._samples)
        telemetry.register_histograms(hub.lag)
        telemetry.on_probes_wanted(self._want_probes)
        telemetry.check("workers", self._check_workers)
        telemetry.check("feed", self._check_feed)
        self._overflows = Overflows(capture.statistics, time.monotonic)
        telemetry.check("kernel tables", self._check_tables)

    def close(self) -> None:
        """From here on nothing is told, and none of the parts is touched."""
        with self._lock:
            self._closed = True
            self._probes.close()

    # -- health --

    def _check_workers(self) -> str:
        dead = [str(shard) for shard, worker in enumerate(self._workers) if not worker.alive]
        if dead:
            return f"worker {', '.join(dead)} has ended"
        now = time.monotonic()
        silent = [
            str(shard)
            for shard, worker in enumerate(self._workers)
            if worker.stopped or now - self._hub.ledger.reported_at.get(shard, self._began) > _SILENCE_S
        ]
        if silent:
            return f"worker {', '.join(silent)} stands still"
        return "" if self._hub.alive else "the hub's thread has ended"

    def _check_feed(self) -> str:
        return "" if self._feed.state is FeedState.LIVE else f"the process feed is {self._feed.state.value}"

    def _check_tables(self) -> str:
        with self._lock:
            return "" if self._closed else self._overflows.reason()

    # -- samples --

    def _want_probes(self) -> None:
        with self._lock:
            if not self._closed:
                self._probes.want()

    def _samples(self) -> list[Sample]:
        with self._lock:
            if self._closed:
                return []
            ledger = self._hub.ledger
            parts: tuple[Iterable[Sample], ...] = (
                _ledger(ledger, self._options.encodings),
                self._kernel(),
                self._reports(ledger),
                self._main(),
                self._costs(),
            )
            return [sample for part in parts for sample in part]

    def _kernel(self) -> Iterator[Sample]:
        for statistic, value in self._capture.statistics().items():
            yield Sample("rover_kernel_events", value, (statistic.name.lower(),))
        for name, (entries, most) in self._capture.map_fill().items():
            yield Sample("rover_bpf_map_entries", entries, (name,))
            yield Sample("rover_bpf_map_max_entries", most, (name,))
        for probe, attached in self._capture.probes().items():
            yield Sample("rover_probe_attached", attached, (probe,))
        for program, missed in self._capture.missed_runs().items():
            yield Sample("rover_probe_missed_runs", missed, (program,))
        for program, (runs, seconds) in self._probes.read().items():
            yield Sample("rover_probe_runs", runs, (program,))
            yield Sample("rover_probe_run_seconds", seconds, (program,))

    def _reports(self, ledger: Ledger) -> Iterator[Sample]:
        for number, report in list(ledger.reports.items()):
            worker = str(number)
            for metric, item in _REPORTED.items():
                yield Sample(metric, report[item], (worker,))
            provisional = report["provisional"]
            for outcome, count in {"chosen": provisional["chosen"], **provisional["dropped"]}.items():
                yield Sample("rover_provisional_records", count, (worker, outcome))
            yield Sample("rover_provisional_held_bytes", provisional["held_bytes"], (worker,))
            for reason, count in report["errors"].items():
                yield Sample("rover_worker_errors", count, (worker, reason))
            yield Sample("rover_worker_connections_max", self._options.max_connections, (worker,))
            yield Sample("rover_worker_queue_size", self._options.queue_size, (worker,))

    def _main(self) -> Iterator[Sample]:
        yield Sample("rover_hub_connections", self._hub.connections)
        for kind, entries in self._hub.address_book_sizes().items():
            yield Sample("rover_address_book_entries", entries, (kind,))
        yield Sample("rover_address_book_evicted", self._hub.address_book_evicted)
        for state in FeedState:
            yield Sample("rover_feed_state", state is self._feed.state, (state.value,))
        yield Sample("rover_feed_age_seconds", self._feed.age_s)
        for output in self._outputs:
            if isinstance(output, Spooling):
                held, most = output.spool()
                yield Sample("rover_spool_bytes", held)
                yield Sample("rover_spool_max_bytes", most)

    def _costs(self) -> Iterator[Sample]:
        processes = {"main": os.getpid()} | {f"worker-{n}": worker.pid for n, worker in enumerate(self._workers)}
        for name, pid in processes.items():
            try:
                process = psutil.Process(pid)
                times = process.cpu_times()
                resident = process.memory_info().rss
                proportional = _proportional_bytes(pid)
            except (psutil.Error, OSError):
                continue  # it has just ended; the health check says so
            yield Sample("rover_process_cpu_seconds", times.user + times.system, (name,))
            yield Sample("rover_process_resident_bytes", resident, (name,))
            yield Sample("rover_process_proportional_bytes", proportional, (name,))


def _ledger(ledger: Ledger, encodings: Sequence[str]) -> Iterator[Sample]:
    for balance in ledger.balances:
        line = (balance.output, balance.unit)
        amounts: dict[str, Any] = {
            "read": balance.read,
            "ahead": balance.ahead,
            "restored": balance.restored,
            "bookkeeping": balance.bookkeeping,
            "exported": balance.exported,
            "imbalance": balance.imbalance,
        }
        for name, amount in amounts.items():
            yield Sample(f"rover_ledger_{name}", amount, line)
        for reason, amount in balance.filtered.items():
            yield Sample("rover_ledger_filtered", amount, (*line, reason))
        for (stage, reason), amount in balance.lost.items():
            yield Sample("rover_ledger_lost", amount, (*line, stage, reason))
        for reason, amount in balance.unparsed.items():
            yield Sample("rover_ledger_unparsed", amount, (*line, reason))
        for where, amount in balance.open.items():
            yield Sample("rover_ledger_open", amount, (*line, where))
    for (worker, encoding), both in list(ledger.worker_imbalance.items()):
        for unit, amount in zip(UNITS, both, strict=True):
            yield Sample("rover_ledger_worker_imbalance", amount, (str(worker), encodings[encoding], unit))


def _proportional_bytes(pid: int) -> int:
    # Documentation/filesystems/proc.rst, smaps_rollup
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
