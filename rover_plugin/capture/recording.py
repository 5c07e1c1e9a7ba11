# SPDX-License-Identifier: Apache-2.0
"""Recording files: the raw records of all shards, with everything else that analysing them again needs.

Little-endian. The magic `ROVERREC`, a u16 version, then blocks, each a header (u8 kind, 3 bytes zero, u32 length) and
`length` bytes:

| kind | block | content |
|---|---|---|
| 1 | header, the first one | JSON: `RecordingHeader` |
| 2 | batch | u64 read time, u32 shard, then records, each a u32 length and its bytes as they came from the ring |
| 3 | processes | u64 read time, then a `Changes` message of protos/rover/feed.proto |
| 4 | clock | u64 read time, i64 wall clock minus CLOCK_MONOTONIC from now on |
| 5 | statistics | JSON: counts of kernel side and recorder at the end |
| 6 | end, the last one | u64 time; its absence means that the recording was cut |

Times are CLOCK_MONOTONIC nanoseconds. Blocks are in the order in which their content was read: batch boundaries and
read times, empty batches included, are what flushing and expiry depend on. Readers pass over kinds they do not know.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import IO, TYPE_CHECKING, Any, Final, Self

from rover_plugin._generated.rover import feed_pb2
from rover_plugin.discovery.feed_codec import decode_changes, encode_changes
from rover_plugin.errors import RecordingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from rover_plugin.discovery.table import Change

MAGIC: Final = b"ROVERREC"
VERSION: Final = 1

_PREAMBLE: Final = struct.Struct("<8sH")
_BLOCK: Final = struct.Struct("<B3xI")
_BATCH: Final = struct.Struct("<QI")
_TIME: Final = struct.Struct("<Q")
_CLOCK: Final = struct.Struct("<Qq")
_LENGTH: Final = struct.Struct("<I")
_MAX_BLOCK: Final = 1 << 30
_BUFFER: Final = 1 << 20

_HEADER_KIND, _BATCH_KIND, _PROCESSES_KIND, _CLOCK_KIND, _STATISTICS_KIND, _END_KIND = range(1, 7)


@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """Settings that the outcome of the analysis depends on, as they were when the recording was made."""

    exclude_namespaces: tuple[str, ...] = ()
    exclude_clusters: tuple[str, ...] = ()
    max_connections: int = 65536
    exchange_timeout_s: float = 60.0
    grpc_status_as_http: bool = True
    path_templates: bool = False
    open_report_s: float = 60.0


@dataclass(frozen=True, slots=True)
class RecordingHeader:
    """What a recording says about itself.

    Attributes:
        shards: how many there are.
        start_ns: CLOCK_MONOTONIC at the beginning.
        clock_offset_ns: wall clock minus CLOCK_MONOTONIC, then.
        redacted: values are hidden, see `access_log.redaction`.
        local_addresses: of the recorded host, hexadecimal: both ends of a connection between two of them may be seen.
        agent, kernel, machine: for people.
    """

    shards: int
    start_ns: int
    clock_offset_ns: int
    redacted: bool = False
    local_addresses: tuple[str, ...] = ()
    options: AnalysisOptions = field(default_factory=AnalysisOptions)
    agent: str = ""
    kernel: str = ""
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records taken from one shard's ring at a time; `records` as in the file."""

    read_ns: int
    shard: int
    records: bytes

    def each(self, handle: Callable[[memoryview, int, int], None]) -> int:
        """Gives each record to `handle(data, start, end)`, as `RingReader.read` does; returns how many."""
        records = self.records
        data = memoryview(records)
        at, end, count = 0, len(records), 0
        while end - at >= 4:
            (length,) = _LENGTH.unpack_from(records, at)
            start = at + 4
            at = start + length
            if at > end:  # cut here
                break
            handle(data, start, at)
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class Processes:
    """What the process feed said."""

    read_ns: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class ClockSet:
    """From here on, wall clock minus CLOCK_MONOTONIC is this."""

    read_ns: int
    offset_ns: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of kernel side and recorder."""

    counts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """The recording was closed in order."""

    read_ns: int


Block = Batch | Processes | ClockSet | Statistics | End


class RecordingWriter:
    """Writes one recording.

    Args:
        path: the file; made with mode 0600, since recordings hold what was said.

    Raises:
        RecordingError: the file exists, or cannot be written.
    """

    def __init__(self, path: Path, header: RecordingHeader) -> None:
        self._path = path
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            message = f"{path} exists"
            raise RecordingError(message, hint="remove it or choose another name", path=str(path)) from error
        except OSError as error:
            raise self._cannot_write(error) from error
        self._file = os.fdopen(descriptor, "wb", buffering=_BUFFER)
        self._file.write(_PREAMBLE.pack(MAGIC, VERSION))
        self._json(_HEADER_KIND, asdict(header))

    def batch(self, shard: int, read_ns: int, records: Iterable[bytes | bytearray]) -> None:
        """Writes what was read from one ring at a time, also if that was nothing."""
        pack = _LENGTH.pack
        parts: list[bytes | bytearray] = [_BATCH.pack(read_ns, shard)]
        for record in records:
            parts += (pack(len(record)), record)
        self._block(_BATCH_KIND, b"".join(parts))

    def processes(self, read_ns: int, changes: Iterable[Change]) -> None:
        """Writes what the process feed said."""
        self._block(_PROCESSES_KIND, _TIME.pack(read_ns) + encode_changes(changes).SerializeToString())

    def clock(self, read_ns: int, offset_ns: int) -> None:
        """Writes that the wall clock is another now."""
        self._block(_CLOCK_KIND, _CLOCK.pack(read_ns, offset_ns))

    def flush(self) -> None:
        """Hands what is buffered to the operating system, so that it survives this process."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self, now_ns: int, counts: dict[str, Any]) -> None:
        """Writes the statistics and the end, and closes the file."""
        self._json(_STATISTICS_KIND, counts)
        self._block(_END_KIND, _TIME.pack(now_ns))
        self.flush()
        self._file.close()

    def _json(self, kind: int, value: dict[str, Any]) -> None:
        self._block(kind, json.dumps(value).encode())

    def _block(self, kind: int, content: bytes) -> None:
        try:
            self._file.write(_BLOCK.pack(kind, len(content)))
            self._file.write(content)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> RecordingError:
        message = f"cannot write the recording {self._path}: {error.strerror}"
        return RecordingError(message, hint="choose a writable place with enough room", path=str(self._path))


class RecordingReader:
    """Reads one recording, from the beginning, once.

    Attributes:
        header: what the recording says about itself.
        cut: after `blocks` has ended: the file ends before its end block does.

    Raises:
        RecordingError: the file cannot be read, or is no recording, or one of a later version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: IO[bytes] = path.open("rb", buffering=_BUFFER)
        except OSError as error:
            message = f"cannot read the recording {path}: {error.strerror}"
            raise RecordingError(message, hint="name a file that `rover-host record` wrote", path=str(path)) from error
        self.cut = True
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self) -> Iterator[Block]:
        """All blocks after the header, in order; of a cut file, as far as they go.

        Raises:
            RecordingError: the file is damaged.
        """
        while True:
            kind, content, whole = self._read_block()
            if kind == _BATCH_KIND and len(content) >= _BATCH.size:
                read_ns, shard = _BATCH.unpack_from(content)
                if shard >= self.header.shards:
                    raise self._damaged()
                yield Batch(read_ns, shard, content[_BATCH.size :])
            if not whole:
                return
            if kind == _PROCESSES_KIND:
                changes = feed_pb2.Changes.FromString(content[_TIME.size :])
                yield Processes(_TIME.unpack_from(content)[0], tuple(decode_changes(changes)))
            elif kind == _CLOCK_KIND:
                yield ClockSet(*_CLOCK.unpack(content))
            elif kind == _STATISTICS_KIND:
                yield Statistics(json.loads(content))
            elif kind == _END_KIND:
                self.cut = False
                yield End(_TIME.unpack(content)[0])
                return

    def _read_header(self) -> RecordingHeader:
        preamble = self._file.read(_PREAMBLE.size)
        if len(preamble) < _PREAMBLE.size or not preamble.startswith(MAGIC):
            message = f"{self._path} is not a recording"
            raise RecordingError(message, hint="name a file that `rover-host record` wrote", path=str(self._path))
        _, version = _PREAMBLE.unpack(preamble)
        if version != VERSION:
            message = f"{self._path} is a recording of version {version}, and this rover-host reads version {VERSION}"
            raise RecordingError(message, hint="use the rover-host that wrote it", path=str(self._path))
        kind, content, whole = self._read_block()
        if kind != _HEADER_KIND or not whole:
            raise self._damaged()
        return _decode_header(json.loads(content))

    def _read_block(self) -> tuple[int, bytes, bool]:
        """Kind, content, and whether that is the whole block; kind 0 at the end of the file."""
        head = self._file.read(_BLOCK.size)
        if len(head) < _BLOCK.size:
            return 0, b"", False
        kind, length = _BLOCK.unpack(head)
        if length > _MAX_BLOCK:
            raise self._damaged()
        content = self._file.read(length)
        return kind, content, len(content) == length

    def _damaged(self) -> RecordingError:
        message = f"the recording {self._path} is damaged before byte {self._file.tell()}"
        return RecordingError(message, hint="record again", path=str(self._path))


def _decode_header(facts: dict[str, Any]) -> RecordingHeader:
    options = AnalysisOptions(**_known(AnalysisOptions, facts.pop("options", {})))
    return RecordingHeader(options=options, **_known(RecordingHeader, facts))


def _known(kind: type[Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The facts a dataclass has a field for; lists become tuples."""
    names = {item.name for item in fields(kind)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items() if name in names}
