# SPDX-License-Identifier: Apache-2.0
"""`explain`: what a recording holds, and one connection's calls, positions, decisions and gaps on one time line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from rover_plugin.access_log.model import Direction
from rover_plugin.capture.records import OpenCause
from rover_plugin.host.cli import cli
from tests.support.synthetic import Kernel, write_recording

if TYPE_CHECKING:
    from pathlib import Path

_REQUEST = b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n"
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_IN, _OUT = Direction.INGRESS, Direction.EGRESS


def explain(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["explain", str(path), *arguments], prog_name="rover-host")


def timeline(path: Path, connection: int) -> list[dict[str, Any]]:
    result = explain(path, "--connection", str(connection), "--json")
    assert result.exit_code == 0, result.stderr
    events: list[dict[str, Any]] = json.loads(result.stdout)["timeline"]
    return events


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Connection 1: two exchanges, the second lost bytes of its response. 2: met midway. 5: said nothing."""
    kernel = Kernel()
    records = [kernel.open(1), kernel.open(2, OpenCause.MET), kernel.open(5)]
    for connection in (1, 2):
        records += [kernel.call(connection, _IN, _REQUEST), kernel.call(connection, _OUT, _RESPONSE)]
    records += [kernel.call(1, _IN, _REQUEST)]
    records += [kernel.call(1, _OUT, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", unseen=20)]
    kernel.lose(1, _OUT, 50)
    records += [kernel.call(1, _OUT, b"x" * 30), kernel.close(1), kernel.close(5)]
    path = tmp_path / "made.rec"
    write_recording(path, records)
    return path


def test_the_list_has_each_connection_with_what_it_came_to(recording: Path) -> None:
    result = explain(recording, "--json")
    assert result.exit_code == 0, result.stderr
    known = {item["id"]: item for item in json.loads(result.stdout)}
    assert list(known) == [1, 2, 5]
    facts = ("process", "pid", "role", "protocol", "calls", "exchanges", "gaps", "gap_bytes", "cause")
    assert [known[1][key] for key in facts] == ["nginx", 4242, "server", "http/1", 7, 2, 1, 50, "accepted"]
    assert [known[2][key] for key in facts] == ["nginx", 4242, "server", "http/1", 2, 1, 0, 0, "met midway"]
    assert [known[5][key] for key in facts] == ["nginx", 4242, "server", "tcp", 2, 0, 0, 0, "accepted"]
    assert known[1]["local"] == "10.0.0.1:80"
    assert known[1]["remote"] == "10.0.0.2:1025"


def test_the_list_is_a_table_with_columns_one_below_the_other(recording: Path) -> None:
    head, *rows = explain(recording).stdout.splitlines()
    assert len(rows) == 3
    for title in ("PROCESS", "ROLE", "PROTOCOL", "LOCAL - REMOTE"):
        at = head.index(title)
        assert all(row[at - 1] == " " and row[at] != " " for row in rows)
    assert "nginx[4242]" in rows[0]
    assert "10.0.0.1:80 ← 10.0.0.2:1025" in rows[0]


def test_the_time_line_has_every_call_with_its_place_in_its_stream_and_its_exchange(recording: Path) -> None:
    events = timeline(recording, 1)
    request, response = len(_REQUEST), len(_RESPONSE)
    calls = [
        (item["direction"], item["call"], item["bytes"], item["start"], item["end"], item["copied"], item["exchange"])
        for item in events
        if item["event"] == "call"
    ]
    head = len(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    # The second response begins where the first ended; what was lost is missing between its calls.
    assert calls == [
        ("in", "read", request, 0, request, request, 1),
        ("out", "writev", response, 0, response, response, 1),
        ("in", "read", request, request, 2 * request, request, 2),
        ("out", "writev", head + 20, response, response + head + 20, head, 2),
        ("out", "writev", 30, response + head + 70, response + head + 100, 30, 2),
    ]
    (gap,) = [item for item in events if item["event"] == "gap"]
    assert (gap["direction"], gap["bytes"]) == ("out", 50)
    assert (gap["start"], gap["end"]) == (response + head + 20, response + head + 70)


def test_the_time_line_says_what_was_decided_and_found(recording: Path) -> None:
    events = timeline(recording, 1)
    assert [item["event"] for item in events][:4] == ["open", "call", "protocol", "call"]
    texts = {item["event"]: item["text"] for item in events}
    assert texts["open"] == "accepted"
    assert texts["protocol"] == "speaks http/1, this end is server"
    found = [item["text"] for item in events if item["event"] == "exchange"]
    assert found[0].startswith("GET /orders 200, complete, request 36+0, response 38+2 bytes")
    assert found[1].startswith("GET /orders 200, ")
    assert "response 40+100 bytes" in found[1]
    assert events[-1]["event"] in {"close", "exchange"}
    assert [item["at_ns"] for item in events] == sorted(item["at_ns"] for item in events)


def test_a_connection_met_midway_counts_positions_from_there(recording: Path) -> None:
    events = timeline(recording, 2)
    assert events[0]["text"] == "met midway"
    assert [(item["start"], item["end"]) for item in events if item["event"] == "call"] == [(0, 36), (0, 40)]


def test_the_time_line_is_a_table_with_columns_one_below_the_other(recording: Path) -> None:
    first, second, _, head, *rows = explain(recording, "--connection", "1").stdout.splitlines()
    assert first == "connection 1  nginx[4242]  server  http/1  10.0.0.1:80 ← 10.0.0.2:1025"
    assert second == "accepted; 7 calls, 2 exchanges, 1 gaps (50 bytes without a record)"
    for title in ("DIR", "CALL", "POSITIONS", "WHAT"):
        at = head.index(title)
        assert all(len(row) <= at or row[at - 1] == " " for row in rows)
    assert any("gap: moved without a record" in row for row in rows)
    assert any("= exchange 1: GET /orders 200" in row for row in rows)


def test_bytes_of_the_network_do_not_steer_the_terminal(tmp_path: Path) -> None:
    kernel = Kernel()
    request = b"GET /\x1b[31mred HTTP/1.1\r\nHost: shop\r\n\r\n"
    records = [kernel.open(1), kernel.call(1, _IN, request), kernel.call(1, _OUT, _RESPONSE), kernel.close(1)]
    write_recording(tmp_path / "odd.rec", records)
    assert "\x1b" not in explain(tmp_path / "odd.rec", "--connection", "1").stdout


def test_an_unknown_connection_brings_the_nearest(recording: Path) -> None:
    result = explain(recording, "--connection", "4")
    assert result.exit_code == 2
    assert result.stderr == (
        "rover-host: no connection 4 in the recording: the nearest are 1, 2, 5"
        ": leave --connection out to see them all\n"
    )


def test_a_recording_without_connections_says_so(tmp_path: Path) -> None:
    write_recording(tmp_path / "empty.rec", [])
    assert "the recording has none at all" in explain(tmp_path / "empty.rec", "--connection", "4").stderr
    assert explain(tmp_path / "empty.rec").exit_code == 0


def test_a_cut_recording_is_explained_as_far_as_it_goes(recording: Path) -> None:
    recording.write_bytes(recording.read_bytes()[:-30])
    result = explain(recording, "--connection", "1")
    assert result.exit_code == 1
    assert "= exchange 1: GET /orders 200" in result.stdout
    assert "the file ends in the middle" in result.stderr


def test_a_file_that_is_no_recording_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"garbage" * 100)
    result = explain(tmp_path / "garbage")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
