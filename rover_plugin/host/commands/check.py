# SPDX-License-Identifier: Apache-2.0
"""`rover-host check`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from rover_plugin.host.check import Status, check
from rover_plugin.host.options import load_settings, settings_options
from rover_plugin.host.show import show

_COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print an array of {name, status, detail, hint}.")
@settings_options
def command(as_json: bool) -> None:
    """Finds out whether this host can make access logs, and what to do if not. Exits 1 if something fails."""
    findings = check(load_settings())
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            show(f"{finding.status:4}", _COLOURS[finding.status], end="")
            show(f"  {finding.name}: {finding.detail}")
            if finding.hint:
                show(f"      {finding.hint}")
    sys.exit(int(any(finding.status is Status.FAIL for finding in findings)))
