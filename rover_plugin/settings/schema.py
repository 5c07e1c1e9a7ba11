# SPDX-License-Identifier: Apache-2.0
"""What keys there are: read from the annotated `config/default.toml`, the one source (its head explains the notes)."""

from __future__ import annotations

import difflib
import shlex
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rover_plugin.data import data_path
from rover_plugin.errors import SettingsError
from rover_plugin.settings.toml_lines import Assignment, read_assignments

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_NOTE = "#: "


@dataclass(frozen=True, slots=True)
class Key:
    """One configuration key.

    Attributes:
        name: dotted, such as `access_log.flush.period`.
        variable: the environment variable that sets it.
        type: name of a converter in `values`.
        default: as written in default.toml.
        description: the prose above it.
        line: where it stands in default.toml.
        unit: what a plain number counts, or empty.
        alias: another dotted name that is accepted, or empty.
        secret: whether the value must not be shown.
        limits: the notes min, max, above, choices, pattern and port, as written.
    """

    name: str
    variable: str
    type: str
    default: Any
    description: str
    line: int
    unit: str = ""
    alias: str = ""
    secret: bool = False
    limits: dict[str, str] = field(default_factory=dict)


class Schema:
    """All keys, in the order of default.toml, and how to find them by name or variable."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = {key.name: key for key in keys}
        self.by_variable = {key.variable: key for key in self.keys.values()}
        names = self.keys | {key.alias: key for key in self.keys.values() if key.alias}
        # Rover's reader ignores case in keys, so does this one.
        self._by_name = {name.casefold(): key for name, key in names.items()}

    def find(self, name: str) -> Key | None:
        """The key called `name` or with that alias, in any case."""
        return self._by_name.get(name.casefold())

    def has_table(self, name: str) -> bool:
        """Whether `name` is a table in which keys live."""
        return any(key.startswith(f"{name.casefold()}.") for key in self._by_name)

    def nearest(self, name: str) -> str:
        """The key or table whose name is most like `name` without being it, or an empty string."""
        names = {table.casefold(): table for key in self.keys for table in _tables(key)}
        names |= {known: key.name for known, key in self._by_name.items()}
        names.pop(name.casefold(), None)
        return _nearest(name.casefold(), names)

    def nearest_variable(self, variable: str) -> str:
        """The variable whose name is most like `variable`, or an empty string."""
        return _nearest(variable, {known: known for known in self.by_variable})


@cache
def load_schema() -> Schema:
    """Returns the shipped schema."""
    return read_schema(data_path("config/default.toml"))


def read_schema(file: Path) -> Schema:
    """Reads an annotated TOML file.

    Raises:
        SettingsError: it is missing, or a key has no note: a broken installation.
    """
    return Schema(_key(file, assignment) for assignment in read_assignments(file) if assignment.value != {})


def _key(file: Path, assignment: Assignment) -> Key:
    prose = [line.removeprefix("#").strip() for line in assignment.comments if not line.startswith(_NOTE)]
    notes = [line.removeprefix(_NOTE) for line in assignment.comments if line.startswith(_NOTE)]
    note = dict(word.split("=", 1) for word in shlex.split(" ".join(notes)))
    try:
        return Key(
            name=".".join(assignment.path),
            variable=note.pop("env"),
            type=note.pop("type"),
            default=assignment.value,
            description=" ".join(prose),
            line=assignment.line,
            unit=note.pop("unit", ""),
            alias=note.pop("alias", ""),
            secret=note.pop("secret", "") == "true",
            limits=note,
        )
    except KeyError as error:
        message = f"{file}:{assignment.line}: key without {error} in its note"
        raise SettingsError(message, hint="the installation is broken, install it again", path=str(file)) from error


def _tables(key: str) -> Iterator[str]:
    """The tables around a key, outermost first."""
    return accumulate(key.split(".")[:-1], "{}.{}".format)


def _nearest(name: str, known: dict[str, str]) -> str:
    """Returns the value whose key is most like `name`, or an empty string when none is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return known[near[0]] if near else ""
