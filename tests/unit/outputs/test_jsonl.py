# SPDX-License-Identifier: Apache-2.0
"""JSON lines: every log one object with both ends, appended whole, and counted even when the disk refuses."""

from __future__ import annotations

import json
import os
import resource
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from rover_plugin.access_log.model import Completeness, Endpoint, ProtocolName, TraceContext
from rover_plugin.access_log.outputs import targets
from rover_plugin.access_log.outputs.jsonl import JsonLinesOutput
from rover_plugin.access_log.outputs.lines import opening
from rover_plugin.errors import RoverError
from rover_plugin.telemetry.counters import Counters
from tests.support.connections import SERVED, SHOP, encoder, exchange

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def give(output: JsonLinesOutput, one: Any = None) -> None:
    one = one or exchange()
    fragment, logs = encoder().exchange(one)
    output.write(output.connection_prefix(SERVED) + fragment, len(one.calls), logs)


def written(tmp_path: Path, one: Any) -> dict[str, Any]:
    output = JsonLinesOutput(str(tmp_path / "log"), Counters())
    give(output, one)
    output.close(1)
    (line,) = (tmp_path / "log").read_text().splitlines()
    return json.loads(line)


def test_an_exchange_is_one_object_with_both_ends_and_its_calls(tmp_path: Path) -> None:
    item = written(tmp_path, exchange())
    assert item == {
        "connection": 7,
        "role": "server",
        "protocol": "http/1",
        "tls": False,
        "local": {"address": "127.0.0.1", "port": 80, "service": "shop", "process": "nginx", "pid": 812},
        "remote": {"address": "127.0.0.1", "port": 51342, "service": "buyer", "process": "curl", "pid": 901},
        "kind": "exchange",
        "time": "1970-01-01T00:00:01.000000Z",
        "start_ns": 1_000_000_000,
        "end_ns": 1_001_200_000,
        "method": "GET",
        "path": "/index.html",
        "host": "shop.example",
        "status": 200,
        "request_header_bytes": 80,
        "request_body_bytes": 0,
        "response_header_bytes": 230,
        "response_body_bytes": 612,
        "completeness": "complete",
        "calls": [
            {"call": "recvfrom", "start_ns": 900_000_000, "end_ns": 1_000_000_000, "bytes": 80},
            {"call": "writev", "start_ns": 1_001_000_000, "end_ns": 1_001_200_000, "bytes": 842},
        ],
    }


def test_what_is_unknown_is_null_and_labelled(tmp_path: Path) -> None:
    item = written(
        tmp_path, exchange(method=None, path=None, host=None, status=None, completeness=Completeness.LATE_JOIN)
    )
    assert (item["method"], item["path"], item["host"], item["status"]) == (None, None, None, None)
    assert item["completeness"] == "late_join"


def test_http2_has_its_stream_grpc_its_status_and_a_trace_its_ids(tmp_path: Path) -> None:
    trace = TraceContext("zipkin", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "1")
    item = written(tmp_path, exchange(version=2, stream_id=3, grpc_status=14, grpc_message='"away"', trace=trace))
    assert (item["stream"], item["grpc_status"], item["grpc_message"]) == (3, 14, '"away"')
    assert item["trace"] == {
        "provider": "zipkin",
        "trace_id": trace.trace_id,
        "segment_id": trace.segment_id,
        "span_id": "1",
    }


@pytest.mark.parametrize("path", ['/"\\', "/\x00\n\x7f", "/ä€😀", "/\ud800"])
def test_any_text_from_the_network_is_escaped_to_one_line(tmp_path: Path, path: str) -> None:
    assert written(tmp_path, exchange(path=path))["path"] == path


def test_a_call_outside_exchanges_is_an_object_of_its_own(tmp_path: Path) -> None:
    output = JsonLinesOutput(str(tmp_path / "log"), Counters())
    for fragment, kernel_logs in encoder().calls(exchange().calls[:1], ProtocolName.TCP):
        output.write(output.connection_prefix(SERVED) + fragment, kernel_logs, 0)
    output.close(1)
    item = json.loads((tmp_path / "log").read_text())
    assert (item["kind"], item["call"], item["protocol"], item["bytes"]) == ("call", "recvfrom", "tcp", 80)
    assert item["connection"] == 7


def test_a_file_is_appended_to_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        output = JsonLinesOutput(str(path), Counters())
        give(output)
        output.close(1)
    assert len(path.read_text().splitlines()) == 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_much_is_written_before_a_tick_and_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    output = JsonLinesOutput(str(path), Counters())
    for _ in range(1000):
        give(output)
    text = path.read_text()
    assert text.endswith("}\n")
    held = output.standing().held.protocol
    assert text.count("\n") + held == 1000
    assert 0 < held < 1000
    output.close(1)
    assert path.read_text().count("\n") == 1000


def test_a_dash_is_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    output = JsonLinesOutput("-", Counters())
    give(output)
    output.close(1)
    assert json.loads(capfd.readouterr().out)["kind"] == "exchange"


def test_a_file_that_cannot_be_opened_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(RoverError, match=r"No such file.*access_log\.jsonl\.path"):
        JsonLinesOutput(str(tmp_path / "missing" / "log"), Counters())


def test_a_full_disk_is_counted_as_loss() -> None:
    counters = Counters()
    output = JsonLinesOutput("/dev/full", counters)
    give(output)
    output.tick()
    assert output.standing().held == (2, 1)  # there may be room again
    assert output.trouble() == "No space left on device"
    output.close(1)
    assert counters.value("logs_lost", output="jsonl", unit="protocol", reason="write_failed") == 1
    assert counters.value("logs_lost", output="jsonl", unit="kernel", reason="write_failed") == 2
    assert counters.value("logs_exported", output="jsonl", unit="protocol") == 0


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond it, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # SIGXFSZ is ignored by Python
    try:
        with capture_logs():  # pytest has them in a file
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [1, 500, 1000, 1500])
def test_a_disk_that_was_full_for_a_while_costs_no_line(tmp_path: Path, room: int) -> None:
    path = tmp_path / "log"
    counters = Counters()
    output = JsonLinesOutput(str(path), counters)
    with file_size_limit(room):
        for _ in range(3):
            give(output)
            output.tick()
    give(output)
    output.close(1)
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["exchange"] * 4
    assert counters.value("logs_exported", output="jsonl", unit="protocol") == 4


@pytest.mark.parametrize("room", [1, 500, 1000, 1500])
def test_a_disk_that_stays_full_is_left_with_whole_lines(tmp_path: Path, room: int) -> None:
    path = tmp_path / "log"
    counters = Counters()
    output = JsonLinesOutput(str(path), counters)
    with file_size_limit(room):
        for _ in range(3):
            give(output)
            output.tick()
        output.close(1)
    lines = path.read_text().splitlines(keepends=True)
    assert all(line.endswith("}\n") for line in lines)
    assert len(lines) == counters.value("logs_exported", output="jsonl", unit="protocol") == room // 690
    lost = counters.value("logs_lost", output="jsonl", unit="protocol", reason="write_failed")
    assert lost == 3 - len(lines)


def test_a_pipe_takes_what_does_not_fit_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    lines: list[str] = []

    def read() -> None:
        with path.open() as pipe:
            lines.extend(pipe)

    reader = threading.Thread(target=read)
    reader.start()
    output = JsonLinesOutput(str(path), Counters())
    for _ in range(2000):
        give(output)
    output.close(1)
    reader.join()
    assert len(lines) == 2000
    assert all(json.loads(line)["connection"] == 7 for line in lines)


def test_a_pipe_nobody_reads_is_counted_as_loss(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    counters = Counters()
    output = JsonLinesOutput(str(path), counters)
    os.close(reader)
    give(output)
    output.tick()
    assert output.standing().held == (2, 1)  # there may be a reader again
    output.close(1)
    assert counters.value("logs_lost", output="jsonl", unit="protocol", reason="closed_pipe") == 1


def test_a_pipe_without_a_reader_blocks_nothing_and_the_first_reader_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_LOOK_S", 0.0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    counters = Counters()
    output = JsonLinesOutput(str(path), counters)
    give(output)
    output.tick()
    assert output.trouble() == "nobody reads it"
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    give(output)
    output.tick()
    assert output.trouble() == ""
    assert os.read(reader, 1 << 16).count(b"\n") == 2
    os.close(reader)
    output.close(1)
    assert counters.value("logs_exported", output="jsonl", unit="protocol") == 2


def test_a_pipe_whose_reader_comes_again_gets_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_LOOK_S", 0.0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    counters = Counters()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    output = JsonLinesOutput(str(path), counters)
    for _ in range(300):  # more than a pipe holds: the last line in it is cut
        give(output)
    output.tick()
    taken = os.read(reader, 1 << 20)
    assert not taken.endswith(b"\n")
    os.close(reader)
    output.tick()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    rest = b""
    while output.standing().held.protocol:
        output.tick()
        rest += os.read(reader, 1 << 20)
    output.close(1)
    assert all(json.loads(line) for line in rest.splitlines())
    whole = taken.count(b"\n") + rest.count(b"\n")
    assert whole == counters.value("logs_exported", output="jsonl", unit="protocol") == 299
    assert counters.value("logs_lost", output="jsonl", unit="protocol", reason="closed_pipe") == 1


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("secret\n")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(RoverError, match="it is a symbolic link"):
        JsonLinesOutput(str(tmp_path / "log"), Counters())
    assert (tmp_path / "victim").read_text() == "secret\n"
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(RoverError, match="it is a symbolic link"):
        JsonLinesOutput(str(tmp_path / "dangling"), Counters())
    assert not (tmp_path / "nothing").exists()


def test_a_file_with_another_name_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("secret\n")
    (tmp_path / "log").hardlink_to(tmp_path / "victim")
    with pytest.raises(RoverError, match="hard link"):
        JsonLinesOutput(str(tmp_path / "log"), Counters())
    assert (tmp_path / "victim").read_text() == "secret\n"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("fifo", [False, True])
def test_what_belongs_to_another_user_is_not_written_to(tmp_path: Path, *, fifo: bool) -> None:
    path = tmp_path / "log"
    if fifo:
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    else:
        path.touch()
    path.chmod(0o666)
    os.chown(path, 65534, 65534)
    with pytest.raises(RoverError, match=r"another user \(uid 65534\)"):
        JsonLinesOutput(str(path), Counters())
    if fifo:
        os.close(reader)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_mode_of_a_file_of_ours_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "log"
    path.touch()
    path.chmod(mode)
    with capture_logs() as logs:
        output = JsonLinesOutput(str(path), Counters())
    give(output)
    output.close(1)
    assert path.stat().st_mode & 0o777 == mode
    assert [line["event"] for line in logs] == (["output_open_to_others"] if mode & 0o007 else [])


def test_a_line_that_somebody_could_not_finish_gets_an_end_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"half":')
    output = JsonLinesOutput(str(path), Counters())
    give(output)
    output.close(1)
    half, whole = path.read_text().splitlines()
    assert half == '{"half":'
    assert json.loads(whole)["kind"] == "exchange"


def test_a_rotated_file_is_left_and_its_successor_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_LOOK_S", 0.0)
    path = tmp_path / "log"
    output = JsonLinesOutput(str(path), Counters())
    give(output)
    output.tick()
    path.rename(tmp_path / "log.1")
    path.touch(0o640)  # logrotate's `create`
    give(output)
    output.tick()
    path.rename(tmp_path / "log.2")
    give(output)
    output.tick()
    os.truncate(path, 0)  # its `copytruncate`
    give(output)
    output.close(1)
    for name in ("log", "log.1", "log.2"):
        assert json.loads((tmp_path / name).read_text())["kind"] == "exchange"


def test_a_successor_that_may_not_be_written_to_is_refused_and_the_old_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_LOOK_S", 0.0)
    path = tmp_path / "log"
    output = JsonLinesOutput(str(path), Counters())
    path.rename(tmp_path / "log.1")
    path.symlink_to(tmp_path / "victim")
    with capture_logs() as logs:
        give(output)
        output.close(1)
    assert not (tmp_path / "victim").exists()
    assert (tmp_path / "log.1").read_text().count("\n") == 1
    assert logs[0]["event"] == "output_not_reopened"


@pytest.mark.parametrize("name", ["shop", 'a"b\\c', "caf\u00e9 \U0001f600", "\x00\x1b[31m\n\x7f", "\udcff"])
@pytest.mark.parametrize("pod", ["", "pod-1"])
def test_the_connection_is_written_as_any_json_encoder_would(name: str, pod: str) -> None:
    entity = replace(SHOP, service=name, process=name[::-1], pod=pod)
    remote = Endpoint("2001:db8::1", 443)
    connection = replace(SERVED, local=Endpoint("::1", 80, entity, 812), remote=remote, tls=bool(pod))
    names = {"service": name, "process": name[::-1]} | ({"pod": pod} if pod else {})
    expected = {
        "connection": 7,
        "role": "server",
        "tls": bool(pod),
        "local": {"address": "::1", "port": 80, **names, "pid": 812},
        "remote": {"address": "2001:db8::1", "port": 443},
    }
    assert opening(connection)[:-1] + b"}" == json.dumps(expected, separators=(",", ":")).encode()
