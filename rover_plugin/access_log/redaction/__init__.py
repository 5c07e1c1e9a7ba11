# SPDX-License-Identifier: Apache-2.0
"""Hides what was said in a recording, and keeps what analysing it needs: lengths, structure, results.

HTTP/1: version and status stay, methods and field names that everybody uses (`known`), and the values that framing
depends on; every other word, value, path and query is filler of the same length; bodies are zeros. HTTP/2: frames stay;
header blocks keep their length and their representations, all but a few values are filler; DATA is zeros. Everything
else, and whatever is not understood, is zeros. Command lines of processes are left out.

A header section may be cut over many calls, and what a connection speaks may be known only after some of them. So
records are held back for a second before they are written; what is not understood by then is zeros for good.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Role
from rover_plugin.access_log.parts import copied
from rover_plugin.access_log.protocols.analyzer import Part
from rover_plugin.access_log.redaction.http1 import Http1Redactor
from rover_plugin.access_log.redaction.http2 import Http2Redactor
from rover_plugin.access_log.redaction.pieces import RecordedCall
from rover_plugin.access_log.schedule import Schedule
from rover_plugin.access_log.shard import Shard
from rover_plugin.capture.recording import pack_records
from rover_plugin.capture.records import CALL, HEADER, PolicyMode, RecordKind
from rover_plugin.discovery.table import Added, Removed, Updated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rover_plugin.access_log.connection import Connection
    from rover_plugin.access_log.model import Call, Exchange, ProtocolName
    from rover_plugin.access_log.protocols.analyzer import Analyzer
    from rover_plugin.capture.recording import (
        AnalysisOptions,
        Batch,
        RecordingHeader,
        RecordingWriter,
        Translation,
    )
    from rover_plugin.discovery.table import Change

HOLD_NS: Final = 1_000_000_000
MAX_HELD_BYTES: Final = 64 << 20
_NO_BYTES: Final = frozenset((RecordKind.OPEN, RecordKind.CLOSE))  # records that carry nothing of what was said


class RedactingConversation(Conversation):
    """A conversation whose analysers fill in what may be seen.

    Args:
        role: see `Conversation`.
        outs: gets the output of each call.
    """

    __slots__ = ("_outs",)

    def __init__(self, role: Role, outs: list[bytearray]) -> None:
        super().__init__(role)
        self._outs = outs

    def receive(self, direction: int, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        """See `Conversation.receive`; each part is taken as a call of its own, with its own output."""
        self._receive(direction, call, data, unseen)
        for part in parts:
            if part.content >= 0:
                self._receive(direction, call, b"", 0, (Part(b"", part.unseen, part.content, part.left),))
                self._receive(direction, call, part.data, 0)
            else:
                self._receive(direction, call, part.data, part.unseen)

    def successor(self) -> RedactingConversation:
        """See `Conversation.successor`."""
        return RedactingConversation(Role.UNKNOWN, self._outs)

    def _receive(self, direction: int, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        if not isinstance(call, RecordedCall):  # one is, when it is taken up again after it had to wait
            out = bytearray(len(data))
            self._outs.append(out)
            call = RecordedCall(
                call.operation,
                call.syscall,
                call.enter_ns,
                call.exit_ns,
                call.size,
                position=call.position,
                opposite=call.opposite,
                out=out,
            )
        super().receive(direction, call, data, unseen, parts)

    def _http1(self) -> Analyzer:
        return Http1Redactor(late_join=self._late_join)

    def _http2(self, upgraded: Exchange | None = None) -> Analyzer:
        if upgraded is not None:
            self.loose += upgraded.calls
        return Http2Redactor(late_join=self._late_join)


class _Nowhere:
    """A shard's sink: what is found is of no interest here."""

    def opened(self, connection: Connection) -> None:
        pass

    def exchange(self, connection: Connection, exchange: Exchange) -> None:
        pass

    def calls(self, connection: Connection, calls: list[Call], protocol: ProtocolName) -> None:
        pass

    def gone(self, connection: Connection) -> None:
        pass

    def policy(self, connection: Connection, direction: int, until: int, mode: PolicyMode) -> None:
        pass


class ShardRedactor:
    """Redacts the records of one shard."""

    def __init__(self, options: AnalysisOptions) -> None:
        self._outs: list[bytearray] = []
        self._shard = Shard(_Nowhere(), options.max_connections, lambda role: RedactingConversation(role, self._outs))
        self._schedule = Schedule(self._shard, options.exchange_timeout_s)

    def take(self, record: bytes) -> list[bytes | bytearray]:
        """What may be seen of a record, in parts: what is said in it, as far as is known when it is written."""
        self._outs.clear()
        self._shard.handle(memoryview(record), 0, len(record))
        if record[0] in _NO_BYTES:
            return [record]
        if record[0] != RecordKind.CALL:
            return [record[: HEADER.size], bytes(len(record) - HEADER.size)]
        shown: list[bytes | bytearray] = []
        outs = [out for out in self._outs if out]
        where = [found for found in copied(record[3], record[CALL.size :]) if found.start < found.stop]
        known = [len(out) for out in outs] == [found.stop - found.start for found in where]
        at = 0
        for index, found in enumerate(where):
            start, stop = CALL.size + found.start, CALL.size + found.stop
            shown += (record[at:start], outs[index] if known else bytes(stop - start))
            at = stop
        return [*shown, record[at:]]

    def pass_time(self, now_ns: int) -> None:
        """Lets go of what nobody waits for any more."""
        self._schedule.pass_time(now_ns)


class Redaction:
    """Stands before a recording's writer.

    Args:
        writer: gets everything a second later, redacted.
        header: of the recording.
    """

    def __init__(self, writer: RecordingWriter, header: RecordingHeader) -> None:
        self._writer = writer
        self._shards = [ShardRedactor(header.options) for _ in range(header.shards)]
        self._held: deque[tuple[int, int, Callable[[], None]]] = deque()
        self._held_bytes = 0

    def batch(self, batch: Batch) -> None:
        """See `RecordingWriter.batch`."""
        redactor = self._shards[batch.shard]
        redacted: list[list[bytes | bytearray]] = []
        batch.each(lambda data, start, end: redacted.append(redactor.take(data[start:end].tobytes())))
        redactor.pass_time(batch.read_ns)
        size = sum(len(part) for parts in redacted for part in parts)
        self._hold(batch.read_ns, size, partial(self._write, replace(batch, records=b""), redacted))

    def processes(self, read_ns: int, changes: Iterable[Change]) -> None:
        """See `RecordingWriter.processes`."""
        shown = [hide_command_line(change) for change in changes]
        self._hold(read_ns, 0, partial(self._writer.processes, read_ns, shown))

    def settling(self, read_ns: int) -> None:
        """See `RecordingWriter.settling`."""
        self._hold(read_ns, 0, partial(self._writer.settling, read_ns))

    def translations(self, read_ns: int, answers: Iterable[Translation]) -> None:
        """See `RecordingWriter.translations`."""
        self._hold(read_ns, 0, partial(self._writer.translations, read_ns, tuple(answers)))

    def flush(self) -> None:
        """See `RecordingWriter.flush`."""
        self._writer.flush()

    def close(self, now_ns: int, counts: dict[str, Any]) -> None:
        """See `RecordingWriter.close`."""
        while self._held:
            self._release()
        self._writer.close(now_ns, counts)

    def _write(self, batch: Batch, redacted: list[list[bytes | bytearray]]) -> None:
        self._writer.batch(replace(batch, records=pack_records(b"".join(parts) for parts in redacted)))

    def _hold(self, read_ns: int, size: int, write: Callable[[], None]) -> None:
        self._held.append((read_ns, size, write))
        self._held_bytes += size
        while self._held[0][0] + HOLD_NS <= read_ns or self._held_bytes > MAX_HELD_BYTES:
            self._release()

    def _release(self) -> None:
        _, size, write = self._held.popleft()
        self._held_bytes -= size
        write()


def hide_command_line(change: Change) -> Change:
    """The same change, but nobody sees what the process was started with."""
    if isinstance(change, Removed):
        return change
    process = replace(change.process, cmdline=())
    return Added(process) if isinstance(change, Added) else Updated(process)
