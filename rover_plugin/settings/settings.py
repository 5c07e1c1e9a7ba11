# SPDX-License-Identifier: Apache-2.0
"""The effective configuration: every key has a value of its type and a place where it was set."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dynaconf import Dynaconf

from rover_plugin.settings import layers
from rover_plugin.settings.schema import Schema, load_schema
from rover_plugin.settings.values import Value, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rover_plugin.settings.layers import Entry

T = TypeVar("T")


class Settings:
    """Read access to the configuration by dotted key.

    A key that is not in default.toml is a mistake in the code and raises KeyError; asking for the wrong type raises
    TypeError. What users write wrong never gets this far: `load` raises SettingsError.

    Attributes:
        schema: all keys.
        warnings: one line for each ROVER_* variable that sets nothing.
    """

    def __init__(self, schema: Schema, entries: Iterable[Entry], warnings: Iterable[str] = ()) -> None:
        self.schema = schema
        self.warnings = tuple(warnings)
        # Only the layering: no files, variables or casts of dynaconf's own, which could not name lines and exact
        # variables. Entries are opaque to it, so it keeps values as they are.
        self._store = Dynaconf(core_loaders=[], loaders=[], environments=False, merge_enabled=False, load_dotenv=False)
        for entry in entries:
            self._store.set(entry.key.name, entry)

    def get(self, name: str) -> Value:
        """The value: text str, flag bool, integer and size (bytes) int, duration (seconds) float, list tuple."""
        return self._entry(name).value

    def text(self, name: str) -> str:
        """A text; any other type is written the way a variable would hold it, lists with commas."""
        entry = self._entry(name)
        return show(entry.key, entry.value)

    def flag(self, name: str) -> bool:
        """A yes or no."""
        return self._typed(name, bool)

    def integer(self, name: str) -> int:
        """A number, or a size in bytes."""
        return self._typed(name, int)

    def size(self, name: str) -> int:
        """A size in bytes."""
        return self._typed(name, int)

    def seconds(self, name: str) -> float:
        """A duration in seconds."""
        return self._typed(name, float)

    def items(self, name: str) -> tuple[str, ...]:
        """A list."""
        return self._typed(name, tuple)

    def origin(self, name: str) -> str:
        """Where the value was set: `default`, `/etc/x.toml:12`, a variable's name or `--set`."""
        return self._entry(name).origin

    def shown(self, name: str) -> str:
        """The value for people: like `text`, but secrets are masked."""
        return "***" if self._entry(name).key.secret and self.text(name) else self.text(name)

    def _entry(self, name: str) -> Entry:
        if name not in self.schema.keys:
            raise KeyError(name)
        entry: Entry = self._store.get(name)
        return entry

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self._entry(name).value
        if type(value) is not kind:
            message = f"{name} is {type(value).__name__}, not {kind.__name__}"
            raise TypeError(message)
        return value


def load(
    files: Iterable[str | Path] = (), environ: Mapping[str, str] | None = None, overrides: Iterable[str] = ()
) -> Settings:
    """Reads all layers.

    Args:
        files: TOML files, later ones win.
        environ: variables; None means this process's.
        overrides: `key=value` texts, later ones win.

    Raises:
        SettingsError: something in a layer is unknown or wrong; the message names layer, file and line or variable.
    """
    schema = load_schema()
    environ = os.environ if environ is None else environ
    entries = chain(
        layers.from_defaults(schema),
        *(layers.from_file(schema, Path(file)) for file in files),
        layers.from_environment(schema, environ),
        layers.from_overrides(schema, overrides),
    )
    return Settings(schema, entries, layers.unknown_variables(schema, environ))
