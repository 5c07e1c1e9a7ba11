# SPDX-License-Identifier: Apache-2.0
"""Standard output of the commands, for people: whatever is in a text, it stays on its line and steers nothing."""

from __future__ import annotations

import sys

import click

from rover_plugin.outlet import coloured, is_terminal
from rover_plugin.text import printable


def show(text: str, colour: str = "", *, end: str = "\n") -> None:
    """One line, or with another `end` a part of one; `colour` is a name that click knows, for terminals only."""
    plain = is_terminal(sys.stdout) and not coloured(sys.stdout)
    click.secho(printable(text), fg=colour or None, nl=False, color=False if plain else None)
    click.echo(end, nl=False)
