# SPDX-License-Identifier: Apache-2.0
"""What a recording holds, connection by connection, and what the analysis made of one of them, call by call.

The analysis is the agent's own; it is only looked over the shoulder: at the records it is given, at what its
conversations are told, and at what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rover_plugin.access_log.address_book import format_address
from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Direction, ProtocolName, Role
from rover_plugin.access_log.schedule import Schedule
from rover_plugin.access_log.shard import Shard
from rover_plugin.capture.recording import Batch, End, Processes
from rover_plugin.capture.records import (
    CALL,
    CALL_NAMES,
    CLOSE,
    CLOSE_BY_PEER,
    HEADER,
    OPEN,
    OPEN_FAILED,
    OpenCause,
    PolicyMode,
    RecordKind,
)
from rover_plugin.discovery.table import Removed
from rover_plugin.errors import UnknownConnectionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rover_plugin.access_log.connection import Connection
    from rover_plugin.access_log.model import Call, Exchange
    from rover_plugin.access_log.protocols.analyzer import Part
    from rover_plugin.capture.recording import RecordingHeader, RecordingReader

_DIRECTIONS: Final = {Direction.INGRESS: "in", Direction.EGRESS: "out"}
_HOW: Final = {Role.UNKNOWN: "met midway", Role.CLIENT: "connected", Role.SERVER: "accepted"}
_CAUSES: Final = {OpenCause.MET: Role.UNKNOWN, OpenCause.CONNECT: Role.CLIENT, OpenCause.ACCEPT: Role.SERVER}
_POLICIES: Final = {
    PolicyMode.ALL: "all need be copied",
    PolicyMode.NEVER: "nothing need be copied any more",
    PolicyMode.COPY: "the kernel side does not know where it is: all need be copied",
}
_AHEAD: Final = {
    PolicyMode.SKIP: "",
    PolicyMode.CHUNK: ", then a chunk ends",
    PolicyMode.FRAME: ", then a frame begins",
}
_NEAREST: Final = 3
_HALF: Final = 1 << 31
_MASK: Final = (1 << 32) - 1


@dataclass(slots=True)
class Event:
    """One line of a connection's time line.

    Attributes:
        at_ns: CLOCK_MONOTONIC; of a call, its exit.
        event: open, call, gap, skipped, protocol, exchange, error, policy or close.
        took_ns: from entry to exit of a call.
        direction: "in" or "out", seen from the watched process.
        call: the system call's name.
        bytes: that moved, or are missing.
        start, end: where in the direction's byte stream, from 0 at its beginning (or where it was met).
        copied: how many of the bytes were captured.
        exchange: number of the exchange that it is part of, or that it is; None: stand-alone, or no call.
        text: what was decided, or found out.
    """

    at_ns: int
    event: str
    took_ns: int = 0
    direction: str = ""
    call: str = ""
    bytes: int | None = None
    start: int | None = None
    end: int | None = None
    copied: int | None = None
    exchange: int | None = None
    text: str = ""


@dataclass(slots=True)
class Story:
    """One connection of a recording.

    Attributes:
        cause: how its process came to it.
        calls: kernel logs, connect, accept and close among them.
        gaps, gap_bytes: how often, and how many, bytes moved without a record.
        events: the time line, if it was asked for.
    """

    id: int
    pid: int
    process: str
    local: str
    remote: str
    cause: str
    role: Role = Role.UNKNOWN
    protocol: ProtocolName = ProtocolName.TCP
    calls: int = 0
    exchanges: int = 0
    gaps: int = 0
    gap_bytes: int = 0
    events: list[Event] = field(default_factory=list)


class _Watched(Conversation):
    """A conversation whose listener hears what it is told."""

    __slots__ = ("listener", "story")

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.story: Story | None = None
        self.listener: _Listener | None = None

    def successor(self) -> _Watched:
        """See `Conversation.successor`: the story goes on."""
        successor = _Watched(Role.UNKNOWN)
        successor.story, successor.listener = self.story, self.listener
        return successor

    def receive(self, direction: int, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        """See `Conversation.receive`."""
        if self.listener is not None:
            self.listener.receives(call)
        super().receive(direction, call, data, unseen, parts)

    def gap(self, direction: int, size: int, *, recorded: bool = False) -> None:
        """See `Conversation.gap`."""
        if self.listener is not None:
            self.listener.misses(direction, size, recorded=recorded)
        elif self.story is not None and not recorded:
            self.story.gaps += 1
        super().gap(direction, size, recorded=recorded)


class _Streams:
    """Positions of both byte streams, extended to 64 bits and counted from their beginnings."""

    def __init__(self) -> None:
        self._last: list[int | None] = [None, None]
        self._at = [0, 0]

    def begin(self, read: int, written: int) -> None:
        self._last = [read, written]

    def seek(self, direction: int, position: int) -> int:
        last = self._last[direction]
        distance = (position - last) & _MASK if last is not None else 0
        self._at[direction] += distance if distance < _HALF else distance - (1 << 32)
        self._last[direction] = position
        return self._at[direction]

    def distance(self, direction: int, position: int) -> int:
        return (position - (self._last[direction] or 0)) & _MASK

    def at(self, direction: int) -> int:
        return self._at[direction]


class _Listener:
    """Writes the time line of one connection."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._streams = _Streams()
        self._call: Event | None = None  # of the record in hand, until the conversation has it
        self._events_of: dict[int, Event] = {}
        self._calls: list[Call] = []  # keeps their ids theirs
        self._facts: tuple[object, ...] = (ProtocolName.TCP, False, False)
        self._errors: dict[str, int] = {}
        self.now_ns = 0

    def _add(self, event: Event) -> Event:
        self._story.events.append(event)
        return event

    # -- records, before the shard has them --

    def takes(self, data: memoryview, start: int) -> None:
        """A record of this connection is about to be analysed."""
        kind, call, direction, flags, _, _, _, _, enter_ns, exit_ns = HEADER.unpack_from(data, start)
        self.now_ns = exit_ns
        took_ns = exit_ns - enter_ns
        if kind == RecordKind.CALL:
            size, _, captured, position = CALL.unpack_from(data, start)[10:14]
            at = self._streams.seek(direction, position)
            self._streams.seek(direction, (position + size) & _MASK)
            name = CALL_NAMES[call]
            self._call = Event(
                exit_ns, "call", took_ns, _DIRECTIONS[direction], name, size, at, at + size, copied=captured
            )
        elif kind == RecordKind.OPEN:
            self._opens(OPEN.unpack_from(data, start), failed=bool(flags & OPEN_FAILED))
        else:
            written, read, retransmitted, rtt_us, received, acknowledged = CLOSE.unpack_from(data, start)[10:]
            by_peer = "by the peer, " if flags & CLOSE_BY_PEER else ""
            facts = (
                f"{by_peer}{received} bytes received, {acknowledged} acknowledged, {retransmitted} segments sent again,"
                f" round trip {rtt_us} µs"
            )
            self._streams.seek(Direction.INGRESS, read)
            self._streams.seek(Direction.EGRESS, written)
            self._add(Event(exit_ns, "close", took_ns, call="close", text=facts))

    def _opens(self, record: tuple[Any, ...], *, failed: bool) -> None:
        enter_ns, exit_ns = record[8:10]
        cause, _, _, error, written, read, _ = record[15:]
        if cause != OpenCause.MET:
            self._streams.begin(read, written)
        text = f"failed, errno {error}" if failed else _HOW[_CAUSES[OpenCause(cause)]]
        name = {OpenCause.CONNECT: "connect", OpenCause.ACCEPT: "accept"}.get(cause, "")
        self._add(Event(exit_ns, "open", exit_ns - enter_ns, call=name, text=text))

    # -- what the conversation is told --

    def receives(self, call: Call) -> None:
        """The call in hand; or an earlier one again, once it is known what is spoken."""
        if self._call is not None:
            self._events_of[id(call)] = self._add(self._call)
            self._calls.append(call)
            self._call = None

    def misses(self, direction: int, size: int, *, recorded: bool) -> None:
        """Bytes without a record, or the first ones of a call that were not copied."""
        if recorded:
            text = "first bytes of the next call, not copied: nobody needs them"
            self._add(Event(self.now_ns, "skipped", direction=_DIRECTIONS[Direction(direction)], bytes=size, text=text))
            return
        self._story.gaps += 1
        call = self._call
        end = call.start if call is not None and call.start is not None else self._streams.at(direction)
        text = "moved without a record: lost, or sent from a file or a pipe"
        start = end - size if size >= 0 else None
        self._add(Event(self.now_ns, "gap", 0, _DIRECTIONS[Direction(direction)], "", size, start, end, text=text))

    # -- what comes out --

    def exchange(self, exchange: Exchange) -> None:
        """An exchange is finished."""
        number = self._story.exchanges
        for call in exchange.calls:
            event = self._events_of.get(id(call))
            if event is not None:
                event.exchange = number
        stream = f"stream {exchange.stream_id}: " if exchange.version == 2 else ""
        grpc = f", grpc-status {exchange.grpc_status}" if exchange.grpc_status is not None else ""
        text = (
            f"{stream}{exchange.method or '?'} {exchange.path or '?'} {exchange.status or '-'}{grpc},"
            f" {exchange.completeness.value}, request {exchange.request_header_bytes}+{exchange.request_body_bytes},"
            f" response {exchange.response_header_bytes}+{exchange.response_body_bytes} bytes,"
            f" {(exchange.end_ns - exchange.start_ns) / 1e6:.3f} ms, {len(exchange.calls)} calls"
        )
        self._add(Event(self.now_ns, "exchange", exchange=number, text=text))

    def policy(self, direction: int, until: int, mode: PolicyMode) -> None:
        """The kernel was told where the direction is, or to copy less."""
        text = _POLICIES.get(mode, "")
        if mode in _AHEAD:
            text = f"the next {self._streams.distance(direction, until)} bytes need not be copied{_AHEAD[mode]}"
        self._add(Event(self.now_ns, "policy", direction=_DIRECTIONS[Direction(direction)], text=text))

    def looks_at(self, conversation: Conversation) -> None:
        """What has changed since the last record."""
        facts = (conversation.protocol, conversation.tls, conversation.deaf)
        if facts != self._facts:
            self._facts = facts
            name = "TLS" if conversation.tls else conversation.protocol.value
            text = f"speaks {name}, this end is {conversation.role.value}"
            self._add(
                Event(self.now_ns, "protocol", text=f"{text}; not analysed any further" if conversation.deaf else text)
            )
        for reason, count in conversation.errors.items():
            known = self._errors.get(reason, 0)
            if count > known:
                times = f", {count - known} times" if count - known > 1 else ""
                self._add(Event(self.now_ns, "error", text=f"{reason}{times}"))
        self._errors = dict(conversation.errors)


class Explainer:
    """Analyses a recording and writes down what there is to say of its connections. It is a shard's sink.

    Args:
        header: of the recording.
        wanted: id of the connection whose time line is wanted; None: of none, but all are listed.
    """

    def __init__(self, header: RecordingHeader, wanted: int | None = None) -> None:
        self._wanted = wanted
        self._listener: _Listener | None = None
        self._opening = memoryview(b"")  # the wanted connection's open record
        self._names: dict[int, str] = {}
        self._now_ns = header.start_ns
        self.stories: dict[int, Story] = {}
        options = header.options
        self._shards = [
            Shard(self, options.max_connections, _Watched, max_bytes=options.max_bytes) for _ in range(header.shards)
        ]
        self._schedules = [Schedule(shard, options.exchange_timeout_s, options.open_report_s) for shard in self._shards]

    def read(self, reader: RecordingReader) -> None:
        """Reads a recording to its end.

        Raises:
            RecordingError: it is damaged.
        """
        for block in reader.blocks():
            if isinstance(block, Processes):
                for change in block.changes:
                    if not isinstance(change, Removed):
                        process = change.process
                        self._names[process.key.pid] = (
                            process.entities[0].process if process.entities else process.exe.rpartition("/")[2]
                        )
            elif isinstance(block, Batch):
                self._take(block)
            elif isinstance(block, End):
                self._now_ns = block.read_ns
        for shard in self._shards:
            shard.finish(self._now_ns)
        for story in self.stories.values():
            story.process = self._names.get(story.pid, story.process)

    def _take(self, batch: Batch) -> None:
        self._now_ns = batch.read_ns
        shard = self._shards[batch.shard]
        if self._wanted is None or self._wanted % len(self._shards) != batch.shard:
            batch.each(shard.handle)
        else:
            batch.each(lambda data, start, end: self._watch(shard, data, start, end))
        if self._listener is not None:
            self._listener.now_ns = max(batch.read_ns, self._listener.now_ns)
        if batch.final:
            shard.finish(batch.read_ns)
        else:
            self._schedules[batch.shard].pass_time(batch.read_ns)

    def _watch(self, shard: Shard, data: memoryview, start: int, end: int) -> None:
        identity = HEADER.unpack_from(data, start)[7]
        if identity != self._wanted:
            shard.handle(data, start, end)
            return
        if data[start] == RecordKind.OPEN:
            self._opening = data[start:end]
        elif self._listener is not None:
            self._listener.takes(data, start)
        shard.handle(data, start, end)
        connection = shard.connections.get(identity)
        if self._listener is not None and connection is not None:
            self._listener.looks_at(connection.conversation)

    # -- the shards' sink --

    def opened(self, connection: Connection) -> None:
        """See `ShardSink`."""
        conversation = connection.conversation
        story = self.stories[connection.id] = Story(
            connection.id,
            connection.tgid,
            self._names.get(connection.tgid, ""),
            _end(connection.local),
            _end(connection.remote),
            _HOW[conversation.role],
        )
        if isinstance(conversation, _Watched):
            conversation.story = story
            if connection.id == self._wanted:
                self._listener = conversation.listener = _Listener(story)
                self._listener.takes(self._opening, 0)

    def exchange(self, connection: Connection, exchange: Exchange) -> None:
        """See `ShardSink`."""
        story = self.stories[connection.id]
        story.exchanges += 1
        story.calls += len(exchange.calls)
        if self._listener is not None and connection.id == self._wanted:
            self._listener.looks_at(connection.conversation)
            self._listener.exchange(exchange)

    def calls(self, connection: Connection, calls: list[Call], protocol: ProtocolName) -> None:  # noqa: ARG002
        """See `ShardSink`."""
        self.stories[connection.id].calls += len(calls)

    def gone(self, connection: Connection) -> None:
        """See `ShardSink`."""
        story = self.stories[connection.id]
        conversation = connection.conversation
        story.pid, story.role, story.gap_bytes = connection.tgid, conversation.role, connection.gap_bytes
        story.protocol = conversation.protocol
        if self._listener is not None and connection.id == self._wanted:
            self._listener.looks_at(conversation)

    def policy(self, connection: Connection, direction: int, until: int, mode: PolicyMode) -> None:
        """See `ShardSink`."""
        if self._listener is not None and connection.id == self._wanted:
            self._listener.policy(direction, until, mode)


def _end(end: tuple[bytes, int]) -> str:
    address, port = end
    text = format_address(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def survey(reader: RecordingReader) -> list[Story]:
    """All connections of a recording, by their number, which is the order in which they came."""
    explainer = Explainer(reader.header)
    explainer.read(reader)
    return [story for _, story in sorted(explainer.stories.items())]


def explain(reader: RecordingReader, identity: int) -> Story:
    """One connection with its time line.

    Raises:
        UnknownConnectionError: the recording has none of this number.
        RecordingError: it is damaged.
    """
    explainer = Explainer(reader.header, identity)
    explainer.read(reader)
    story = explainer.stories.get(identity)
    if story is None:
        raise _unknown(identity, explainer.stories)
    return story


def _unknown(identity: int, known: Iterable[int]) -> UnknownConnectionError:
    nearest = sorted(sorted(known, key=lambda other: abs(other - identity))[:_NEAREST])
    if not nearest:
        return UnknownConnectionError(f"no connection {identity}: the recording has none at all")
    words = f"the nearest are {', '.join(map(str, nearest))}" if len(nearest) > 1 else f"there is {nearest[0]}"
    return UnknownConnectionError(
        f"no connection {identity} in the recording: {words}", hint="leave --connection out to see them all"
    )
