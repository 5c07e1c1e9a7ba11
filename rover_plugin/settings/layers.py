# SPDX-License-Identifier: Apache-2.0
"""The layers of the configuration, each read into validated entries that know where they come from.

Later wins: default.toml, then --config files, then ROVER_* variables, then --set (design §4, "Configuration").
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rover_plugin.errors import SettingsError
from rover_plugin.settings.toml_lines import read_assignments
from rover_plugin.settings.values import Value, convert

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from rover_plugin.settings.schema import Key, Schema

_PREFIX = "ROVER_"
# Documented variables without a key: where the host's /proc and /etc are seen from inside a container.
_WITHOUT_KEY = frozenset({"ROVER_HOST_PROC_MAPPING", "ROVER_HOST_ETC_MAPPING"})


@dataclass(frozen=True, slots=True)
class Entry:
    """What one layer says about one key: the converted value, and `default`, `FILE:LINE`, a variable or `--set`."""

    key: Key
    value: Value
    origin: str


def from_defaults(schema: Schema) -> Iterator[Entry]:
    """The shipped defaults, one entry for each key."""
    return (_entry(key, key.default, "default") for key in schema.keys.values())


def from_file(schema: Schema, file: Path) -> Iterator[Entry]:
    """The entries of a TOML file.

    Raises:
        SettingsError: unreadable file, unknown key or bad value; names file and line.
    """
    for assignment in read_assignments(file):
        yield from _entries(schema, ".".join(assignment.path), assignment.value, f"{file}:{assignment.line}")


def from_environment(schema: Schema, environ: Mapping[str, str]) -> Iterator[Entry]:
    """The entries of the variables that belong to a key; an empty variable counts as unset.

    Raises:
        SettingsError: bad value; names the variable.
    """
    for variable, key in schema.by_variable.items():
        if environ.get(variable):
            yield _entry(key, environ[variable], variable)


def unknown_variables(schema: Schema, environ: Mapping[str, str]) -> list[str]:
    """Warnings, one line each, about ROVER_* variables that set nothing."""
    warnings = []
    for variable in sorted(environ):
        if variable.startswith(_PREFIX) and variable not in schema.by_variable and variable not in _WITHOUT_KEY:
            nearest = schema.nearest_variable(variable)
            warnings.append(f"variable {variable} sets nothing" + (f": did you mean {nearest}?" if nearest else ""))
    return warnings


def from_overrides(schema: Schema, overrides: Iterable[str]) -> Iterator[Entry]:
    """The entries of `--set key=value` arguments; the value is TOML, or text as in a variable.

    Raises:
        SettingsError: no `=`, unknown key or bad value; names the argument.
    """
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            message = f"--set {override} has no value"
            raise SettingsError(message, hint="write --set key=value", key=name)
        table = _toml(value)
        if isinstance(table, dict):
            yield from _entries(schema, name.strip(), table, "--set")
        else:
            key = _known(schema, name.strip(), "--set")
            yield _entry(key, _toml_or_text(key, value), "--set")


# As what a value is taken from TOML; anything else is text, for a name may look like a number, a date or a flag.
_FROM_TOML: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "flag": (str, bool),
    "list": (str, list),
    "service_rules": (str, list),
}


def _toml_or_text(key: Key, text: str) -> Any:
    value = _toml(text)
    return value if isinstance(value, _FROM_TOML.get(key.type, (str, int, float))) else text


def _toml(text: str) -> Any:
    """The value that `text` is in TOML; None if it is none."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return None
    return document["value"] if document.keys() == {"value"} else None


def _entries(schema: Schema, name: str, raw: Any, origin: str) -> Iterator[Entry]:
    """Flattens inline tables; a bare table header is right if keys live in it."""
    if isinstance(raw, dict) and schema.find(name) is None and schema.has_table(name):
        for part, value in raw.items():
            yield from _entries(schema, f"{name}.{part}", value, origin)
    else:
        yield _entry(_known(schema, name, origin), raw, origin)


def _known(schema: Schema, name: str, origin: str) -> Key:
    key = schema.find(name)
    if key is not None:
        return key
    message = f"{origin}: {name} is a table, not a key" if schema.has_table(name) else f"{origin}: unknown key {name}"
    nearest = schema.nearest(name)
    hint = f"did you mean {nearest}?" if nearest else "`rover-host config` lists all keys"
    raise SettingsError(message, hint=hint, key=name, origin=origin)


def _entry(key: Key, raw: Any, origin: str) -> Entry:
    try:
        return Entry(key, convert(key, raw), origin)
    except ValueError as error:
        reason = "it is of the wrong type (and not shown, as it is a secret)" if key.secret else str(error)
        message = f"{origin}: bad value for {key.name}: {reason}"
        raise SettingsError(message, key=key.name, origin=origin) from (None if key.secret else error)
