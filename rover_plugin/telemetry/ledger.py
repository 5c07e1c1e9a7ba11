# SPDX-License-Identifier: Apache-2.0
"""The loss ledger (design §4): what was read, and what became of it, for each output and unit, balanced to 0.

Two units, each with a balance of its own for every output:

    kernel     read + ahead + restored = bookkeeping + exported + filtered + lost + unparsed + open  (records, calls)
    protocol   read + ahead + restored =               exported + filtered + lost            + open  (exchanges)

Nobody computes a term from the others: records are counted where they are read, calls where they leave a shard, what is
lost where it is dropped, what is open by adding up what the containers hold.

It is exact, not sampled. A worker's report travels behind everything it counts, on the same ordered link, and is
checked in the thread that takes both. What other workers have handed over since their own last reports is `ahead`.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.telemetry.counters import Counters

log = structlog.get_logger(__name__)

UNITS: Final = ("kernel", "protocol")
HUB_FULL: Final = "hub_full"  # the one loss counted under an output's name that happens before the output
_LOG_PERIOD_S: Final = 10.0
_COUNTER_MASK: Final = (1 << 32) - 1

# (stage, reason) of a loss: stage is ring, queue (worker to main process) or send (an output).
Losses = dict[tuple[str, str], int]


class Logs(NamedTuple):
    """A number of kernel logs and one of protocol logs."""

    kernel: int
    protocol: int


class Standing(NamedTuple):
    """What became of everything an output was given, or would have been, at one moment.

    Attributes:
        exported, filtered, lost: as counted under the output's name; the latter two by reason.
        held: given to the output and not counted yet.
        restored: found in files of an earlier run, when the output was made.
        kept: in files, to be sent later, maybe by a later run.
    """

    exported: Logs
    filtered: dict[str, Logs]
    lost: dict[str, Logs]
    held: Logs
    restored: Logs = Logs(0, 0)
    kept: Logs = Logs(0, 0)


def standing(counters: Counters, output: str, held: Logs) -> Standing:
    """Reads an output's counters; to be called while nothing can change between them and `held`."""
    sums: dict[str, dict[str, list[int]]] = {"logs_exported": {}, "logs_filtered": {}, "logs_lost": {}}
    for (name, labels), value in counters.snapshot().items():
        facts = dict(labels)
        if name in sums and facts.get("output") == output:
            sums[name].setdefault(facts.get("reason", ""), [0, 0])[UNITS.index(facts["unit"])] += value
    exported, filtered, lost = ({reason: Logs(*both) for reason, both in found.items()} for found in sums.values())
    return Standing(exported.get("", Logs(0, 0)), filtered, lost, held)


@dataclass(slots=True)
class Balance:
    """One line of the ledger: of one output and unit, at one moment.

    Attributes:
        read: what the workers read, and what the ring had no room for, up to their last reports.
        ahead: what workers have handed over since their last reports.
        restored: what an earlier run had left in the output's files.
        bookkeeping: records that are no kernel log.
        open: in the connections of the workers (`worker`), unnamed yet (`hub`), with the output (`output`), or in the
            output's files (`disk`).
    """

    output: str
    unit: str
    read: int = 0
    ahead: int = 0
    restored: int = 0
    bookkeeping: int = 0
    exported: int = 0
    filtered: dict[str, int] = field(default_factory=dict)
    lost: Losses = field(default_factory=dict)
    unparsed: dict[str, int] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)

    @property
    def imbalance(self) -> int:
        """What nobody can account for (positive) or was counted twice (negative); anything but 0 is a bug."""
        known = self.bookkeeping + self.exported
        parts: tuple[Mapping[Any, int], ...] = (self.filtered, self.lost, self.unparsed, self.open)
        return self.read + self.ahead + self.restored - known - sum(sum(part.values()) for part in parts)


class Ledger:
    """The balances of all outputs. Belongs to the thread that takes the workers' links.

    Args:
        encodings: in the order of their index on the link.
        outputs: each takes the fragments of one encoding.

    Attributes:
        refused: asks how many records the kernel side has kept out of rings that had room (bpf/share.h); to be set by
            who has one.
        reports: the latest report of each worker.
        reported_at: when it came, by `time.monotonic`.
        balances: as of the last check; replaced as a whole, so that other threads may read it.
        worker_imbalance: by worker and encoding index, as of its last report.
    """

    def __init__(self, encodings: Sequence[str], outputs: Sequence[Output]) -> None:
        self._encodings = tuple(encodings)
        self._outputs = outputs
        self._received: dict[int, list[list[int]]] = {}
        self._at_report: dict[int, list[list[int]]] = {}
        self.refused: Callable[[], int] = lambda: 0
        self._late_losses = 0
        self._ring_lost: Counter[str] = Counter()
        self._logged_at = self._losses_said_at = float("-inf")
        self._losses_said: dict[str, int] = {}
        self.reports: dict[int, dict[str, Any]] = {}
        self.reported_at: dict[int, float] = {}
        self.balances: tuple[Balance, ...] = ()
        self.worker_imbalance: dict[tuple[int, int], Logs] = {}

    def received(self, worker: int) -> list[list[int]]:
        """By encoding index and unit: what the worker has handed over. The taker of its link adds to it."""
        if worker not in self._received:
            self._received[worker] = [[0, 0] for _ in self._encodings]
        return self._received[worker]

    def report(self, worker: int, report: dict[str, Any], waiting: Sequence[Logs]) -> None:
        """Takes a worker's report, the moment it arrives, and checks.

        Args:
            worker: whose link it came on.
            report: as `worker.shard_counts` makes it.
            waiting: by encoding index, what came from any worker and was not given to the outputs yet.
        """
        self.reports[worker] = report
        self.reported_at[worker] = time.monotonic()
        self._at_report[worker] = at_report = [list(both) for both in self.received(worker)]
        for encoding in range(len(self._encodings)):
            self.worker_imbalance[worker, encoding] = _worker_imbalance(report, encoding, at_report[encoding])
        self.check(waiting)
        if time.monotonic() - self._losses_said_at >= _LOG_PERIOD_S:
            self._say_losses()

    def check(self, waiting: Sequence[Logs]) -> None:
        """Draws all balances anew; an imbalance is logged, not more often than every 10 s."""
        self.balances = tuple(
            self._balance(output, output.standing(), unit, waiting)
            for output in self._outputs
            for unit in range(len(UNITS))
        )
        if self.imbalance() and time.monotonic() - self._logged_at >= _LOG_PERIOD_S:
            self._logged_at = time.monotonic()
            self._complain()

    def settle_ring(self, kernel_sequences: Mapping[int, int]) -> None:
        """Counts what the rings lost after the last record that could be read; once, when all have been read.

        Args:
            kernel_sequences: by worker, how many records the kernel side has made, modulo 2^32.
        """
        for worker, made in kernel_sequences.items():
            report = self.reports.get(worker)
            if report is not None:
                # Those of the other ring have sequence numbers of their own.
                read = report["records"] - report.get("provisional", {}).get("chosen", 0)
                self._late_losses += (made - read - report["lost_ring"]) & _COUNTER_MASK

    def lost_ring(self) -> int:
        """Records that found no room in a ring, or were kept out of one."""
        return self._late_losses + sum(int(report["lost_ring"]) for report in self.reports.values())

    def _ring_losses(self) -> Losses:
        """The same by reason. Neither ever becomes less; both are right once the rings have been read to their end."""
        more = self.lost_ring() - self._ring_lost.total()
        if more:
            share = min(more, self.refused() - self._ring_lost["share"])
            self._ring_lost["share"] += share
            self._ring_lost["ring_full"] += more - share
        return {("ring", reason): count for reason, count in self._ring_lost.items() if count}

    def imbalance(self) -> int:
        """All imbalances there are, without their signs; 0 unless there is a bug."""
        totals = sum(abs(balance.imbalance) for balance in self.balances)
        parts = sum(abs(amount) for both in self.worker_imbalance.values() for amount in both)
        return totals + parts + sum(int(report["imbalance"]) for report in self.reports.values())

    def _balance(self, output: Output, stands: Standing, unit: int, waiting: Sequence[Logs]) -> Balance:
        encoding = self._encodings.index(output.encoding)
        reports = self.reports.values()
        balance = Balance(output.name, UNITS[unit])
        balance.ahead = sum(
            both[encoding][unit] - (self._at_report[worker][encoding][unit] if worker in self._at_report else 0)
            for worker, both in self._received.items()
        )
        balance.exported = stands.exported[unit]
        balance.filtered = {reason: both[unit] for reason, both in stands.filtered.items() if both[unit]}
        for reason, both in stands.lost.items():
            if both[unit]:
                balance.lost["queue" if reason == HUB_FULL else "send", reason] = both[unit]
        balance.restored = stands.restored[unit]
        balance.open = {"hub": waiting[encoding][unit], "output": stands.held[unit]}
        if balance.restored or stands.kept[unit]:
            balance.open["disk"] = stands.kept[unit]
        for report in reports:
            for at, reason, *both in report["lost_queue"]:
                if at == encoding and both[unit]:
                    _add(balance.lost, ("queue", reason), both[unit])
        if unit == UNITS.index("kernel"):
            balance.read = self.lost_ring() + sum(report["records"] for report in reports)
            balance.bookkeeping = sum(report["bookkeeping"] for report in reports)
            balance.open["worker"] = sum(report["held"] for report in reports)
            balance.lost |= self._ring_losses()
            for report in reports:
                for reason, count in report["unparsed"].items():
                    _add(balance.unparsed, reason, count)
        else:
            balance.read = sum(report["exchanges_out"] for report in reports)
            for report in reports:
                for reason, count in report["filtered"][encoding].items():
                    _add(balance.filtered, reason, count)
        return balance

    def _say_losses(self) -> None:
        """Logs what was lost before the outputs since it was last said; outputs tell of their own losses."""
        losses = {"ring_records": self.lost_ring()}
        for balance in self.balances:
            for (stage, reason), count in balance.lost.items():
                if stage == "queue":
                    losses[f"{balance.output}_{balance.unit}_{reason}"] = count
        grown = {name: count - self._losses_said.get(name, 0) for name, count in losses.items()}
        if any(grown.values()):
            self._losses_said_at = time.monotonic()
            self._losses_said = losses
            log.warning(
                "logs_lost_before_output",
                **{name: count for name, count in grown.items() if count},
                hint="more access_log.protocol_analyze.per_cpu_buffer, parallels or queue_size may help",
            )

    def _complain(self) -> None:
        for balance in self.balances:
            log.error(
                "ledger_out_of_balance",
                output=balance.output,
                unit=balance.unit,
                imbalance=balance.imbalance,
                read=balance.read,
                ahead=balance.ahead,
                restored=balance.restored,
                bookkeeping=balance.bookkeeping,
                exported=balance.exported,
                filtered=balance.filtered,
                lost={"_".join(where): count for where, count in balance.lost.items()},
                unparsed=balance.unparsed,
                open=balance.open,
                workers={
                    worker: both[UNITS.index(balance.unit)]
                    for (worker, encoding), both in self.worker_imbalance.items()
                    if any(
                        out.name == balance.output and out.encoding == self._encodings[encoding]
                        for out in self._outputs
                    )
                },
                connections=sum(report["imbalance"] for report in self.reports.values()),
                hint="please report this line: some logs are not accounted for",
            )


def _worker_imbalance(report: dict[str, Any], encoding: int, received: list[int]) -> Logs:
    """What one worker read and neither handed over nor accounts for otherwise."""
    kernel, protocol = received
    for at, _, lost_kernel, lost_protocol in report["lost_queue"]:
        if at == encoding:
            kernel += lost_kernel
            protocol += lost_protocol
    kernel += report["bookkeeping"] + sum(report["unparsed"].values()) + report["held"]
    protocol += sum(report["filtered"][encoding].values())
    return Logs(report["records"] - kernel, report["exchanges_out"] - protocol)


def _add(sums: dict[Any, int], key: object, count: int) -> None:
    sums[key] = sums.get(key, 0) + count
