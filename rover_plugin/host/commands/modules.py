# SPDX-License-Identifier: Apache-2.0
"""`rover-host modules`."""

from __future__ import annotations

import click

from rover_plugin.host.options import load_settings, settings_options
from rover_plugin.host.registry import describe, registered
from rover_plugin.host.show import show


@click.command("modules")
@settings_options
def command() -> None:
    """Lists the registered modules: whether they are active with these settings, and what they require."""
    settings = load_settings()
    for name, state, requires in describe(settings, registered()):
        show(f"{name:20}  {state:8}  {requires}".rstrip())
