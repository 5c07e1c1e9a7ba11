# SPDX-License-Identifier: Apache-2.0
"""Recordings of real traffic, replayed: each line as it is kept beside them (tests/data/replay/README.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rover_plugin.access_log.redaction import Redaction
from rover_plugin.capture.recording import RecordingReader, RecordingWriter
from tests.support.golden import DATA, copy, recordings, replay_to_lines
from tests.support.traffic import SECRETS

if TYPE_CHECKING:
    from pathlib import Path

_WORDS = ("path", "host", "trace", "grpc_message")
_AGAIN = "if the change is wanted: .venv/bin/python -m tests.support.golden"

golden = pytest.mark.parametrize("recording", recordings(), ids=lambda path: path.stem)


def _items(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def test_all_recordings_are_there_and_small() -> None:
    assert {path.stem for path in recordings()} == {"http1", "http2", "late-join", "lossy"}
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 300_000


@golden
def test_a_replay_gives_what_is_expected(recording: Path, tmp_path: Path) -> None:
    expected = recording.with_suffix(".jsonl").read_bytes()
    lines, summary = replay_to_lines(recording, tmp_path)
    assert summary.imbalance == 0
    assert not summary.cut
    for number, (item, other) in enumerate(zip(_items(lines), _items(expected), strict=False), 1):
        assert item == other, f"line {number} of {recording.stem}.jsonl; {_AGAIN}"
    assert lines == expected, _AGAIN


@pytest.mark.parametrize("name", ["http1", "http2"])
def test_what_is_expected_is_what_was_asked(name: str) -> None:
    exchanges = [item for item in _items((DATA / f"{name}.jsonl").read_bytes()) if item["kind"] == "exchange"]
    by_role: dict[str, list[tuple[Any, ...]]] = {"client": [], "server": []}
    for item in sorted(exchanges, key=lambda item: (item["start_ns"], item.get("stream", 0))):
        sizes = (item["request_header_bytes"], item["request_body_bytes"], item["response_body_bytes"])
        by_role[item["role"]].append((item["method"], item["path"], item["status"], *sizes))
    # Both ends of each connection say the same.
    assert sorted(by_role["client"]) == sorted(by_role["server"])
    assert len(by_role["server"]) == {"http1": 18, "http2": 16}[name]
    assert {item["completeness"] for item in exchanges} == {"complete"}


def test_what_was_lost_is_labelled_and_nothing_is_invented() -> None:
    whole = [item for item in _items((DATA / "http1.jsonl").read_bytes()) if item["kind"] == "exchange"]
    lossy = [item for item in _items((DATA / "lossy.jsonl").read_bytes()) if item["kind"] == "exchange"]

    def said(item: dict[str, Any]) -> tuple[Any, ...]:
        return item["connection"], item["method"], item["path"], item["status"], item["response_body_bytes"]

    true = {said(item) for item in whole}
    assert {said(item) for item in lossy if item["completeness"] == "complete"} <= true
    assert any(item["completeness"] == "gap" for item in lossy)


@golden
def test_redacted_it_gives_the_same_but_for_its_words(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "redacted.rec"
    with RecordingReader(recording) as reader:
        header = replace(reader.header, redacted=True)
        copy(reader, Redaction(RecordingWriter(path, header), header))
    assert not any(secret.encode() in path.read_bytes() for secret in SECRETS.values())
    lines, summary = replay_to_lines(path, tmp_path)
    assert summary.imbalance == 0
    assert b"secret" not in lines
    before, after = (
        [{key: value for key, value in item.items() if key not in _WORDS} for item in _items(text)]
        for text in (recording.with_suffix(".jsonl").read_bytes(), lines)
    )
    assert after == before
