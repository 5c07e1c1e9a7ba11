# SPDX-License-Identifier: Apache-2.0
"""`rover-host config`."""

from __future__ import annotations

import click

from rover_plugin.host.options import load_settings, settings_options
from rover_plugin.host.show import show


@click.command("config")
@settings_options
def command() -> None:
    """Shows every setting, its effective value and where it was set. Secrets are masked.

    A rule that is none is refused here as it would be at the start.
    """
    from rover_plugin.discovery.local_finder import local_finder  # noqa: PLC0415 takes long, and only this needs it

    settings = load_settings()
    local_finder(settings, "")
    rows = [(key.name, settings.shown(key.name), settings.origin(key.name)) for key in settings.schema.keys.values()]
    name_width = max(len(name) for name, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    for name, value, origin in rows:
        show(f"{name:{name_width}}  {value:{value_width}}  {origin}")
