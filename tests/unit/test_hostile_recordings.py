# SPDX-License-Identifier: Apache-2.0
"""A foreign file is replayed and explained, or refused in one line: no traceback, no hang, no memory of its choice."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.records import CALL, CHUNKS, CLOSE, HEADER, OPEN
from tests.fuzz.fuzz_recording import block
from tests.support.agent import ROVER_HOST

if TYPE_CHECKING:
    from pathlib import Path

PREAMBLE = struct.pack("<8sH", b"ROVERREC", 1)
HEAD = {"shards": 1, "start_ns": 1, "redacted": False, "local_addresses": [], "options": {}, "agent": "a"}
MEMORY = 1 << 30


def recording(head: object = HEAD, *blocks: bytes) -> bytes:
    return PREAMBLE + block(1, json.dumps(head).encode()) + b"".join(blocks) + block(6, struct.pack("<Q", 5))


def batch(records: bytes, shard: int = 0, time_ns: int = 3, clock_offset_ns: int = 4) -> bytes:
    return block(2, struct.pack("<QQqII", time_ns, time_ns, clock_offset_ns, shard, 0) + records)


def record(*contents: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(content)) + content for content in contents)


def header(kind: int, call: int = 1, direction: int = 0, flags: int = 0, time_ns: int = 5) -> bytes:
    return HEADER.pack(kind, call, direction, flags, 0, 1, 7, 1, time_ns, time_ns)


def opened(family: int = 2, cause: int = 2) -> bytes:
    facts = (bytes(16), bytes(16), 80, 40000, family, cause, 1, 1, 0, 1, 1, 99)
    return header(2) + OPEN.pack(*[0] * 10, *facts)[HEADER.size :]


def call(size: int, offset: int, captured: int, content: bytes, flags: int = 0, **facts: int) -> bytes:
    numbers = struct.pack("<IIIIII", size, offset, captured, 1, 1, 7)
    return header(1, flags=flags, **facts) + numbers + content


REFUSED = {
    "a_billion_shards": recording({**HEAD, "shards": 10**9}),
    "no_shards": recording({**HEAD, "shards": 0}),
    "shards_of_text": recording({**HEAD, "shards": "x"}),
    "shards_true": recording({**HEAD, "shards": True}),
    "no_fields": recording({}),
    "header_of_a_list": PREAMBLE + block(1, b"[1,2]"),
    "header_no_json": PREAMBLE + block(1, b"\xff{"),
    "header_deep": PREAMBLE + block(1, b"[" * 200_000),
    "header_of_many_digits": PREAMBLE + block(1, b'{"shards":' + b"9" * 5000 + b"}"),
    "header_of_infinity": PREAMBLE + block(1, b'{"shards":1,"start_ns":1,"options":{"exchange_timeout_s":Infinity}}'),
    "odd_address": recording({**HEAD, "local_addresses": ["zz"]}),
    "address_no_text": recording({**HEAD, "local_addresses": [1]}),
    "options_no_table": recording({**HEAD, "options": 1}),
    "timeout_of_text": recording({**HEAD, "options": {"exchange_timeout_s": "x"}}),
    "timeout_negative": recording({**HEAD, "options": {"exchange_timeout_s": -1e300}}),
    "no_connections": recording({**HEAD, "options": {"max_connections": 0}}),
    "other_shard": recording(HEAD, batch(b"", 99)),
    "connection_of_another_shard": recording({**HEAD, "shards": 2}, batch(record(opened()), 0)),
    "short_batch": recording(HEAD, block(2, b"abc")),
    "record_beyond": recording(HEAD, batch(struct.pack("<I", 0xFFFFFFFF) + b"xx")),
    "records_of_nothing": recording(HEAD, batch(struct.pack("<I", 0) * 10)),
    "records_of_a_byte": recording(HEAD, batch(record(b"\1", b"\1"))),
    "unknown_kind": recording(HEAD, batch(record(header(9) + bytes(100)))),
    "unknown_call": recording(HEAD, batch(record(call(0, 0, 0, b"", call=200)))),
    "unknown_direction": recording(HEAD, batch(record(call(0, 0, 0, b"", direction=2)))),
    "short_open": recording(HEAD, batch(record(header(2) + bytes(9)))),
    "short_met": recording(HEAD, batch(record(header(2, flags=2) + opened()[HEADER.size :]))),
    "short_close": recording(HEAD, batch(record(header(3) + bytes(CLOSE.size - HEADER.size - 1)))),
    "unknown_family": recording(HEAD, batch(record(opened(family=1)))),
    "unknown_cause": recording(HEAD, batch(record(opened(cause=77)))),
    "more_than_there_is": recording(HEAD, batch(record(call(100, 0, 100, b"x")))),
    "more_than_moved": recording(HEAD, batch(record(call(1, 0, 5, b"12345")))),
    "offset_beyond": recording(HEAD, batch(record(call(5, 4, 5, b"12345")))),
    "cut_piece": recording(HEAD, batch(record(call(99, 0, 5, b"12345", 2)))),
    "long_piece": recording(HEAD, batch(record(call(99, 0, 9, struct.pack("<II", 0, 50) + b"1", 2)))),
    "chunks_beyond": recording(HEAD, batch(record(call(99, 0, CHUNKS.size, CHUNKS.pack(9, 1, 1, 1), 4)))),
    "all_bits": recording(HEAD, batch(record(b"\xff" * 200))),
    "time_beyond": recording(HEAD, batch(b"", 0, 2**63)),
    "time_of_a_record_beyond": recording(HEAD, batch(record(call(0, 0, 0, b"", time_ns=2**63)))),
    "clock_beyond": recording(HEAD, batch(b"", 0, 3, -(2**63))),
    "processes_of_noise": recording(HEAD, block(3, struct.pack("<Q", 1) + b"\xff" * 200)),
    "processes_without_time": recording(HEAD, block(3, b"")),
    "settling_without_time": recording(HEAD, block(4, b"x")),
    "statistics_no_json": recording(HEAD, block(5, b"{")),
    "statistics_of_a_list": recording(HEAD, block(5, b"[]")),
    "translations_of_a_number": recording(HEAD, block(7, struct.pack("<Q", 1) + b"[1]")),
    "translations_of_noise": recording(HEAD, block(7, struct.pack("<Q", 1) + b'[["x","zz",1]]')),
}
TAKEN = {
    "nothing": recording(),
    "later_kinds": recording(HEAD, block(8, b"abc"), batch(b"")),
    "time_back_and_forth": recording(HEAD, batch(b"", 0, 2**61), batch(b"", 0, 1)),
    "unknown_connection": recording(HEAD, batch(record(call(5, 0, 5, b"12345")))),
    "one_call": recording(HEAD, batch(record(opened(), call(5, 0, 5, b"12345")))),
}
assert CALL.size == HEADER.size + 24


def rover_host(*arguments: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    command = [ROVER_HOST, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit)


def run_both(path: Path) -> list[tuple[int, str]]:
    """Exit code and standard error of replay and explain, as commands of this process do it."""
    from click.testing import CliRunner  # noqa: PLC0415 only here

    from rover_plugin.host.cli import cli  # noqa: PLC0415 as above

    results = []
    for command in (["replay", "--output", "none", str(path)], ["explain", str(path)]):
        done = CliRunner().invoke(cli, command, prog_name="rover-host")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        results.append((done.exit_code, done.stderr))
    return results


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.rec"
    path.write_bytes(content)
    for code, errors in run_both(path):
        assert code == 1
        assert "hostile.rec" in errors
        assert len(errors.splitlines()) == 1
        assert len(errors) < 500


@pytest.mark.parametrize("content", TAKEN.values(), ids=TAKEN)
def test_odd_but_possible_files_are_taken(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.rec"
    path.write_bytes(content)
    assert [code for code, _ in run_both(path)] == [0, 0]


def test_a_sparse_file_that_claims_a_gigabyte_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.rec"
    path.write_bytes(PREAMBLE + struct.pack("<B3xI", 1, 1 << 30) + bytes(4))
    os.truncate(path, (1 << 30) + 100)
    for command in (["replay", "--output", "none"], ["explain"]):
        done = rover_host(*command, str(path))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


def test_a_pipe_is_no_recording_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.rec")
    done = rover_host("replay", "--output", "none", str(tmp_path / "pipe.rec"))
    assert done.returncode == 1
    assert "pipe.rec" in done.stderr
