# SPDX-License-Identifier: Apache-2.0
"""`--config` and `--set`, which `rover-host` and its commands share: before the command's name, after it, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click
import structlog

from rover_plugin.host.logs import configure_logs
from rover_plugin.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.settings import Settings

log = structlog.get_logger()

F = TypeVar("F", bound="Callable[..., Any]")

_FILES = f"{__name__}.files"
_OVERRIDES = f"{__name__}.overrides"


def settings_options(function: F) -> F:
    """Adds the two options to a command; it gets at them through `load_settings`."""
    config = click.option(
        "--config",
        metavar="FILE",
        multiple=True,
        expose_value=False,
        callback=lambda context, _, value: context.meta.setdefault(_FILES, []).extend(value),
        help="TOML file with settings; repeatable, later ones win.",
    )
    override = click.option(
        "--set",
        metavar="KEY=VALUE",
        multiple=True,
        expose_value=False,
        callback=lambda context, _, value: context.meta.setdefault(_OVERRIDES, []).extend(value),
        help="One setting; repeatable, wins over files and ROVER_* variables.",
    )
    return config(override(function))


def load_settings(*overrides: str) -> Settings:
    """Loads the settings that the current command line asks for, and sets up logging by them.

    Args:
        overrides: `key=value` texts that win over everything the user says.

    Raises:
        SettingsError: something in a layer is unknown or wrong.
    """
    meta = click.get_current_context().meta  # shared by a command and its group
    settings = load(meta.get(_FILES, ()), overrides=(*meta.get(_OVERRIDES, ()), *overrides))
    configure_logs(settings.text("logger.level"))
    for warning in settings.warnings:
        log.warning("variable_unknown", detail=warning)
    return settings
