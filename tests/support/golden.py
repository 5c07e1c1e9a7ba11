# SPDX-License-Identifier: Apache-2.0
"""The recordings in tests/data/replay: writes what their replays are to give, or with --record (as root) all of it."""

from __future__ import annotations

import argparse
import http.client
import struct
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rover_plugin.access_log.outputs.jsonl import JsonLinesOutput
from rover_plugin.access_log.replay import Summary, replay
from rover_plugin.capture.recording import (
    Batch,
    End,
    Processes,
    RecordingReader,
    RecordingWriter,
    Settling,
    Translations,
    pack_records,
)
from rover_plugin.capture.records import CALL, HEADER, OPEN, RecordKind
from rover_plugin.discovery.table import Removed
from rover_plugin.telemetry.counters import Counters
from tests.support.agent import Agent
from tests.support.servers import Nginx
from tests.support.traffic import LOCATIONS, Nghttpd, run_http1, run_http2

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.access_log.redaction import Redaction
    from rover_plugin.discovery.table import Change

DATA = Path(__file__).parents[1] / "data" / "replay"
_SEQUENCE_AT = 8  # in struct record_header
_EVERY = 7


def recordings() -> list[Path]:
    """All there are."""
    return sorted(DATA.glob("*.rec"))


def replay_to_lines(recording: Path, folder: Path) -> tuple[bytes, Summary]:
    """What a replay writes, and what it comes to."""
    path = folder / "replayed.jsonl"
    path.unlink(missing_ok=True)
    counters = Counters()
    output = JsonLinesOutput(str(path), counters)
    with RecordingReader(recording) as reader:
        summary = replay(reader, output, counters)
    output.close(1.0)
    return path.read_bytes(), summary


def copy(
    reader: RecordingReader,
    writer: RecordingWriter | Redaction,
    keep: Callable[[int, bytes], bytes | None] = lambda _, record: record,
    change: Callable[[Change], Change | None] = lambda change: change,
) -> None:
    """Writes a recording again: the records (given with their shard) and process changes as they are kept."""
    end_ns = 0
    for block in reader.blocks():
        if isinstance(block, Batch):
            kept = [found for record in _records(block) if (found := keep(block.shard, record)) is not None]
            if kept or block.final or block.taken_ns - end_ns >= 100_000_000:
                end_ns = block.taken_ns
                writer.batch(replace(block, records=pack_records(kept)))
        elif isinstance(block, Processes):
            changes = [found for item in block.changes if (found := change(item)) is not None]
            if changes:
                writer.processes(block.read_ns, changes)
        elif isinstance(block, Settling):
            writer.settling(block.read_ns)
        elif isinstance(block, Translations):
            writer.translations(block.read_ns, block.answers)
        elif isinstance(block, End):
            end_ns = block.read_ns
    writer.close(end_ns, {})


def _records(batch: Batch) -> list[bytes]:
    records: list[bytes] = []
    batch.each(lambda data, start, end: records.append(data[start:end].tobytes()))
    return records


def _reduce(recorded: Path, port: int, target: Path) -> None:
    """Leaves only the connections to a port and their processes, and numbers the records as if there were no others."""
    identities: set[int] = set()
    pids: set[int] = set()

    def look(data: memoryview, start: int, _: int) -> None:
        facts = HEADER.unpack_from(data, start)
        if facts[0] == RecordKind.OPEN and port in OPEN.unpack_from(data, start)[12:14]:
            identities.add(facts[7])
        if facts[7] in identities:
            pids.add(facts[6])

    with RecordingReader(recorded) as reader:
        for block in reader.blocks():
            if isinstance(block, Batch):
                block.each(look)
    sequences: defaultdict[tuple[int, int], int] = defaultdict(int)

    def keep(shard: int, record: bytes) -> bytes | None:
        facts = HEADER.unpack_from(record)
        if facts[7] not in identities:
            return None
        sequences[shard, facts[4]] += 1
        number = struct.pack("<I", sequences[shard, facts[4]])
        return record[:_SEQUENCE_AT] + number + record[_SEQUENCE_AT + 4 :]

    def change(item: Change) -> Change | None:
        key = item.key if isinstance(item, Removed) else item.process.key
        if key.pid not in pids:
            return None
        if isinstance(item, Removed):
            return item
        entities = tuple(replace(entity, instance="host-1") for entity in item.process.entities)
        return type(item)(replace(item.process, cmdline=(), entities=entities))

    target.unlink(missing_ok=True)
    with RecordingReader(recorded) as reader:
        header = replace(reader.header, local_addresses=("7f000001",), kernel="", machine="")
        copy(reader, RecordingWriter(target, header), keep, change)
    target.chmod(0o644)


def _record(name: str, folder: Path) -> None:
    for path in (folder, folder.parent):
        path.chmod(0o755)
    served = folder / "served"
    served.mkdir()
    file = folder / "traffic.rec"
    with Nginx(folder / "nginx", locations=LOCATIONS) as nginx, Nghttpd(served) as nghttpd:
        port = nghttpd.port if name == "http2" else nginx.port
        client = http.client.HTTPConnection("127.0.0.1", port)
        if name == "late-join":
            _ask(client, "/before")
        command = ("record", str(file), "--output", "jsonl", "--path", str(folder / "access.jsonl"))
        rules = f"port={port},cmdline~=:{port}/,cmdline~=tests.support.golden"
        with Agent(folder, "jsonl", f"process_discovery.local.include={rules}", command=command) as agent:
            if name == "http1":
                count = run_http1(nginx, folder, load=8)
            elif name == "http2":
                count = run_http2(nghttpd, served, load=12, body_words=150)
            else:
                count = 3
                for number in range(count):
                    _ask(client, f"/after/{number}")
            agent.wait_for_exchanges(lambda item: item["local"]["port"] == port, count)
            agent.wait_for_exchanges(lambda item: item["remote"]["port"] == port, count)
            client.close()
            assert agent.stop() == 0, agent.text
    _reduce(file, port, DATA / f"{name}.rec")


def _ask(client: http.client.HTTPConnection, path: str) -> None:
    client.request("GET", path)
    client.getresponse().read()


def _lose(source: Path, target: Path) -> None:
    calls = 0

    def keep(_: int, record: bytes) -> bytes | None:
        nonlocal calls
        calls += record[0] == RecordKind.CALL and len(record) >= CALL.size
        return None if record[0] == RecordKind.CALL and calls % _EVERY == 0 else record

    target.unlink(missing_ok=True)
    with RecordingReader(source) as reader:
        copy(reader, RecordingWriter(target, reader.header), keep)
    target.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="record the traffic anew, too")
    if parser.parse_args().record:
        for name in ("http1", "http2", "late-join"):
            with tempfile.TemporaryDirectory() as directory:
                folder = Path(directory) / "work"
                folder.mkdir()
                _record(name, folder)
        _lose(DATA / "http1.rec", DATA / "lossy.rec")
    with tempfile.TemporaryDirectory() as directory:
        for recording in recordings():
            lines, summary = replay_to_lines(recording, Path(directory))
            recording.with_suffix(".jsonl").write_bytes(lines)
            print(f"{recording.name}: {summary.exchanges} exchanges, imbalance {summary.imbalance}")


if __name__ == "__main__":
    main()
