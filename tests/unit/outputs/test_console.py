# SPDX-License-Identifier: Apache-2.0
"""The console shows a person each exchange on one line; colours are for terminals, the network's bytes for nobody."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest

from rover_plugin.access_log.model import Completeness, EndedBy, Endpoint, ProtocolName, ResolvedConnection, Role
from rover_plugin.access_log.outputs.console import ConsoleOutput
from rover_plugin.telemetry.counters import Counters
from tests.support.connections import SERVED, encoder, exchange


class Screen(io.StringIO):
    """A stream that may be a terminal, or one whose reader is gone."""

    def __init__(self, *, terminal: bool = False, gone: bool = False) -> None:
        super().__init__()
        self._terminal = terminal
        self._gone = gone

    def isatty(self) -> bool:
        return self._terminal

    def flush(self) -> None:
        if self._gone:
            raise BrokenPipeError


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
def test_a_terminal_shows_the_status_class_in_colour(status: int, colour: int) -> None:
    (_, line), _ = shown(exchange(status=status), screen=Screen(terminal=True))
    assert f"\x1b[{colour}m   {status}\x1b[0m" in line


def test_stand_alone_calls_are_counted_and_not_shown() -> None:
    counters = Counters()
    output = ConsoleOutput(counters, screen := Screen())
    for fragment, kernel_logs in encoder().calls(exchange().calls, ProtocolName.HTTP1):
        output.write(output.connection_prefix(SERVED) + fragment, kernel_logs, 0)
    output.close(1)
    assert screen.getvalue() == ""
    assert counters.value("logs_exported", output="console", unit="kernel") == 2


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


def test_a_reader_that_left_ends_nothing() -> None:
    lines, counters = shown(exchange(), exchange(), screen=Screen(gone=True))
    assert len(lines) == 3  # what had been written when the pipe broke
    assert counters.value("logs_exported", output="console", unit="protocol") == 2


def test_a_cut_message_says_who_ended_it() -> None:
    cut = replace(exchange(), completeness=Completeness.TRUNCATED, ended_by=EndedBy.REMOTE)
    (_, line), _ = shown(cut)
    assert line.endswith("truncated (remote)")
