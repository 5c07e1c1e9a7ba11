# SPDX-License-Identifier: Apache-2.0
"""Reads a TOML file as a list of assignments that remember their line, which no TOML parser in the library keeps."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rover_plugin.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


_TOKEN: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{1,2}(?!"))?'  # strings of several lines may end with quotes of their own
    r"|'''.*?'''(?:'{1,2}(?!'))?"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*|[\[\]{}\n]",
    re.DOTALL,
)


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
        return list(_assignments(text, file))
    except OSError as error:
        message = f"cannot read configuration file {file}: {error.strerror}"
        raise SettingsError(message, hint="check the path given with --config", path=str(file)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{file} is not valid TOML: {error}"
        raise SettingsError(message, hint="strings need quotes, lists need brackets", path=str(file)) from error


def _assignments(text: str, file: Path) -> Iterator[Assignment]:
    """Walks valid TOML statement by statement."""
    table: tuple[str, ...] = ()
    comments: list[str] = []
    for line, text_of_one in _statements(text):
        statement = tomllib.loads(text_of_one)
        first = text_of_one.split("\n", 1)[0].strip()
        if not statement:
            comments = [*comments, first] if first else []
            continue
        path, value = _descend(statement)
        if first.startswith("[["):
            message = f"{file}:{line}: arrays of tables are not understood here"
            raise SettingsError(message, hint=f"write {path[-1]} = [{{ … }}, {{ … }}]", path=str(file))
        if first.startswith("["):
            table, path = path, ()
        yield Assignment(table + path, value, line, tuple(comments))
        comments = []


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The statements of valid TOML, each with the number of the line it begins on.

    A statement ends with a line, unless that line ends within brackets or a string (toml.io, v1.0.0). Each character is
    looked at once: to parse ever more lines until they are a document takes seconds for an array of 2000.
    """
    begin, line, depth = 0, 1, 0
    lines_inside = 0
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in {"[", "{"}:
            depth += 1
        elif word in {"]", "}"}:
            depth -= 1
        elif word == "\n" and depth == 0:
            yield line, text[begin : token.start()]
            line += 1 + lines_inside
            begin, lines_inside = token.end(), 0
        else:
            lines_inside += word.count("\n")
    yield line, text[begin:]


def _descend(statement: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
    """Follows the dotted key of one statement; tables in it are parts of the key until a value or a fork is met."""
    path: tuple[str, ...] = ()
    value: Any = statement
    while isinstance(value, dict) and len(value) == 1:
        ((part, value),) = value.items()
        path += (part,)
    return path, value
