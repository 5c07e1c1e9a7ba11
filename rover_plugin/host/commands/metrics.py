# SPDX-License-Identifier: Apache-2.0
"""`rover-host metrics`."""

from __future__ import annotations

import click

from rover_plugin.telemetry.metrics import markdown


@click.command("metrics")
def command() -> None:
    """Prints the documentation of every metric, as Markdown; docs/metrics.md is this."""
    click.echo(markdown(), nl=False)
