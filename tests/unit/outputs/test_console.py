# SPDX-License-Identifier: Apache-2.0
"""The console shows a person each exchange on one line; colours are for terminals, the network's bytes for nobody."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.model import Completeness, EndedBy, Endpoint, ProtocolName, ResolvedConnection, Role
from rover_plugin.access_log.outputs.console import ConsoleOutput
from rover_plugin.telemetry.counters import Counters
from tests.support.connections import SERVED, SHOP, encoder, exchange


class Screen(io.StringIO):
    """A stream that may be a terminal."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def shown(
    *exchanges: Any, connection: ResolvedConnection = SERVED, screen: Screen | None = None
) -> tuple[list[str], Counters]:
    counters = Counters()
    screen = screen or Screen()
    output = ConsoleOutput(counters, screen)
    for one in exchanges:
        fragment, protocol_logs = encoder().exchange(one)
        output.write(output.connection_prefix(connection) + fragment, len(one.calls), protocol_logs)
    output.tick()
    return screen.getvalue().splitlines(), counters


def test_a_line_has_everything_a_person_wants() -> None:
    (header, line), _ = shown(exchange())
    assert header.split()[:4] == ["TIME", "SERVICE[PID]", "ROLE", "METHOD"]
    assert line.split("  ")[0] == "00:00:01.000"
    for word in ("shop[812]", "server", "GET", "/index.html", "200", "1.2 ms", "80 B", "842 B"):
        assert re.search(rf"(^|\s){re.escape(word)}(\s|$)", line), (word, line)
    assert line.endswith("127.0.0.1:80 ← 127.0.0.1:51342 buyer[901]")


@pytest.mark.parametrize(
    ("role", "end"),
    [(Role.CLIENT, "buyer[901] dialled 10.96.0.50:80"), (Role.SERVER, "buyer[901]"), (Role.UNKNOWN, "10.96.0.50:80")],
)
def test_the_address_that_a_client_dialled_stands_behind_whom_it_reached(role: Role, end: str) -> None:
    translated = replace(SERVED, role=role, remote=replace(SERVED.remote, seen=("10.96.0.50", 80)))
    (_, line), _ = shown(exchange(), connection=translated)
    assert line.endswith(end)


def test_columns_stand_below_their_names() -> None:
    (header, line), _ = shown(exchange())
    for name, value in (("ROLE", "server"), ("METHOD", "GET"), ("PATH", "/index.html")):
        assert header.index(name) == line.index(value)
    for name, value in (("STATUS", "200"), ("DURATION", "1.2 ms"), ("REQUEST", " 80 B"), ("RESPONSE", "842 B")):
        assert header.index(name) + len(name) == line.index(value) + len(value)


def test_the_header_comes_once() -> None:
    output = ConsoleOutput(Counters(), screen := Screen())
    for _ in range(2):
        fragment, logs = encoder().exchange(exchange())
        output.write(output.connection_prefix(SERVED) + fragment, 2, logs)
        output.tick()
    assert screen.getvalue().count("SERVICE[PID]") == 1


def test_nothing_seen_shows_nothing() -> None:
    lines, _ = shown()
    assert lines == []


def test_a_client_points_at_its_server_and_ipv6_stands_in_brackets() -> None:
    client = replace(
        SERVED, role=Role.CLIENT, local=Endpoint("::1", 4000, None, 5), remote=Endpoint("2001:db8::1", 443)
    )
    (_, line), _ = shown(exchange(), connection=client)
    assert line.endswith("[::1]:4000 → [2001:db8::1]:443")
    assert "-[5]" in line


def test_what_is_not_known_is_a_mark_and_what_is_not_complete_says_so() -> None:
    (_, line), _ = shown(exchange(method=None, path=None, status=None, completeness=Completeness.NO_RESPONSE))
    assert re.search(r"server \?\s+\?\s+-\s", line)
    assert line.endswith("no_response")


def test_http2_shows_its_stream_and_grpc_its_status() -> None:
    (_, line), _ = shown(exchange(version=2, stream_id=5, grpc_status=5, grpc_message="no such"))
    assert line.endswith("h2#5 NOT_FOUND: no such")


@pytest.mark.parametrize(
    ("nanoseconds", "text"), [(999, "1 µs"), (999_000, "999 µs"), (12_340_000, "12.3 ms"), (61_500_000_000, "61.50 s")]
)
def test_durations_are_readable(nanoseconds: int, text: str) -> None:
    (_, line), _ = shown(exchange(end_ns=1_000_000_000 + nanoseconds))
    assert f" {text} " in line


@pytest.mark.parametrize(("size", "text"), [(9999, "9999 B"), (10_240, "10 KB"), (52_428_800, "50 MB")])
def test_sizes_are_readable(size: int, text: str) -> None:
    (_, line), _ = shown(exchange(response_header_bytes=0, response_body_bytes=size))
    assert f" {text} " in line


def test_bytes_from_the_network_never_steer_a_terminal() -> None:
    (_, line), _ = shown(exchange(path="/\x1b]0;title\x07\x9b31m"))
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)


@pytest.mark.parametrize(("status", "colour"), [(101, 36), (204, 32), (302, 36), (404, 33), (503, 31)])
def test_a_terminal_shows_the_status_class_in_colour(status: int, colour: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    (_, line), _ = shown(exchange(status=status), screen=Screen(terminal=True))
    assert f"\x1b[{colour}m   {status}\x1b[0m" in line


def test_stand_alone_calls_are_counted_and_not_shown() -> None:
    counters = Counters()
    output = ConsoleOutput(counters, screen := Screen())
    for fragment, kernel_logs in encoder().calls(exchange().calls, ProtocolName.HTTP1):
        output.write(output.connection_prefix(SERVED) + fragment, kernel_logs, 0)
    output.close(1)
    assert screen.getvalue() == ""
    assert counters.value("logs_exported", output="console", unit="kernel") == 0
    assert counters.value("logs_filtered", output="console", unit="kernel", reason="not_shown") == 2


def test_every_log_is_held_then_exported() -> None:
    counters = Counters()
    output = ConsoleOutput(counters, Screen())
    fragment, logs = encoder().exchange(exchange())
    output.write(output.connection_prefix(SERVED) + fragment, 2, logs)
    assert (output.standing().held.kernel, output.standing().held.protocol) == (2, 1)
    output.tick()
    standing = output.standing()
    assert (standing.held.kernel, standing.held.protocol) == (0, 0)
    assert (standing.exported.kernel, standing.exported.protocol) == (2, 1)


def test_a_reader_that_left_is_given_nothing_and_nothing_counts_as_exported() -> None:
    left = []
    counters = Counters()
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w", encoding="utf-8") as stream:  # noqa: PTH123 a descriptor
        output = ConsoleOutput(counters, stream, lambda: left.append(1))
        for _ in range(3):
            fragment, logs = encoder().exchange(exchange())
            output.write(output.connection_prefix(SERVED) + fragment, 2, logs)
            output.tick()
        assert left == [1]
        output.close(1)
    assert counters.value("logs_exported", output="console", unit="protocol") == 0
    assert counters.value("logs_lost", output="console", unit="protocol", reason="closed_pipe") == 3
    assert counters.value("logs_lost", output="console", unit="kernel", reason="closed_pipe") == 6


@pytest.mark.parametrize("charset", ["latin-1", "ascii", "cp1252", "koi8-r"])
def test_standard_output_that_is_not_utf_8_shows_what_it_can(charset: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=charset)
    output = ConsoleOutput(Counters(), stream)
    fragment, logs = encoder().exchange(exchange(path="/\u65e5\u672c"))
    output.write(output.connection_prefix(SERVED) + fragment, 2, logs)
    output.tick()
    line = raw.getvalue().decode(charset).splitlines()[-1]
    assert "/\\u65e5\\u672c" in line
    assert "127.0.0.1:80 <- 127.0.0.1:51342" in line


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_turned_off(variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines, _ = shown(exchange(), screen=Screen(terminal=True))
    assert "\x1b[" in lines[-1]
    monkeypatch.setenv(*variable)
    lines, _ = shown(exchange(), screen=Screen(terminal=True))
    assert "\x1b" not in "".join(lines)


FOREIGN = st.text(st.characters(), max_size=12) | st.sampled_from(
    [
        "\x1b[2J",
        "\u202e",
        "\u2066x",
        "\u2028",
        "\u2029",
        "\x85",
        "\r\nFAKE",
        "\x9b31m",
        "\u061c",
        "\ufeff",
        "\U000e0041",
        "\x7f",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(FOREIGN, FOREIGN, FOREIGN, FOREIGN, FOREIGN), min_size=1, max_size=3), st.booleans())
def test_any_text_gives_one_row_an_exchange_and_nothing_that_steers(
    texts: list[tuple[str, str, str, str, str]], served: bool
) -> None:
    output = ConsoleOutput(Counters(), screen := Screen())
    for method, path, message, service, process in texts:
        entity = replace(SHOP, service=service, process=process)
        end = Endpoint("127.0.0.1", 80, entity, 812)
        connection = replace(SERVED, local=end) if served else replace(SERVED, remote=end)
        one = exchange(method=method, path=path, host=path, version=2, stream_id=1, grpc_status=5, grpc_message=message)
        fragment, logs = encoder().exchange(one)
        output.write(output.connection_prefix(connection) + fragment, 2, logs)
    output.tick()
    rows = screen.getvalue().split("\n")
    assert len(rows) == len(texts) + 2
    assert rows.pop() == ""
    assert all(row.isprintable() for row in rows)
    assert not {unicodedata.category(letter) for row in rows for letter in row} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_a_cut_message_says_who_ended_it() -> None:
    cut = replace(exchange(), completeness=Completeness.TRUNCATED, ended_by=EndedBy.REMOTE)
    (_, line), _ = shown(cut)
    assert line.endswith("truncated (remote)")
