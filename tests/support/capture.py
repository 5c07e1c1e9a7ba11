# SPDX-License-Identifier: Apache-2.0
"""A running capture for tests: its records as dataclasses, waited for by what they say and not by the clock."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import pytest

from rover_plugin.capture.bpf import Map
from rover_plugin.capture.btf import BTF_PATH
from rover_plugin.capture.records import CALL, CLOSE, OPEN, CallClass, OpenCause, RecordKind
from rover_plugin.capture.ring import RingReader
from rover_plugin.capture.session import Capture, CaptureOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S = 20.0
_AF_INET = 2
# struct connection of bpf/maps.h, up to tgid
_CONNECTION = struct.Struct("=QQQQI")


def why_not() -> str:
    """Why no capture can run here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    return "" if BTF_PATH.exists() else f"needs BTF ({BTF_PATH})"


needs_capture = pytest.mark.skipif(bool(why_not()), reason=why_not() or "can run")


@dataclass(frozen=True, slots=True)
class Header:
    """struct record_header."""

    kind: RecordKind
    call: CallClass
    direction: int
    flags: int
    lane: int
    sequence: int
    tgid: int
    connection: int
    enter_ns: int
    exit_ns: int


@dataclass(frozen=True, slots=True)
class CallRecord(Header):
    """struct call_record, with the captured bytes."""

    size: int
    offset: int
    captured: int
    position: int
    opposite: int
    tid: int
    data: bytes


@dataclass(frozen=True, slots=True)
class OpenRecord(Header):
    """struct open_record."""

    local: bytes
    remote: bytes
    local_port: int
    remote_port: int
    family: int
    cause: OpenCause
    state: int
    netns: int
    error: int
    written: int
    read: int
    cookie: int


@dataclass(frozen=True, slots=True)
class CloseRecord(Header):
    """struct close_record."""

    written: int
    read: int
    retransmitted: int
    smoothed_rtt_us: int
    bytes_received: int
    bytes_acked: int


Record = CallRecord | OpenRecord | CloseRecord


def parse(raw: bytes) -> Record:
    """One record of a ring."""
    kind = RecordKind(raw[0])
    if kind is RecordKind.CALL:
        fields = CALL.unpack_from(raw)
        return CallRecord(kind, CallClass(fields[1]), *fields[2:], data=raw[CALL.size : CALL.size + fields[12]])
    if kind is RecordKind.OPEN:
        fields = OPEN.unpack_from(raw)
        return OpenRecord(kind, CallClass(fields[1]), *fields[2:15], OpenCause(fields[15]), *fields[16:])
    fields = CLOSE.unpack_from(raw)
    return CloseRecord(kind, CallClass(fields[1]), *fields[2:])


@dataclass(slots=True)
class Seen:
    """One connection's records, in the order of its ring."""

    opens: list[OpenRecord]
    calls: list[CallRecord]
    closes: list[CloseRecord]

    @property
    def opened(self) -> OpenRecord:
        """The one open record."""
        (record,) = self.opens
        return record

    @property
    def closed(self) -> CloseRecord:
        """The one close record."""
        (record,) = self.closes
        return record

    def moved(self, direction: int) -> list[CallRecord]:
        """Calls of one direction."""
        return [call for call in self.calls if call.direction == direction]


class Recorder:
    """A capture that runs, and everything it has said of the processes a test asks for.

    Attributes:
        capture: the kernel side.
        raw: (shard, bytes) of every record kept, as read.
        records: the same, parsed.
    """

    def __init__(self, options: CaptureOptions) -> None:
        self.capture = Capture(options)
        self.raw: list[tuple[int, bytes]] = []
        self.records: list[Record] = []
        self._keep: Callable[[int], bool] = lambda _: True
        self._readers = [RingReader(descriptor) for descriptor in self.capture.ring_descriptors()]
        # Of a shard: first those, as the agent does.
        self._provisional = [RingReader(descriptor) for descriptor in self.capture.provisional_descriptors()]
        self.capture.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.stop()
        for reader in [*self._readers, *self._provisional]:
            reader.close()
        self.capture.close()

    def listen_to(self, *tgids: int) -> None:
        """Forgets what was read; from now on keeps records of these processes only, or of all if none is named."""
        self.read()
        self.raw.clear()
        self.records.clear()
        self._keep = tgids.__contains__ if tgids else lambda _: True
        for tgid in tgids:
            assert self.capture.watch(tgid)

    def read(self) -> None:
        """Takes what waits in the rings."""
        for shard, reader in enumerate(self._readers):

            def take(data: memoryview, start: int, end: int, shard: int = shard) -> None:
                (tgid,) = struct.unpack_from("<I", data, start + 12)
                if self._keep(tgid):
                    raw = bytes(data[start:end])
                    self.raw.append((shard, raw))
                    self.records.append(parse(raw))
                else:
                    # Somebody else on this machine, born while we run: as the feed would.
                    self.capture.unwatch(tgid)

            until = reader.produced()
            self._provisional[shard].read(take)
            reader.read(take, until=until)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Reads until `holds`."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self.read()
            if holds():
                return
            assert time.monotonic() < deadline, f"never seen: {what}; read: {self.records[-20:]}"
            self._readers[0].wait(0.001)

    def connection(self, local_port: int, remote_port: int | None = None) -> Seen:
        """What was read of the connection with these ports."""
        identities = {
            record.connection
            for record in self.records
            if isinstance(record, OpenRecord)
            and record.local_port == local_port
            and remote_port in {None, record.remote_port}
        }
        seen = Seen([], [], [])
        for record in self.records:
            if record.connection in identities:
                bucket = {RecordKind.OPEN: seen.opens, RecordKind.CALL: seen.calls, RecordKind.CLOSE: seen.closes}
                bucket[record.kind].append(record)  # type: ignore[attr-defined]
        return seen

    def until_closed(self, local_port: int, remote_port: int | None = None) -> Seen:
        """Reads until the connection's close record has come."""
        self.until(
            lambda: bool(self.connection(local_port, remote_port).closes), f"the close of {local_port}->{remote_port}"
        )
        return self.connection(local_port, remote_port)

    def held(self, *tgids: int) -> int:
        """How many connections of these processes the kernel side holds now."""
        table = Map(self.capture._loaded.maps["connections"])
        values = [table.get(key) for key in table.keys()]  # noqa: SIM118 a Map is no dict
        return sum(_CONNECTION.unpack_from(value)[4] in tgids for value in values if value is not None)

    def threads(self) -> set[int]:
        """Thread ids the kernel side holds state of."""
        keys = Map(self.capture._loaded.maps["threads"]).keys()
        return {int.from_bytes(key, "little") for key in keys}


@pytest.fixture(scope="session")
def shared_recorder() -> Iterator[Recorder]:
    """One capture for all tests that need no sizes of their own: compiling costs a second."""
    with Recorder(CaptureOptions(ring_bytes=64 << 20)) as recorder:
        yield recorder


@pytest.fixture
def recorder(shared_recorder: Recorder) -> Recorder:
    """The shared capture, with nothing read yet."""
    shared_recorder.listen_to()
    return shared_recorder
