# SPDX-License-Identifier: Apache-2.0
"""Runs a recording through the agent's own analysis: no privileges, one process, no clock but the recording's.

Shards, link, encoders, resolver and outputs are the agent's, and are given what those of the recording agent were
given, in the same order. So the same file gives the same bytes each time, and those that the agent wrote.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rover_plugin.access_log.address_book import AddressBook
from rover_plugin.access_log.link import LinkWriter
from rover_plugin.access_log.outbox import Outbox
from rover_plugin.access_log.resolver import FOREVER_NS, Resolver
from rover_plugin.access_log.schedule import Schedule
from rover_plugin.access_log.shard import Shard
from rover_plugin.access_log.worker import BATCH, shard_counts
from rover_plugin.access_log.worker_options import WorkerOptions
from rover_plugin.capture.recording import Batch, End, Processes, Settling, Statistics, Translations
from rover_plugin.telemetry.ledger import Logs, standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.capture.recording import Block, RecordingHeader, RecordingReader
    from rover_plugin.telemetry.counters import Counters
    from rover_plugin.telemetry.ledger import Standing


class NoOutput:
    """An output that only counts what it is given."""

    name = "none"
    encoding = "json"

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:  # noqa: ARG002 nobody reads it
        """Nothing."""
        return b""

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:  # noqa: ARG002 nobody reads it
        """Counts."""
        self._counters.add("logs_exported", kernel_logs, output="none", unit="kernel")
        self._counters.add("logs_exported", protocol_logs, output="none", unit="protocol")

    def standing(self) -> Standing:
        """Nothing is held."""
        return standing(self._counters, self.name, Logs(0, 0))

    def tick(self) -> None:
        """Nothing is held."""

    def close(self, deadline_s: float) -> None:
        """Nothing is held."""


class _NoPolicies:
    """What was captured is captured: nobody is told what to leave out."""

    def set(self, key: bytes, value: bytes) -> None:
        pass

    def delete(self, key: bytes) -> bool:  # noqa: ARG002 see above
        return False


class _DirectChannel:
    """A link's other end in the same process."""

    def __init__(self, replay: Replay, worker: int) -> None:
        self._replay, self._worker = replay, worker

    def send(self, datagram: bytes, /) -> int:
        self._replay.deliver(datagram, self._worker)
        return len(datagram)

    def fileno(self) -> int:
        return -1  # it always takes everything


@dataclass(slots=True)
class Summary:
    """What a replay came to. Ledger: `records` = `exported` + `filtered` + `lost` + `bookkeeping` + `unparsed`.

    Attributes:
        records, exchanges: read from the file, and found in it.
        exported, filtered, lost: kernel logs, by what became of them (and why).
        lost_before: records that never reached the recorder, by gaps in their sequence numbers.
        imbalance: what the ledger is out by; anything but 0 is a bug.
        errors: what could not be parsed, by reason.
        seconds: how long the replay took.
        cut: the file ends in the middle.
        recorded: statistics of kernel side and recorder.
    """

    records: int = 0
    exchanges: int = 0
    exported: int = 0
    filtered: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    lost_before: int = 0
    bookkeeping: int = 0
    unparsed: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    evicted: int = 0
    gap_bytes: int = 0
    imbalance: int = 0
    seconds: float = 0.0
    cut: bool = False
    recorded: dict[str, Any] = field(default_factory=dict)


class _Lane:
    """What a worker process is made of, without its process."""

    def __init__(self, replay: Replay, options: WorkerOptions) -> None:
        self.number = options.shard
        self.finished = False
        self.link = LinkWriter(_DirectChannel(replay, options.shard), options.queue_size)
        self.outbox = Outbox(self.link, _NoPolicies(), options)
        self.shard = Shard(self.outbox, options.max_connections, max_bytes=options.max_bytes)
        self.schedule = Schedule(self.shard, options.exchange_timeout_s, options.open_report_s)

    def hand_over(self) -> None:
        """What a worker does after each batch of records."""
        self.outbox.hand_over()
        self.link.flush()


class Replay:
    """The agent's analysis, fed block by block.

    Args:
        header: of the recording the blocks come from.
        outputs: take the messages; all of the encoding "json".
    """

    def __init__(self, header: RecordingHeader, outputs: Sequence[Output], counters: Counters) -> None:
        options = header.options
        self._outputs = outputs
        self._counters = counters
        self._now_ns = header.start_ns
        self._recorded: dict[str, Any] = {}
        addresses = frozenset(bytes.fromhex(text) for text in header.local_addresses)
        book = AddressBook(options.exclude_namespaces, options.exclude_clusters, lambda: addresses)
        # The answers are in the recording.
        translate = (lambda _: None) if options.translations else None
        self._resolver = Resolver(
            ("json",), outputs, book, counters, lambda _: True, lambda _: None, header.shards, translate
        )
        self._lanes = [
            _Lane(
                self,
                WorkerOptions(
                    shard=shard,
                    encodings=("json",),
                    queue_size=1 << 30,
                    max_connections=options.max_connections,
                    max_bytes=options.max_bytes,
                    exchange_timeout_s=options.exchange_timeout_s,
                    grpc_status_as_http=options.grpc_status_as_http,
                    path_templates=options.path_templates,
                    open_report_s=options.open_report_s,
                ),
            )
            for shard in range(header.shards)
        ]

    def take(self, block: Block) -> None:
        """Takes the recording's next block."""
        if isinstance(block, Batch):
            self._take_batch(block)
        elif isinstance(block, Processes):
            self._now_ns = block.read_ns
            for change in block.changes:
                self._resolver.change_process(change, block.read_ns)
        elif isinstance(block, Settling):
            self._now_ns = block.read_ns
            self._resolver.settle(block.read_ns)
        elif isinstance(block, Translations):
            self._now_ns = block.read_ns
            self._resolver.translated(block.answers, block.read_ns)
        elif isinstance(block, Statistics):
            self._recorded = block.counts
        elif isinstance(block, End):
            self._now_ns = block.read_ns

    def deliver(self, datagram: bytes, worker: int) -> None:
        """From a shard's link."""
        self._resolver.take(datagram, self._now_ns, worker)

    def finish(self) -> Summary:
        """Everything open comes out; returns the sums."""
        for lane in self._lanes:
            if not lane.finished:
                lane.shard.finish(self._now_ns)
                lane.hand_over()
        self._resolver.settle(FOREVER_NS)
        for output in self._outputs:
            output.tick()
        return self._sum_up()

    def _take_batch(self, batch: Batch) -> None:
        self._now_ns = batch.taken_ns
        lane = self._lanes[batch.shard]
        lane.outbox.set_clock(batch.clock_offset_ns)
        taken = batch.each(lane.shard.handle)
        if batch.final:
            lane.finished = True
            lane.shard.finish(batch.read_ns)
        else:
            lane.schedule.pass_time(batch.read_ns)
            if taken < BATCH:
                lane.link.reached(batch.read_ns)
        lane.hand_over()
        for output in self._outputs:
            output.tick()

    def _sum_up(self) -> Summary:
        summary = Summary(recorded=self._recorded)
        for lane in self._lanes:
            counts: dict[str, Any] = shard_counts(lane.number, lane.shard, lane.outbox, lane.link)
            summary.records += counts["records"]
            summary.exchanges += counts["exchanges_out"]
            summary.lost_before += counts["lost_ring"]
            summary.bookkeeping += counts["bookkeeping"]
            summary.evicted += counts["evicted"]
            summary.gap_bytes += counts["gap_bytes"]
            summary.lost += sum(kernel for _, _, kernel, _ in counts["lost_queue"])
            summary.imbalance += counts["imbalance"]
            for sums, found in ((summary.unparsed, counts["unparsed"]), (summary.errors, counts["errors"])):
                for reason, count in found.items():
                    sums[reason] = sums.get(reason, 0) + count
        for (name, labels), value in sorted(self._counters.snapshot().items()):
            facts = dict(labels)
            if facts.get("unit") != "kernel":
                continue
            if name == "logs_exported":
                summary.exported += value
            elif name == "logs_lost":
                summary.lost += value
            elif name == "logs_filtered":
                summary.filtered[facts["reason"]] = value
        accounted = summary.exported + sum(summary.filtered.values()) + summary.lost + summary.bookkeeping
        summary.imbalance += abs(summary.records - accounted - sum(summary.unparsed.values()))
        return summary


def replay(reader: RecordingReader, output: Output, counters: Counters) -> Summary:
    """Replays a whole recording into one output, which stays the caller's to close.

    Raises:
        RecordingError: the file is damaged.
    """
    began = time.perf_counter()
    engine = Replay(reader.header, [output], counters)
    for block in reader.blocks():
        engine.take(block)
    summary = engine.finish()
    summary.seconds = time.perf_counter() - began
    summary.cut = reader.cut
    return summary
