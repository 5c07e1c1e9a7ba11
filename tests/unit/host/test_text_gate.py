# SPDX-License-Identifier: Apache-2.0
"""Whatever text comes from outside: on the way to a person nothing in it steers, hides, reorders or begins a line."""

from __future__ import annotations

import io
import json
import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import structlog
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.errors import RoverError
from rover_plugin.host import logs
from rover_plugin.host.cli import cli
from rover_plugin.host.commands import explain
from rover_plugin.host.why import Answer
from rover_plugin.text import printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable

STEERING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
HOSTILE = st.text(st.characters(), max_size=20) | st.sampled_from(
    [
        *(
            "\x1b]0;title\x07\x1b[2J",
            "\u202etxt.exe",
            "\u2066\u2069",
            "line\u2028line\u2029",
            "\x85\x9b31m",
            "\r\nFAKE",
        ),
        *("\ufeff\u200b", "\U000e0041", "\u061c", "\x7f\x00", "\ud800", "\uffff"),
    ]
)


def steers(text: str) -> bool:
    return any(unicodedata.category(letter) in STEERING for letter in text)


@given(HOSTILE)
def test_the_gate_keeps_length_and_everything_that_is_harmless(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not steers(shown)
    assert printable(shown) == shown
    assert all(new == old or not old.isprintable() for new, old in zip(shown, text, strict=True))
    assert printable_lines(text).split("\n") == [printable(line) for line in text.split("\n")]


@pytest.mark.parametrize(
    "text", ["GET /index.html?q=1", "caf\u00e9", "\u65e5\u672c", "\u05e9\u05dc\u05d5\u05dd", "\U0001f600"]
)
def test_words_of_any_script_pass(text: str) -> None:
    assert printable(text) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@settings(max_examples=100, deadline=None)
@given(event=HOSTILE, field=HOSTILE, items=st.lists(HOSTILE, max_size=3), message=HOSTILE)
def test_a_log_line_on_a_terminal_is_one_line(event: str, field: str, items: list[str], message: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", terminal := Terminal())
        patch.setenv("NO_COLOR", "1")
        logs.configure_logs("INFO")
        structlog.get_logger().warning(event, field=field, items=items, error=ValueError(message))
    (line,) = terminal.getvalue().splitlines()
    assert not steers(line)


@settings(max_examples=50, deadline=None)
@given(message=HOSTILE)
def test_a_traceback_on_a_terminal_has_only_lines_of_its_own(message: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", terminal := Terminal())
        patch.setenv("NO_COLOR", "1")
        logs.configure_logs("INFO")
        try:
            {}[message]
        except KeyError as error:
            error.add_note(message)
            structlog.get_logger().exception("failed")
    assert not any(steers(line) for line in terminal.getvalue().split("\n"))


def test_a_field_that_cannot_be_shown_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError

    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr("sys.stderr", stream)
        logs.configure_logs("INFO")
        structlog.get_logger().warning("seen", field=Shy())
        assert "log_line_failed" in stream.getvalue()


def _run(command: str, *arguments: str, patch: Callable[[pytest.MonkeyPatch], None]) -> tuple[str, str]:
    with pytest.MonkeyPatch.context() as context:
        patch(context)
        result = CliRunner().invoke(cli, [command, *arguments])
    return result.stdout, result.stderr


@settings(max_examples=50, deadline=None)
@given(detail=HOSTILE, hint=HOSTILE)
def test_why_says_two_lines_whatever_a_process_is_called(detail: str, hint: str) -> None:
    answer = Answer(7, logged=False, reason="excluded_by_rule", detail=detail, hint=hint)

    def patch(context: pytest.MonkeyPatch) -> None:
        context.setattr("rover_plugin.host.why.why", lambda *_: answer)

    shown, _ = _run("why", "7", patch=patch)
    assert len(shown.split("\n")) == 2 + bool(hint)
    assert not any(steers(line) for line in shown.split("\n"))
    machine, _ = _run("why", "7", "--json", patch=patch)
    assert machine.isascii()
    if not any("\ud800" <= letter <= "\udfff" for letter in detail):
        assert json.loads(machine)["detail"] == detail


@settings(max_examples=50, deadline=None)
@given(message=HOSTILE, hint=HOSTILE)
def test_an_error_is_one_line(message: str, hint: str) -> None:
    def fail(*_: object) -> None:
        raise RoverError(message, hint=hint)

    _, shown = _run("why", "7", patch=lambda context: context.setattr("rover_plugin.host.why.why", fail))
    assert shown.startswith("rover-host: ")
    assert shown.count("\n") == 1
    assert not steers(shown[:-1])


@settings(max_examples=50, deadline=None)
@given(process=HOSTILE, text=HOSTILE)
def test_explain_shows_a_row_a_connection_and_an_event(process: str, text: str) -> None:
    from rover_plugin.access_log.explain import Event, Story  # noqa: PLC0415 takes long

    story = Story(1, 7, process, "127.0.0.1:80", "127.0.0.1:9", "accepted")
    listed = explain._list([story, replace(story, id=2)]).split("\n")
    assert len(listed) == 3
    story.events = [Event(0, "exchange", exchange=1, text=text), Event(1, "error", text=text)]
    lines = explain._time_line(story).split("\n")
    assert len(lines) == 3 + 3
    assert not any(steers(line) for line in [*listed, *lines])
