# SPDX-License-Identifier: Apache-2.0
"""`rover-host why`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from rover_plugin.host.options import load_settings, settings_options
from rover_plugin.host.show import show


@click.command("why")
@click.argument("pid", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print {pid, logged, reason, detail, hint, asked}.")
@settings_options
def command(pid: int, as_json: bool) -> None:
    """Says the first reason why process PID is, or is not, in the access log.

    Asks the running rover-host through its process feed; if none runs, says what one with these settings would do.
    Exits 0 if it is logged, 1 if not.
    """
    from rover_plugin.host.why import why  # noqa: PLC0415 takes long, and only this needs it

    answer = why(pid, load_settings("logger.level=ERROR"))
    if as_json:
        click.echo(json.dumps(asdict(answer), indent=2))
    else:
        show("logged" if answer.logged else "not logged", "green" if answer.logged else "yellow", end="")
        show(f"  {answer.detail}")
        if answer.hint:
            show(f"      {answer.hint}")
    sys.exit(int(not answer.logged))
