# SPDX-License-Identifier: Apache-2.0
"""Module `access_log`: puts capture, workers, feed, hub and outputs together, and takes them apart in order."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from rover_plugin.access_log.address_book import AddressBook, interface_addresses
from rover_plugin.access_log.choices import refuse
from rover_plugin.access_log.hub import Hub
from rover_plugin.access_log.options import analysis_options, capture_options, feed_address, shard_connections
from rover_plugin.access_log.outputs.console import ConsoleOutput
from rover_plugin.access_log.outputs.jsonl import JsonLinesOutput
from rover_plugin.access_log.telemetry import AccessLogTelemetry
from rover_plugin.access_log.translations import Translations
from rover_plugin.access_log.worker_options import WorkerOptions
from rover_plugin.access_log.workers import WorkerProcess
from rover_plugin.capture.session import Capture, Statistic
from rover_plugin.discovery.feed_client import FeedClient, FeedState
from rover_plugin.host.module import module_as

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.access_log.recorder import Recorder
    from rover_plugin.capture.recording import Translation
    from rover_plugin.discovery.table import Change
    from rover_plugin.host.module import Context
    from rover_plugin.settings import Settings

log = structlog.get_logger(__name__)

# The agent starts without its feed, but says so: nothing older than itself is watched until it comes.
_FEED_S: Final = 3.0
_FINISH_S: Final = 20.0
_OUTPUT_CLOSE_S: Final = 10.0
_ABANDON_S: Final = 1.0
# The main process, which writes the recording, is slower than the workers.
_LEAST_RING_BYTES_RECORDING: Final = 16 << 20


class AccessLogModule:
    """Access logs of the processes the feed names.

    Args:
        recorder: records what the logs are made of.
        silent: no output, whatever the settings say.
    """

    name = "access_log"
    requires: tuple[str, ...] = ("core", "process_discovery")

    def __init__(self, recorder: Recorder | None = None, *, silent: bool = False) -> None:
        self._recorder = recorder
        self._silent = silent
        self._context: Context | None = None
        self._capture: Capture | None = None
        self._workers: list[WorkerProcess] = []
        self._outputs: list[Output] = []
        self._hub: Hub | None = None
        self._feed: FeedClient | None = None
        self._telemetry: AccessLogTelemetry | None = None
        self._translations: Translations | None = None
        self._unread: set[str] = set()

    def active(self, settings: Settings) -> bool:
        """`access_log.active`."""
        return settings.flag("access_log.active")

    def start(self, context: Context) -> None:
        """Loads the kernel side, starts workers, hub and feed, and only then attaches."""
        try:
            self._start(context)
        except BaseException:
            self._abandon()
            raise

    def _start(self, context: Context) -> None:
        self._context = context
        settings = context.settings
        began = time.monotonic()
        names = () if self._silent else settings.items("access_log.outputs")
        self._outputs = [self._make_output(name, context) for name in names]
        encodings = tuple(dict.fromkeys(output.encoding for output in self._outputs))
        recorder = self._recorder
        least_ring_bytes = _LEAST_RING_BYTES_RECORDING if recorder is not None else 0
        wanted = capture_options(settings, least_ring_bytes=least_ring_bytes)
        worker_options = [
            _worker_options(settings, shard, encodings, record=recorder is not None) for shard in range(wanted.shards)
        ]
        # They import what they need while the kernel side is compiled.
        self._workers = [WorkerProcess(told) for told in worker_options]
        self._capture = capture = Capture(wanted, context.starting)
        local_addresses = None
        if recorder is not None:
            addresses = interface_addresses()
            local_addresses = lambda: addresses  # noqa: E731 as the replay will have them
            recorder.open(capture.options.shards, analysis_options(settings), addresses)
        book = AddressBook(
            settings.items("access_log.exclude_namespaces"),
            settings.items("access_log.exclude_cluster"),
            local_addresses,
        )
        rings = zip(capture.ring_descriptors(), capture.provisional_descriptors(), strict=True)
        for worker, (ring, provisional) in zip(self._workers, rings, strict=True):
            maps = (ring, provisional, capture.policies_descriptor, capture.connections_descriptor)
            worker.begin(maps, context.starting)
        self._translations = Translations(self._on_translations)
        self._hub = Hub(
            [worker.channel for worker in self._workers],
            encodings,
            self._outputs,
            book,
            context.counters,
            capture.watch,
            capture.unwatch,
            context.fail,
            recorder,
            self._translations.ask,
            refuse=partial(refuse, capture),
        )
        self._hub.ledger.refused = lambda: capture.statistics()[Statistic.SHARE]
        self._hub.start()
        capture.start()
        address = feed_address(settings)
        self._feed = FeedClient(address)
        self._telemetry = AccessLogTelemetry(
            context.telemetry, capture, self._workers, worker_options[0], self._hub, self._outputs, self._feed
        )
        self._feed.follow(
            self._on_process,
            self._on_feed_state,
            lambda executables: capture.expect_executables(executables.only, executables.never),
        )
        with context.starting.interrupting(self._hub.stop_waiting):
            complete = self._hub.wait_for_processes(_FEED_S)
        if not complete:
            log.warning("process_feed_slow", address=address, seconds=_FEED_S)
        log.info("access_log_started", seconds=round(time.monotonic() - began, 2), shards=len(self._workers))

    def _abandon(self) -> None:
        """Takes apart what a start that failed has put together; there is nothing to flush."""
        if self._telemetry is not None:
            self._telemetry.close()
        if self._capture is not None:
            self._capture.stop()
        if self._hub is not None:
            self._hub.expect_end()
        for worker in self._workers:
            worker.kill()
        if self._hub is not None:
            self._hub.finish(_ABANDON_S)
        for worker in self._workers:
            worker.wait(_ABANDON_S)
        if self._feed is not None:
            self._feed.close()
        if self._translations is not None:
            self._translations.close()
        for output in self._outputs:
            output.close(_ABANDON_S)
        if self._capture is not None:
            self._capture.close()

    def notify_start_success(self) -> None:
        """Nothing waits for the others."""

    def shutdown(self) -> None:
        """Detaches, lets the workers read their rings to the end, and flushes every output."""
        if self._telemetry is not None:
            self._telemetry.close()
        if self._capture is not None:
            self._capture.stop()
        if self._hub is not None:
            self._hub.expect_end()
        for worker in self._workers:
            worker.ask_to_finish()
        finished = self._hub is not None and self._hub.finish(_FINISH_S)
        if not finished:
            log.warning("workers_slow_to_finish", seconds=_FINISH_S)
        for worker in self._workers:
            worker.wait(1.0)
        if self._feed is not None:
            self._feed.close()
        for output in self._outputs:
            try:
                output.close(_OUTPUT_CLOSE_S)
            except Exception:  # its trouble is its own
                log.exception("output_failed", output=output.name)
        self._say_totals(finished=finished)
        if self._capture is not None:
            if self._recorder is not None:
                self._recorder.close(self._recording_counts(self._capture))
            self._capture.close()

    def _make_output(self, name: str, context: Context) -> Output:
        output: ConsoleOutput | JsonLinesOutput
        if name == "console":
            output = ConsoleOutput(context.counters, on_gone=lambda: self._reader_left(name))
        elif name == "jsonl":
            path = context.settings.text("access_log.jsonl.path")
            output = JsonLinesOutput(path, context.counters, lambda: self._reader_left(name))
        else:
            return _make_skywalking_output(context)
        context.telemetry.check(f"output {name}", output.trouble)
        return output

    def _reader_left(self, name: str) -> None:
        """Nobody will ever read an output again; without any other, nor a recording, there is no use in going on."""
        self._unread.add(name)
        alone = self._recorder is None and all(output.name in self._unread for output in self._outputs)
        log.warning("output_reader_left", output=name, stopping=alone)
        if alone and self._context is not None:
            self._context.stop()

    def _say_totals(self, *, finished: bool) -> None:
        """One line at the end: what was read, and what became of it, by output, unit and reason."""
        if self._hub is None or self._capture is None:
            return
        ledger = self._hub.settle_ledger(self._capture.sequences()) if finished else self._hub.ledger
        totals: Counter[str] = Counter()
        for balance in ledger.balances:
            prefix = f"{balance.output}_{balance.unit}"
            totals[f"{prefix}_exported"] = balance.exported
            if "disk" in balance.open:
                totals[f"{prefix}_kept_on_disk"] = balance.open["disk"]
            for reason, count in balance.filtered.items():
                totals[f"{prefix}_filtered_{reason}"] += count
            for (_, reason), count in balance.lost.items():
                totals[f"{prefix}_lost_{reason}"] += count
            for reason, count in balance.unparsed.items():
                totals[f"{prefix}_unparsed_{reason}"] += count
        for name in ("records", "held", "exchanges_out", "bookkeeping", "evicted"):
            totals[name] = sum(report[name] for report in ledger.reports.values())
        for report in ledger.reports.values():
            totals["provisional_chosen"] += report["provisional"]["chosen"]
            for reason, count in report["provisional"]["dropped"].items():
                totals[f"provisional_{reason}"] += count
        totals["lost_ring"] = ledger.lost_ring()
        totals["imbalance"] = ledger.imbalance()
        totals["ring_most_pending"] = max(
            (report["ring_most_pending"] for report in ledger.reports.values()), default=0
        )
        for statistic, value in self._capture.statistics().items():
            if value and statistic is not Statistic.RECORDS:
                totals[f"kernel_{statistic.name.lower()}"] = value
        totals["kernel_missed_runs"] = sum(self._capture.missed_runs().values())
        log.info("access_log_totals", **totals)

    def _recording_counts(self, capture: Capture) -> dict[str, Any]:
        kernel = {statistic.name.lower(): count for statistic, count in capture.statistics().items()}
        reports = self._hub.ledger.reports.values() if self._hub is not None else ()
        return {"records": sum(report["records"] for report in reports), "kernel": kernel}

    def _on_process(self, change: Change) -> None:
        if self._hub is not None:
            self._hub.process_changed(change)

    def _on_translations(self, answers: Sequence[Translation]) -> None:
        if self._hub is not None:
            self._hub.translated(answers)

    def _on_feed_state(self, state: FeedState) -> None:
        if state is FeedState.LIVE and self._hub is not None:
            self._hub.processes_complete()
        event = log.warning if state in {FeedState.STALE, FeedState.DOWN} else log.debug
        event("process_feed_state", state=state.value)


def _worker_options(settings: Settings, shard: int, encodings: tuple[str, ...], *, record: bool) -> WorkerOptions:
    return WorkerOptions(
        shard=shard,
        encodings=encodings,
        # A recording holds nothing of what would be lost here, so nothing is.
        queue_size=1 << 30 if record else settings.integer("access_log.protocol_analyze.queue_size"),
        max_connections=shard_connections(settings),
        max_bytes=settings.size("access_log.connections.max_bytes"),
        exchange_timeout_s=settings.seconds("access_log.exchange.timeout"),
        grpc_status_as_http=settings.flag("access_log.grpc_status_mapping"),
        path_templates=settings.flag("access_log.path_templates"),
        open_report_s=settings.seconds("access_log.exchange.open_report_period"),
        record=record,
        confine=settings.flag("privileges.drop"),
    )


def _make_skywalking_output(context: Context) -> Output:
    # Only this output brings grpc, protobuf and h2 along.
    from rover_plugin.access_log.outputs.skywalking import SkyWalkingOutput  # noqa: PLC0415 see above
    from rover_plugin.backend.module import CoreModule  # noqa: PLC0415 see above

    core = module_as(context.modules["core"], CoreModule)
    context.telemetry.check("backend", core.unhealthy)
    return SkyWalkingOutput(context.settings, core, context.counters)
