# SPDX-License-Identifier: Apache-2.0
"""Reads a TOML file as a list of assignments that remember their line, which no TOML parser in the library keeps."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rover_plugin.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `key = value` of a file, or a table that holds none.

    Attributes:
        path: the parts of the full key, tables included.
        value: as TOML gives it; inline tables are dicts, an empty table header is an empty dict.
        line: where it begins, from 1.
        comments: the comment lines right above it, without line ends.
    """

    path: tuple[str, ...]
    value: Any
    line: int
    comments: tuple[str, ...] = ()


def read_assignments(file: Path) -> list[Assignment]:
    """Returns what `file` assigns, in its order.

    Raises:
        SettingsError: the file cannot be read, or is no TOML; names the line.
    """
    try:
        text = file.read_text(encoding="utf-8")
        tomllib.loads(text)
        return list(_assignments(text.split("\n"), file))
    except OSError as error:
        message = f"cannot read configuration file {file}: {error.strerror}"
        raise SettingsError(message, hint="check the path given with --config", path=str(file)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{file} is not valid TOML: {error}"
        raise SettingsError(message, hint="strings need quotes, lists need brackets", path=str(file)) from error


def _assignments(lines: list[str], file: Path) -> Iterator[Assignment]:
    """Walks valid TOML statement by statement: each is a document of its own once enough lines are joined."""
    table: tuple[str, ...] = ()
    comments: list[str] = []
    index = 0
    while index < len(lines):
        begin = index
        statement, index = _statement(lines, begin)
        if not statement:
            comments = [*comments, lines[begin].strip()] if lines[begin].strip() else []
            continue
        path, value = _descend(statement)
        if lines[begin].lstrip().startswith("[["):
            message = f"{file}:{begin + 1}: arrays of tables are not understood here"
            raise SettingsError(message, hint=f"write {path[-1]} = [{{ … }}, {{ … }}]", path=str(file))
        if lines[begin].lstrip().startswith("["):
            table, path = path, ()
        yield Assignment(table + path, value, begin + 1, tuple(comments))
        comments = []


def _statement(lines: list[str], begin: int) -> tuple[dict[str, Any], int]:
    """Returns the statement that begins at line index `begin`, parsed, and the index of the line after it."""
    end = begin + 1
    while True:  # ends, since the whole document has been parsed before
        try:
            return tomllib.loads("\n".join(lines[begin:end])), end
        except tomllib.TOMLDecodeError:
            end += 1


def _descend(statement: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
    """Follows the dotted key of one statement; tables in it are parts of the key until a value or a fork is met."""
    path: tuple[str, ...] = ()
    value: Any = statement
    while isinstance(value, dict) and len(value) == 1:
        ((part, value),) = value.items()
        path += (part,)
    return path, value
