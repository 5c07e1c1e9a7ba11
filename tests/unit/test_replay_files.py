# SPDX-License-Identifier: Apache-2.0
"""Recording files that are whole, cut, damaged, foreign or unreadable: what `replay` says, and its exit code."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from rover_plugin.access_log.model import Direction
from rover_plugin.capture.recording import Batch, RecordingReader, RecordingWriter, pack_records
from rover_plugin.errors import RecordingError
from rover_plugin.host.cli import cli
from tests.support.synthetic import Kernel, header, write_recording

if TYPE_CHECKING:
    from pathlib import Path

_REQUEST = b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n"
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_EXCHANGES = 5


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    kernel = Kernel()
    records = [kernel.open(1)]
    for _ in range(_EXCHANGES):
        records += [kernel.call(1, Direction.INGRESS, _REQUEST), kernel.call(1, Direction.EGRESS, _RESPONSE)]
    path = tmp_path / "made.rec"
    write_recording(path, [*records, kernel.close(1)], batch=3)
    return path


def replay(path: Path) -> Result:
    result = CliRunner().invoke(cli, ["replay", str(path), "--output", "none"], prog_name="rover-host")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def refused(path: Path) -> str:
    """The one line with which a file is refused."""
    result = replay(path)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("rover-host: ")
    assert str(path) in line
    return line


def test_a_whole_recording_is_replayed(recording: Path) -> None:
    result = replay(recording)
    assert result.exit_code == 0, result.stderr
    assert f"exchanges  {_EXCHANGES} in" in result.stderr
    assert "imbalance 0" in result.stderr
    assert "cut" not in result.stderr


def test_a_recording_cut_anywhere_gives_what_there_is_or_says_in_one_line_why_not(
    recording: Path, tmp_path: Path
) -> None:
    whole = recording.read_bytes()
    header_end = 10 + 12 + int.from_bytes(whole[14:18], "little")  # preamble, block header, content
    cut = tmp_path / "cut.rec"
    for size in range(0, len(whole), 7):
        cut.write_bytes(whole[:size])
        if size < header_end:
            assert "ends within its header" in refused(cut) or "is not a recording" in refused(cut)
            continue
        result = replay(cut)
        assert result.exit_code == 1
        assert "cut        the file ends in the middle" in result.stderr
        assert "imbalance 0" in result.stderr, (size, result.stderr)


def test_any_byte_that_is_another_is_noticed(recording: Path, tmp_path: Path) -> None:
    whole = recording.read_bytes()
    changed = tmp_path / "changed.rec"
    for at in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[at] ^= 0x41
        changed.write_bytes(broken)
        assert replay(changed).exit_code == 1, at


def test_a_changed_content_is_damage_and_its_place_is_said(recording: Path) -> None:
    broken = bytearray(recording.read_bytes())
    at = broken.index(b"GET /orders")
    broken[at] = ord("X")
    recording.write_bytes(broken)
    assert "is damaged before byte" in refused(recording)


@pytest.mark.parametrize("content", [b"", b"ROVER", b"#!/bin/sh\necho hello\n" * 50, bytes(4096), b"ROVERREC"])
def test_what_is_no_recording_is_called_that(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(content)
    assert f"{path} is not a recording: name a file that `rover-host record` wrote" in refused(path)


def test_another_version_is_named(recording: Path) -> None:
    content = bytearray(recording.read_bytes())
    content[8:10] = (7).to_bytes(2, "little")
    recording.write_bytes(content)
    assert "is a recording of version 7, and this rover-host reads version 1" in refused(recording)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "cannot read the recording" in refused(tmp_path / "none.rec")
    assert "No such file" in refused(tmp_path / "none.rec")


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    assert "Is a directory" in refused(tmp_path)


def test_no_file_named_is_a_wrong_command_line() -> None:
    assert CliRunner().invoke(cli, ["replay"], prog_name="rover-host").exit_code == 2


def test_a_batch_says_of_itself_what_it_was_told() -> None:
    batch = Batch(1, 2, -3, 4, pack_records([b"", b"abc"]), final=True)
    assert Batch.unpack(batch.pack()) == batch


def test_a_reader_closes_its_file_when_it_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(b"garbage of some length")
    with pytest.raises(RecordingError):
        RecordingReader(path)


_WITHOUT_BCC = """
import sys
sys.modules["bcc"] = None  # importing it fails
from rover_plugin.host.cli import cli
try:
    cli(["replay", sys.argv[1], "--output", "jsonl"])
finally:
    loaded = {name for name in sys.modules if name.partition(".")[0] == "bcc"}
    assert loaded == {"bcc"}, loaded
"""


def test_a_replay_needs_no_bcc_and_writes_the_same_bytes_each_time(recording: Path) -> None:
    runs = [
        subprocess.run([sys.executable, "-c", _WITHOUT_BCC, str(recording)], capture_output=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.count(b'"kind":"exchange"') == _EXCHANGES


def test_a_full_disk_is_said_in_one_line_and_what_was_written_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "full.rec"
    writer = RecordingWriter(path, header())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer.batch(Batch(1, 1, 0, 0, b""))
    writer.flush()
    # As if the disk ended here; Python ignores the signal that comes with it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
    try:
        with pytest.raises(RecordingError, match=f"cannot write the recording {path}: "):
            writer.batch(Batch(2, 2, 0, 0, bytes(8 << 20)))  # more than is buffered
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    result = replay(path)
    assert result.exit_code == 1
    assert "cut        the file ends in the middle" in result.stderr
