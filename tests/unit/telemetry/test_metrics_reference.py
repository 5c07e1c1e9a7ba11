# SPDX-License-Identifier: Apache-2.0
"""The one table of metrics, the file made from it, and the counters in the code agree."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from rover_plugin.host.cli import cli
from rover_plugin.telemetry.metrics import LEDGER_COUNTERS, METRICS, Kind

ROOT = Path(__file__).parents[3]
_ADDED = re.compile(r"""counters\.add\(\s*"(\w+)"[^)]*?\)""", re.DOTALL)
_SAMPLED = re.compile(r'Sample\(\s*"(rover_\w+)"')


def sources() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "rover_plugin").rglob("*.py"))


def test_the_reference_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(cli, ["metrics"])
    assert printed.exit_code == 0
    assert (ROOT / "docs" / "metrics.md").read_text() == printed.output, "run: rover-host metrics > docs/metrics.md"


def test_every_counter_in_the_code_is_served() -> None:
    counted = set(_ADDED.findall(sources()))
    assert len(counted) >= 5
    assert counted - LEDGER_COUNTERS <= {metric.name.removeprefix("rover_") for metric in METRICS}


def test_every_sample_in_the_code_is_defined() -> None:
    sampled = set(_SAMPLED.findall(sources()))
    assert len(sampled) >= 10
    assert sampled <= {metric.name for metric in METRICS}


def test_names_follow_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"rover(_[a-z]+)+", metric.name)
        assert metric.served_name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help.endswith(".")
