# SPDX-License-Identifier: Apache-2.0
"""Recording files: the raw records of all shards, with everything else that analysing them again needs.

The blocks are what the live agent's main thread took, in the order in which it took it. So a replay is in every state
the agent was in, and writes the same bytes.

Little-endian. The magic `ROVERREC`, a u16 version, then blocks, each a header (u8 kind, 3 bytes zero, u32 length, u32
CRC-32 of kind, length and content) and `length` bytes of content:

| kind | block | content |
|---|---|---|
| 1 | header, the first one | JSON: `RecordingHeader` |
| 2 | batch | u64 read time, u64 taken time, i64 clock offset, u32 shard, u32 flags (`Batch`), then records: each a u32
length and its bytes as they came from the ring |
| 3 | processes | u64 read time, then a `Changes` message of protos/rover/feed.proto |
| 4 | settling | u64 time: connections that waited for a name were looked at again |
| 5 | statistics | JSON: counts of kernel side and recorder at the end |
| 6 | end, the last one | u64 time; its absence means that the recording was cut |
| 7 | translations | u64 time, then JSON: for each connection asked about, its id, and the other end's address
(hexadecimal; empty where it is not translated) and port |

Times are CLOCK_MONOTONIC nanoseconds. Batch boundaries and read times, empty batches included, are what flushing and
expiry depend on. Readers pass over kinds they do not know.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass, field, fields
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

from google.protobuf.message import DecodeError

from rover_plugin._generated.rover import feed_pb2
from rover_plugin.capture.record_check import check_record
from rover_plugin.capture.records import HEADER, MAX_SHARDS
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
_CHECKSUM: Final = struct.Struct("<I")
_BATCH: Final = struct.Struct("<QQqII")
_TIME: Final = struct.Struct("<Q")
LENGTH: Final = struct.Struct("<I")
_MAX_BLOCK: Final = 1 << 28  # a batch of 2000 records of 64 KB is half of that
_LATEST_NS: Final = 1 << 62
# What decoding raises for content that no agent writes; the rest would be a mistake of ours.
_UNDECODABLE: Final = (ValueError, TypeError, KeyError, struct.error, RecursionError, DecodeError)
_BUFFER: Final = 1 << 20

_Facts = TypeVar("_Facts", "RecordingHeader", "AnalysisOptions")

_FINAL: Final = 1  # flag of a batch

_HEADER_KIND, _BATCH_KIND, _PROCESSES_KIND, _SETTLING_KIND, _STATISTICS_KIND, _END_KIND, _TRANSLATIONS_KIND = range(
    1, 8
)


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
    translations: bool = False
    max_bytes: int = 1 << 60


@dataclass(frozen=True, slots=True)
class RecordingHeader:
    """What a recording says about itself.

    Attributes:
        shards: how many there are.
        start_ns: CLOCK_MONOTONIC at the beginning.
        redacted: values are hidden, see `access_log.redaction`.
        local_addresses: of the recorded host, hexadecimal: both ends of a connection between two of them may be seen.
        agent, kernel, machine: for people.
    """

    shards: int
    start_ns: int
    redacted: bool = False
    local_addresses: tuple[str, ...] = ()
    options: AnalysisOptions = field(default_factory=AnalysisOptions)
    agent: str = ""
    kernel: str = ""
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records a worker read from its shard's ring at a time; maybe none.

    Attributes:
        read_ns: when it had read them.
        taken_ns: when the main process had them, and what came of them.
        clock_offset_ns: wall clock minus CLOCK_MONOTONIC, as the worker knew it.
        records: as in the file.
        final: the shard ended after these.
    """

    read_ns: int
    taken_ns: int
    clock_offset_ns: int
    shard: int
    records: bytes
    final: bool = False

    def pack(self) -> bytes:
        """The block's content."""
        flags = _FINAL if self.final else 0
        return _BATCH.pack(self.read_ns, self.taken_ns, self.clock_offset_ns, self.shard, flags) + self.records

    @classmethod
    def unpack(cls, content: bytes) -> Batch:
        """Reads what `pack` made."""
        read_ns, taken_ns, clock_offset_ns, shard, flags = _BATCH.unpack_from(content)
        return cls(read_ns, taken_ns, clock_offset_ns, shard, content[_BATCH.size :], bool(flags & _FINAL))

    def check(self, shards: int) -> None:
        """Checks what came from a foreign file, so that `each` and the analysis can rely on it.

        Raises:
            ValueError: a shard, time or record that cannot be.
        """
        _require(self.shard < shards, f"no shard {self.shard}")
        # bpf/rings.h: a connection's number says which shard is its.
        _require(max(self.read_ns, self.taken_ns, abs(self.clock_offset_ns)) < _LATEST_NS, "a time that cannot be")
        data = memoryview(self.records)
        at, end = 0, len(data)
        while at < end:
            _require(at + LENGTH.size <= end, "a record that is cut")
            start = at + LENGTH.size
            at = start + LENGTH.unpack_from(data, at)[0]
            _require(at <= end, "a record that is cut")
            check_record(data, start, at)
            _require(HEADER.unpack_from(data, start)[7] % shards == self.shard, "a connection of another shard")

    def each(self, handle: Callable[[memoryview, int, int], None]) -> int:
        """Gives each record to `handle(data, start, end)`, as `RingReader.read` does; returns how many."""
        records = self.records
        data = memoryview(records)
        at, end, count = 0, len(records), 0
        while at < end:
            (length,) = LENGTH.unpack_from(records, at)
            start = at + 4
            at = start + length
            handle(data, start, at)
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class Processes:
    """What the process feed said."""

    read_ns: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Settling:
    """Connections that waited for a name were looked at again."""

    read_ns: int


class Translation(NamedTuple):
    """Whom a connection really goes to, or comes from, behind the kernel's address translation.

    Attributes:
        id: of the connection.
        address, port: of the other end; no address where there is no translation.
    """

    id: int
    address: bytes = b""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Translations:
    """What the kernel said about translated connections."""

    read_ns: int
    answers: tuple[Translation, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of kernel side and recorder."""

    counts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """The recording was closed in order."""

    read_ns: int


Block = Batch | Processes | Settling | Translations | Statistics | End


def pack_records(records: Iterable[bytes | bytearray]) -> bytes:
    """Records as `Batch.records` has them."""
    parts: list[bytes | bytearray] = []
    for record in records:
        parts += (LENGTH.pack(len(record)), record)
    return b"".join(parts)


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

    def batch(self, batch: Batch) -> None:
        """Writes what was read from one ring at a time, also if that was nothing."""
        self._block(_BATCH_KIND, batch.pack())

    def processes(self, read_ns: int, changes: Iterable[Change]) -> None:
        """Writes what the process feed said."""
        self._block(_PROCESSES_KIND, _TIME.pack(read_ns) + encode_changes(changes).SerializeToString())

    def settling(self, read_ns: int) -> None:
        """Writes that connections without a name are looked at again now."""
        self._block(_SETTLING_KIND, _TIME.pack(read_ns))

    def translations(self, read_ns: int, answers: Iterable[Translation]) -> None:
        """Writes what the kernel said about translated connections."""
        content = json.dumps([[answer.id, answer.address.hex(), answer.port] for answer in answers])
        self._block(_TRANSLATIONS_KIND, _TIME.pack(read_ns) + content.encode())

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
            head = _BLOCK.pack(kind, len(content))
            self._file.write(head + _CHECKSUM.pack(zlib.crc32(content, zlib.crc32(head))))
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
            # Not to wait for whoever writes to a pipe.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._file: IO[bytes] = os.fdopen(descriptor, "rb", buffering=_BUFFER)
            self._size = os.fstat(descriptor).st_size
        except OSError as error:
            raise self._cannot_read(error) from error
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
        """All blocks after the header, in order; of a cut file those that are whole.

        Raises:
            RecordingError: the file is damaged.
        """
        while (block := self._read_block()) is not None:
            try:
                decoded = self._decode(*block)
            except _UNDECODABLE as error:
                raise self._damaged(str(error)) from error
            if decoded is not None:
                yield decoded
            if isinstance(decoded, End):
                self.cut = False
                return

    def _decode(self, kind: int, content: bytes) -> Block | None:
        """A block; None for a kind of a later version."""
        if kind == _BATCH_KIND:
            batch = Batch.unpack(content)
            batch.check(self.header.shards)
            return batch
        if kind == _PROCESSES_KIND:
            changes = feed_pb2.Changes.FromString(content[_TIME.size :])
            return Processes(_time(content), tuple(decode_changes(changes)))
        if kind == _SETTLING_KIND:
            return Settling(_time(content))
        if kind == _TRANSLATIONS_KIND:
            said = json.loads(content[_TIME.size :])
            answers = (Translation(int(identity), bytes.fromhex(text), int(port)) for identity, text, port in said)
            return Translations(_time(content), tuple(answers))
        if kind == _STATISTICS_KIND:
            counts = json.loads(content)
            _require(isinstance(counts, dict), "statistics that are none")
            return Statistics(counts)
        return End(_time(content)) if kind == _END_KIND else None

    def _read_header(self) -> RecordingHeader:
        preamble = self._read(_PREAMBLE.size)
        if len(preamble) < _PREAMBLE.size or not preamble.startswith(MAGIC):
            message = f"{self._path} is not a recording"
            raise RecordingError(message, hint="name a file that `rover-host record` wrote", path=str(self._path))
        _, version = _PREAMBLE.unpack(preamble)
        if version != VERSION:
            message = f"{self._path} is a recording of version {version}, and this rover-host reads version {VERSION}"
            raise RecordingError(message, hint="use the rover-host that wrote it", path=str(self._path))
        block = self._read_block()
        if block is None:
            message = f"the recording {self._path} ends within its header"
            raise RecordingError(message, hint="record again", path=str(self._path))
        if block[0] != _HEADER_KIND:
            raise self._damaged()
        try:
            return _decode_header(json.loads(block[1]))
        except _UNDECODABLE as error:
            raise self._damaged(str(error)) from error

    def _read_block(self) -> tuple[int, bytes] | None:
        """Kind and content of the next block that is whole."""
        head = self._read(_BLOCK.size + _CHECKSUM.size)
        if len(head) < _BLOCK.size + _CHECKSUM.size:
            return None
        kind, length = _BLOCK.unpack_from(head)
        if length > _MAX_BLOCK:
            raise self._damaged()
        # A file that claims more than it has is not to cost the memory for it.
        if length > self._size - self._file.tell():
            return None
        content = self._read(length)
        if len(content) < length:
            return None
        if zlib.crc32(content, zlib.crc32(head[: _BLOCK.size])) != _CHECKSUM.unpack_from(head, _BLOCK.size)[0]:
            raise self._damaged()
        return kind, content

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise self._cannot_read(error) from error

    def _cannot_read(self, error: OSError) -> RecordingError:
        message = f"cannot read the recording {self._path}: {error.strerror}"
        return RecordingError(message, hint="name a file that `rover-host record` wrote", path=str(self._path))

    def _damaged(self, what: str = "") -> RecordingError:
        message = f"the recording {self._path} is damaged before byte {self._file.tell()}"
        return RecordingError(message + (f" ({what})" if what else ""), hint="record again", path=str(self._path))


def _decode_header(facts: Any) -> RecordingHeader:
    """Reads the header's JSON.

    Raises:
        ValueError, TypeError: it is none that an agent writes.
    """
    _require(isinstance(facts, dict), "a header that is none")
    options = facts.pop("options", {})
    _require(isinstance(options, dict), "options that are none")
    header = RecordingHeader(
        options=_checked(AnalysisOptions(**_known(AnalysisOptions, options)), AnalysisOptions()),
        **_known(RecordingHeader, facts),
    )
    _checked(header, RecordingHeader(shards=1, start_ns=0))
    _require(1 <= header.shards <= MAX_SHARDS, f"{header.shards} shards")
    _require(header.options.max_connections >= 1, "no connections")
    for address in header.local_addresses:
        bytes.fromhex(address)
    return header


def _checked(found: _Facts, example: _Facts) -> _Facts:
    """Facts whose every field has the type that it has in the example, and no number is beyond all bounds."""
    for item in fields(example):
        value, like = getattr(found, item.name), getattr(example, item.name)
        right = isinstance(value, (int, float)) if isinstance(like, float) else type(value) is type(like)
        _require(right, f"{item.name} is of the wrong type")
        if isinstance(like, (int, float)) and not isinstance(like, bool):
            _require(0 <= value < _LATEST_NS, f"{item.name} is out of range")
        if isinstance(like, tuple):
            _require(all(isinstance(word, str) for word in value), f"{item.name} is of the wrong type")
    return found


def _time(content: bytes) -> int:
    (time_ns,) = _TIME.unpack_from(content)
    _require(time_ns < _LATEST_NS, "a time that cannot be")
    return int(time_ns)


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise ValueError(otherwise)


def _known(kind: type[Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The facts a dataclass has a field for; lists become tuples."""
    names = {item.name for item in fields(kind)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items() if name in names}
