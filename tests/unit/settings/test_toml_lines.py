# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.settings.toml_lines import read_assignments

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TEXT = '''\
# above

# of a
a = 1 # beside
[t]
"b.c" = """
[not.a.table]
x = 2
"""
d.e = [
  1, # one
  "]",
]

[t.u]
[v]
f = { g = 1, h = "#" }
'''


def test_every_statement_keeps_its_line_and_the_comments_right_above_it(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(TEXT)
    found = [(item.path, item.value, item.line, item.comments) for item in read_assignments(file)]
    assert found == [
        (("a",), 1, 4, ("# of a",)),
        (("t",), {}, 5, ()),
        (("t", "b.c"), "[not.a.table]\nx = 2\n", 6, ()),
        (("t", "d", "e"), [1, "]"], 10, ()),
        (("t", "u"), {}, 15, ()),
        (("v",), {}, 16, ()),
        (("v", "f"), {"g": 1, "h": "#"}, 17, ()),
    ]


def test_line_ends_of_windows_count_once(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(b"a = 1\r\n\r\nb = 2\r\n")
    assert [item.line for item in read_assignments(file)] == [1, 3]


def test_an_array_of_many_lines_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = "".join(f'  "cmdline~=[{number}]", # and "]"\n' for number in range(2000))
    file = tmp_path / "x.toml"
    file.write_text(f"a = [\n{rules}]\nb = 1\n")
    calls: list[int] = []
    loads = tomllib.loads
    monkeypatch.setattr(tomllib, "loads", lambda text: calls.append(len(text)) or loads(text))
    first, second = read_assignments(file)
    assert (len(first.value), second.line) == (2000, 2003)
    assert sum(calls) <= 2 * file.stat().st_size


@given(
    st.lists(
        st.sampled_from(
            [
                'k = """[ # " \' {\n\\\\} ""x"""',
                "k = '''[\n' ''x''''",
                "k = '[# not a comment'",
                'k = "\\"[#{" # a [ comment "',
                '"k # [" = [ "]", \n # } \n { a = "}" }, [\n1\n] ]',
                "k = { a = [ 1, 2 ], b = 'x' }",
                "# just [ a comment",
                "",
                "k = 1",
            ]
        ),
        max_size=6,
    )
)
def test_brackets_and_quotes_within_strings_and_comments_end_nothing(
    tmp_path_factory: Any, statements: list[str]
) -> None:
    lines = [f"[t{number}]\n{statement}" for number, statement in enumerate(statements)]
    file = tmp_path_factory.mktemp("toml") / "x.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert _merged(file) == tomllib.loads(file.read_text(encoding="utf-8"))
    where = file.read_text(encoding="utf-8").split("\n")
    for item in read_assignments(file):
        assert where[item.line - 1].startswith(("[t", "k", '"k'))


def _merged(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for item in read_assignments(file):
        table = document
        for part in item.path[:-1]:
            table = table.setdefault(part, {})
        if item.value == {}:
            table.setdefault(item.path[-1], {})
        else:
            table[item.path[-1]] = item.value
    return document


_names = st.text("abc", min_size=1, max_size=2)
_values = st.one_of(st.integers(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=3))


@given(tables=st.dictionaries(_names, st.dictionaries(_names, _values, max_size=4), max_size=4), split=st.booleans())
def test_statements_together_are_the_document(
    tmp_path_factory: Any, tables: dict[str, dict[str, Any]], split: bool
) -> None:
    lines = []
    for table, entries in tables.items():
        lines.append(f"[{table}] # comment")
        for name, value in entries.items():
            written = str(value).lower() if isinstance(value, bool) else _toml(value)
            lines.append(f"{name} = {written}".replace("[", "[\n" if split else "["))
    file = tmp_path_factory.mktemp("toml") / "x.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert _merged(file) == tomllib.loads(file.read_text(encoding="utf-8"))


def _toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    return str(value)
