# SPDX-License-Identifier: Apache-2.0
"""Reads a telemetry endpoint as Prometheus would."""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

# (name as served, values of the labels in the order of the labels' names)
Values = dict[tuple[str, ...], float]


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:  # noqa: S310 ours
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def scrape(url: str) -> Values:
    """Every value of `/metrics` at this address: `rover_ring_bytes`, `0`."""
    families = text_string_to_metric_families(get(f"{url}/metrics")[2])
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def total(values: Values, name: str, *labels: str) -> float:
    """Sum of the values of `name` that have all of `labels`."""
    return sum(value for key, value in values.items() if key[0] == name and set(labels) <= set(key[1:]))
