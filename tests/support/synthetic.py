# SPDX-License-Identifier: Apache-2.0
"""Records as the kernel side would write them, made up; and recordings of them."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rover_plugin.access_log.model import Direction
from rover_plugin.capture.recording import AnalysisOptions, Batch, RecordingHeader, RecordingWriter, pack_records
from rover_plugin.capture.records import CALL, CLOSE, OPEN, CallClass, OpenCause, RecordKind
from rover_plugin.discovery.model import Entity, Process, ProcessKey
from rover_plugin.discovery.table import Added

if TYPE_CHECKING:
    from pathlib import Path

TGID = 4242
START_NS = 1_000_000_000_000
CLOCK_OFFSET_NS = 1_700_000_000_000_000_000 - START_NS
_STEP_NS = 1_000


def server_process(pid: int = TGID) -> Process:
    entity = Entity("OS_LINUX", "shop", "host-1", "nginx")
    return Process(ProcessKey(pid, 77), "/usr/sbin/nginx", ("nginx", "--token=cmdline-secret"), entities=(entity,))


def header(*, shards: int = 1, redacted: bool = False, **options: object) -> RecordingHeader:
    return RecordingHeader(
        shards,
        START_NS,
        redacted,
        ("7f000001",),
        AnalysisOptions(**options),  # type: ignore[arg-type]
    )


@dataclass
class Kernel:
    """Writes records one after the other, each a microsecond later, all in one lane.

    Attributes:
        positions: sequence number of the next byte by connection and direction.
    """

    now_ns: int = START_NS
    sequence: int = 0
    positions: dict[int, list[int]] = field(default_factory=dict)

    def open(self, connection: int, cause: OpenCause = OpenCause.ACCEPT, tgid: int = TGID, port: int = 0) -> bytes:
        self.positions[connection] = [0xFFFFFFF0, 5000]  # the wrap comes early
        read, written = self.positions[connection]
        return OPEN.pack(
            *self._header(RecordKind.OPEN, CallClass.ACCEPT, 0, connection, tgid),
            socket.inet_aton("10.0.0.1").ljust(16, b"\0"),
            socket.inet_aton("10.0.0.2").ljust(16, b"\0"),
            80,
            port or 1024 + connection % 60_000,
            socket.AF_INET,
            cause,
            1,
            4026531840,
            0,
            written,
            read,
            0xFFFF_8880_0000_0000 + connection,
        )

    def call(
        self, connection: int, direction: Direction, data: bytes, *, unseen: int = 0, offset: int = 0, tgid: int = TGID
    ) -> bytes:
        positions = self.positions.setdefault(connection, [1, 1])
        size = offset + len(data) + unseen
        position = positions[direction]
        positions[direction] = (position + size) & 0xFFFFFFFF
        kind = CallClass.READ if direction is Direction.INGRESS else CallClass.WRITEV
        head = self._header(RecordKind.CALL, kind, direction, connection, tgid)
        return CALL.pack(*head, size, offset, len(data), position, positions[1 - direction], tgid) + data

    def record(
        self, connection: int, direction: Direction, size: int, offset: int, captured: bytes, flags: int
    ) -> bytes:
        """A call's record with bytes as the kernel side gives them."""
        raw = bytearray(self.call(connection, direction, captured, unseen=size - offset - len(captured), offset=offset))
        raw[3] = flags
        return bytes(raw)

    def lose(self, connection: int, direction: Direction, size: int) -> None:
        """Moves `size` bytes with no record."""
        self.sequence += 1
        positions = self.positions[connection]
        positions[direction] = (positions[direction] + size) & 0xFFFFFFFF

    def close(self, connection: int, tgid: int = TGID, flags: int = 0) -> bytes:
        read, written = self.positions[connection]
        kind, call, direction, _, *head = self._header(RecordKind.CLOSE, CallClass.CLOSE, 0, connection, tgid)
        return CLOSE.pack(kind, call, direction, flags, *head, written, read, 0, 100, 0, 0)

    def _header(self, kind: RecordKind, call: CallClass, direction: int, connection: int, tgid: int) -> tuple[int, ...]:
        self.sequence += 1
        self.now_ns += _STEP_NS
        return kind, call, direction, 0, 3, self.sequence, tgid, connection, self.now_ns - _STEP_NS // 2, self.now_ns


def made_batch(now_ns: int, records: list[bytes], shard: int = 0) -> Batch:
    return Batch(now_ns, now_ns, CLOCK_OFFSET_NS, shard, pack_records(records))


def write_recording(
    path: Path, records: list[bytes], head: RecordingHeader | None = None, *, batch: int = 7, process: bool = True
) -> None:
    """A recording of one shard with the server's process, `batch` records read at a time."""
    writer = RecordingWriter(path, head or header())
    now_ns = START_NS
    if process:
        writer.processes(now_ns, [Added(server_process())])
    for start in range(0, len(records), batch):
        now_ns += 20_000_000
        writer.batch(made_batch(now_ns, records[start : start + batch]))
    writer.close(now_ns + 1, {"records": len(records)})
