# SPDX-License-Identifier: Apache-2.0
"""Where modules register what can be known about them. Costs nothing until somebody asks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rover_plugin import __version__
from rover_plugin.telemetry.counters import Counters
from rover_plugin.telemetry.metrics import METRICS, Metric, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Source = Callable[[], Iterable[Sample]]


@dataclass(slots=True)
class Histograms:
    """Values of one histogram by label values.

    Attributes:
        bounds: upper bounds of the buckets, rising; what is above the last is counted in `+Inf`.
        counts, sums: by label values; one count a bucket and one for `+Inf`, not cumulated.
    """

    name: str
    bounds: tuple[float, ...]
    counts: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    sums: dict[tuple[str, ...], float] = field(default_factory=dict)

    def observe(self, value: float, labels: tuple[str, ...]) -> None:
        """Counts one value; to be called from one thread only."""
        counts = self.counts.get(labels)
        if counts is None:
            counts = self.counts[labels] = [0] * (len(self.bounds) + 1)
            self.sums[labels] = 0.0
        at = 0
        while at < len(self.bounds) and value > self.bounds[at]:
            at += 1
        counts[at] += 1
        self.sums[labels] += value


class Telemetry:
    """All that is known about this agent: counters, sources of samples, and health checks. Thread-safe.

    Attributes:
        counters: the process-wide counters; each of them that METRICS names is served.
        phase: what the host is doing, empty while it runs; anything else is unhealthy.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters if counters is not None else Counters()
        self.phase = "starting"
        self._lock = threading.Lock()
        self._metrics = {metric.name: metric for metric in METRICS}
        self._sources: list[Source] = []
        self._histograms: list[Histograms] = []
        self._checks: dict[str, Callable[[], str]] = {}
        self._probe_wishes: list[Callable[[], None]] = []

    def register(self, source: Source, metrics: Sequence[Metric] = ()) -> None:
        """Adds a source of samples.

        Args:
            source: called at each scrape, in a thread of its own; gives samples of metrics that are defined.
            metrics: definitions beyond METRICS, for modules of other packages.
        """
        with self._lock:
            self._metrics |= {metric.name: metric for metric in metrics}
            self._sources.append(source)

    def register_histograms(self, histograms: Histograms) -> None:
        """Adds a histogram that somebody feeds."""
        with self._lock:
            self._histograms.append(histograms)

    def check(self, name: str, check: Callable[[], str]) -> None:
        """Adds a health check: it returns what is wrong, or an empty string; called in a thread of its own."""
        with self._lock:
            self._checks[name] = check

    def on_probes_wanted(self, wish: Callable[[], None]) -> None:
        """Adds what is to be called before a scrape that wants the BPF programs' run counts."""
        with self._lock:
            self._probe_wishes.append(wish)

    def want_probes(self) -> None:
        """Somebody wants the BPF programs' run counts."""
        for wish in list(self._probe_wishes):
            wish()

    def unhealthy(self) -> dict[str, str]:
        """What is wrong, by check; empty when all is well."""
        with self._lock:
            checks = dict(self._checks)
        found = {name: check() for name, check in checks.items()}
        return {name: reason for name, reason in {"host": self.phase, **found}.items() if reason}

    def samples(self) -> list[tuple[Metric, list[Sample]]]:
        """Every metric that has values now, in the order of the definitions; histograms apart."""
        with self._lock:
            sources = list(self._sources)
            metrics = dict(self._metrics)
        found: dict[str, list[Sample]] = {name: [] for name in metrics}
        for (name, labels), value in self.counters.snapshot().items():
            metric = metrics.get(f"rover_{name}")
            if metric is not None:
                facts = dict(labels)
                found[metric.name].append(Sample(metric.name, value, tuple(facts[label] for label in metric.labels)))
        found["rover_info"].append(Sample("rover_info", 1, (__version__,)))
        for source in sources:
            for sample in source():
                found[sample.name].append(sample)
        return [(metrics[name], samples) for name, samples in found.items() if samples]

    def histograms(self) -> list[tuple[Metric, Histograms]]:
        """Every histogram."""
        with self._lock:
            return [(self._metrics[histograms.name], histograms) for histograms in self._histograms]
