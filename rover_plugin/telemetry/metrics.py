# SPDX-License-Identifier: Apache-2.0
"""Every metric there is, in one table: the endpoint serves these, and docs/metrics.md is generated from them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple


class Kind(StrEnum):
    """Prometheus' types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as served, without a counter's `_total`.
        kind: its type.
        help: what it says, in one or two sentences.
        labels: names of its labels.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def served_name(self) -> str:
        """The name to write in a query; a histogram has `_bucket`, `_sum` and `_count` behind it."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


class Sample(NamedTuple):
    """One value of the metric `name`; `labels` in the order of the metric's."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


def _counter(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, help_, labels)


def _gauge(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, help_, labels)


# Counters (telemetry.counters) of which the ledger makes its own lines.
LEDGER_COUNTERS: Final = frozenset({"logs_exported", "logs_filtered", "logs_lost"})

_LEDGER: Final = ("output", "unit")

METRICS: Final = (
    _gauge("rover_info", "Always 1; the version is in its label.", "version"),
    # -- loss ledger: read + ahead + restored = bookkeeping + exported + filtered + lost + unparsed + open --
    _counter(
        "rover_ledger_read", "Records (kernel) or exchanges (protocol) up to the workers' last reports.", *_LEDGER
    ),
    _gauge("rover_ledger_ahead", "What workers have handed over since their last reports.", *_LEDGER),
    _gauge("rover_ledger_restored", "What an earlier run had left in the output's files.", *_LEDGER),
    _counter("rover_ledger_bookkeeping", "Records that are no log: a connection was met midway.", *_LEDGER),
    _counter("rover_ledger_exported", "Logs written, or confirmed by the backend.", *_LEDGER),
    _counter("rover_ledger_filtered", "Logs left out on purpose.", *_LEDGER, "reason"),
    _counter("rover_ledger_lost", "Logs lost in the ring, a queue, or while sending.", *_LEDGER, "stage", "reason"),
    _counter("rover_ledger_unparsed", "Records that could not be used.", *_LEDGER, "reason"),
    _gauge(
        "rover_ledger_open",
        "Logs that are still with a worker, the hub, the output, or in its files.",
        *_LEDGER,
        "where",
    ),
    _gauge("rover_ledger_imbalance", "What nobody can account for. Anything but 0 is a bug.", *_LEDGER),
    _gauge("rover_ledger_worker_imbalance", "The same, of one worker alone.", "worker", "encoding", "unit"),
    # -- from the kernel --
    _counter("rover_kernel_events", "What the kernel side counted, see enum statistic in bpf/maps.h.", "event"),
    _gauge("rover_bpf_map_entries", "Entries of a BPF map.", "map"),
    _gauge("rover_bpf_map_max_entries", "Room for entries in a BPF map; a full one is a kernel event.", "map"),
    _gauge("rover_probe_attached", "Whether a probe is attached; 0 means this kernel does not have it.", "probe"),
    _counter(
        "rover_probe_missed_runs", "Runs left out because the program ran on that CPU: calls not seen.", "program"
    ),
    _counter("rover_probe_runs", "Runs of a BPF program, while they are counted (`?probes=1`).", "program"),
    _counter("rover_probe_run_seconds", "Time spent in a BPF program, while it is counted (`?probes=1`).", "program"),
    _gauge("rover_ring_bytes", "Bytes in the ring at the worker's last report.", "worker"),
    _gauge("rover_ring_most_bytes", "Most bytes that ever waited in the ring.", "worker"),
    _gauge("rover_ring_size_bytes", "Bytes the ring can hold.", "worker"),
    Metric(
        "rover_capture_lag_seconds",
        Kind.HISTOGRAM,
        "From the end of a system call to its record's arrival at the outputs; the oldest record of a batch, sampled "
        "up to ten times a second.",
        ("worker",),
    ),
    # -- workers --
    _counter("rover_worker_records", "Records read.", "worker"),
    _counter("rover_worker_lost_records", "Records missing from the ring, by gaps in their sequence.", "worker"),
    _counter("rover_worker_exchanges", "Exchanges found.", "worker"),
    _counter("rover_worker_errors", "What could not be understood, by reason.", "worker", "reason"),
    _counter("rover_worker_gap_bytes", "Bytes that moved on connections without a record.", "worker"),
    _counter("rover_worker_imbalance", "Calls that ended connections swallowed or gave out twice: a bug.", "worker"),
    _gauge("rover_worker_held_calls", "Calls read and not handed on yet.", "worker"),
    _gauge("rover_worker_connections", "Connections followed.", "worker"),
    _gauge("rover_worker_connections_max", "Room for connections (access_log.connections.max).", "worker"),
    _counter("rover_worker_evicted", "Connections given up for want of room.", "worker"),
    _counter(
        "rover_worker_relieved",
        "Connections begun anew for want of memory (access_log.connections.max_bytes).",
        "worker",
    ),
    _gauge("rover_worker_held_bytes", "Memory of connections, roughly (access_log.connections.max_bytes).", "worker"),
    _counter(
        "rover_provisional_records",
        "Records of new processes, by what became of them: handed on (chosen), or dropped. Those that their ring had "
        "no room for are the kernel event provisional_full.",
        "worker",
        "outcome",
    ),
    _gauge("rover_provisional_held_bytes", "Bytes of such records that wait for the feed to decide.", "worker"),
    _gauge("rover_worker_queue_messages", "Messages that wait for the main process.", "worker"),
    _gauge("rover_worker_queue_size", "Room for such messages.", "worker"),
    # -- main process --
    _gauge("rover_hub_connections", "Connections known to the main process."),
    _gauge("rover_address_book_entries", "Processes and connection ends that can be named.", "kind"),
    _counter("rover_address_book_evicted", "Ends of closed connections forgotten early, for want of room."),
    _counter("rover_connections_named_early", "Connections that did not wait for a name: too many did."),
    _counter(
        "rover_peers",
        "Connections by their other end, once they are named: `named`, `not_chosen` (seen, but chosen by no rule),"
        " `unnamed` (an address of this host, and nobody known), `elsewhere`.",
        "result",
    ),
    _gauge("rover_spool_bytes", "Bytes of logs that wait for the backend."),
    _gauge("rover_spool_max_bytes", "Room for such bytes (access_log.spool.max_bytes)."),
    _gauge("rover_backend_state", "1 for the state the link to the backend is in.", "state"),
    _gauge("rover_feed_state", "1 for the state the process feed is in.", "state"),
    _gauge("rover_feed_age_seconds", "Time since the process feed last said anything."),
    _counter("rover_processes_not_watched", "Processes the kernel side had no room for.", "reason"),
    _gauge("rover_discovered_processes", "Processes in the table of process_discovery."),
    _counter("rover_process_events_lost", "Process events lost; each time all of /proc is read again."),
    _counter("rover_cgroup_paths_forgotten", "Cgroups whose path was forgotten early, for want of room."),
    _counter("rover_container_files_refused", "Files of container runtimes that could not be used.", "reason"),
    _counter("rover_process_reports_failed", "Calls that report processes and failed.", "code"),
    _counter("rover_process_reports_unanswered", "Processes reported that the backend gave no id."),
    _counter("rover_process_ids_unexpected", "Ids from the backend for processes that were not reported."),
    # -- what it costs --
    _counter("rover_process_cpu_seconds", "CPU time of a process of the agent.", "process"),
    _gauge(
        "rover_process_resident_bytes", "Resident memory (RSS); pages shared by processes count in each.", "process"
    ),
    _gauge("rover_process_proportional_bytes", "Memory with shared pages divided among their users (PSS).", "process"),
)

_INTRODUCTION: Final = """\
<!-- Generated by `rover-host metrics` from rover_plugin/telemetry/metrics.py. Do not edit. -->
# Metrics

Served at `http://<telemetry.listen>/metrics`, in Prometheus' text format or OpenMetrics. The setting is empty by
default: nothing is served, and nothing is computed.

`/healthz` answers 200 when all is well, else 503, both with the reasons as JSON: whether all modules have started, the
workers live and report, the process feed speaks, no table of the kernel side was full in the last minute, no output
stands still, and, where `skywalking` is an output, the backend is connected. It suits a readiness probe: restarting the
agent does not bring a backend back. A request has 10 seconds; of more than 8 connections the oldest is closed.

The lines `rover_ledger_*` of one output and unit add up exactly in every scrape:

    read + ahead + restored = bookkeeping + exported + filtered + lost + unparsed + open + imbalance

They are as of the workers' last reports, at most about a second old; `rover_ledger_imbalance` must be 0.

Run counts and times of the BPF programs cost every program on the host some nanoseconds a run, so the kernel counts
them on demand only: from a scrape of `/metrics?probes=1` until two minutes have passed without another such scrape.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def markdown() -> str:
    """The documentation of all metrics: docs/metrics.md."""
    rows = [
        f"| `{metric.served_name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.help} |\n"
        for metric in METRICS
    ]
    return _INTRODUCTION + "".join(rows)
