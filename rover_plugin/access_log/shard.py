# SPDX-License-Identifier: Apache-2.0
"""Turns one shard's records into exchanges and stand-alone calls. Sans-I/O: worker and `replay` drive the same code.

Counting (the worker's half of the loss ledger). Every record read is one of: `calls_out` (handed to an encoder),
`bookkeeping` (says something, but is no kernel log: a connection met midway), `unparsed` (with its reason), or still
held by its connection. A connection that ends must hold none: what it still holds (or gave out twice) is `imbalance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from rover_plugin.access_log.account import LEAST_BYTES, NO_LIMIT, Account
from rover_plugin.access_log.connection import Connection
from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Beginnings, Call, Completeness, EndedBy, Operation, ProtocolName
from rover_plugin.access_log.protocols.analyzer import Framing
from rover_plugin.capture.records import (
    CALL,
    CLOSE,
    HEADER,
    HOW_WALKED,
    MET,
    OPEN,
    OPEN_BEGINNINGS,
    OPEN_FAILED,
    PROVISIONAL_LANE,
    CallClass,
    OpenCause,
    PolicyMode,
    RecordKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.access_log.model import Exchange, Role

_CALL_KIND: Final = int(RecordKind.CALL)
_OPEN_KIND: Final = int(RecordKind.OPEN)
_CALL_SIZE: Final = CALL.size
_OPERATIONS: Final = (Operation.READ, Operation.WRITE)
_AF_INET: Final = 2
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 §2.5.5.2
# A skip shorter than this saves less than telling the kernel costs.
_WORTH_SKIPPING: Final = 32_768
# A call that brought as much is weighed at once, others at the next tick.
_WORTH_WEIGHING: Final = 4096
# A call smaller than this is rarely followed by much that can be skipped.
_WORTH_ASKING: Final = 4096
_FARTHEST: Final = 1 << 30
_MODES: Final = {
    Framing.HEAD: PolicyMode.SKIP,
    Framing.CHUNK: PolicyMode.CHUNK,
    Framing.FRAME: PolicyMode.FRAME,
}
# Stand-alone calls of a connection wait for company until a flush, or until there are this many.
_LOOSE_BATCH: Final = 64
# And until it is known what is spoken, or for so long: as the default of access_log.flush.period, for which all that
# goes to the backend waits anyway.
_PROTOCOL_WAIT_NS: Final = 5_000_000_000


class ShardSink(Protocol):
    """Where a shard's findings go."""

    def opened(self, connection: Connection) -> None:
        """A connection begins, or was met."""

    def exchange(self, connection: Connection, exchange: Exchange) -> None:
        """One finished exchange."""

    def calls(self, connection: Connection, calls: list[Call], protocol: ProtocolName) -> None:
        """Stand-alone calls, and what was spoken then; the list is the sink's to keep."""

    def gone(self, connection: Connection) -> None:
        """Nothing more will come of this connection."""

    def policy(self, connection: Connection, direction: int, until: int, mode: PolicyMode) -> None:
        """Tells the kernel side the protocol, and what is at position `until`: nothing before it is of use."""


class Shard:
    """All connections of one shard.

    Args:
        sink: takes what is found.
        max_connections: held at most; the one idle longest is ended for a new one and counted.
        max_bytes: memory of all of them; the costliest of those that are idle give way, and are counted.
        converse: makes a new connection's conversation; whoever wants to look over its shoulder brings another.
        on_evicted: told of each connection that is ended for want of room.

    Attributes:
        records: records read.
        lost: records missing, by gaps in the lanes' sequence numbers.
        calls_out, exchanges_out: handed to the sink; reports of open streams count as exchanges here.
        bookkeeping: records that are no kernel log.
        unparsed: records or bytes that could not be used, by reason.
        imbalance: calls that ended connections swallowed or gave out twice; anything but 0 is a bug.
        evicted: connections ended for want of room.
        relieved: connections that lost what they had gathered, for want of memory.
        gap_bytes: bytes that moved without a record.
    """

    def __init__(
        self,
        sink: ShardSink,
        max_connections: int = 65536,
        converse: Callable[[Role], Conversation] = Conversation,
        *,
        max_bytes: int = NO_LIMIT,
        on_evicted: Callable[[Connection], None] = lambda _connection: None,
    ) -> None:
        self._sink = sink
        self._converse = converse
        self._max_connections = max_connections
        self._account = Account(max_bytes)
        self._on_evicted = on_evicted
        self.connections: dict[int, Connection] = {}
        self._by_cookie: dict[int, int] = {}
        self._sequences: dict[int, int] = {}
        self._with_loose: dict[Connection, int] = {}  # -> until when its calls wait for the protocol
        self.records = 0
        self.lost = 0
        self._lost_ns = -1  # when a record was read before which others were missing, the latest
        self.calls_out = 0
        self.exchanges_out = 0
        self.bookkeeping = 0
        self.imbalance = 0
        self.evicted = 0
        self.relieved = 0
        self.gap_bytes = 0
        self.unparsed: dict[str, int] = {}
        self.errors: dict[str, int] = {}

    def handle(self, data: memoryview, start: int, end: int) -> None:  # noqa: ARG002 what a ring reader gives
        """Takes one record: `data[start:end]`."""
        self.records += 1
        if data[start] == _CALL_KIND:
            (
                _,
                call_class,
                direction,
                flags,
                lane,
                sequence,
                tgid,
                identity,
                enter_ns,
                exit_ns,
                size,
                offset,
                captured,
                position,
                opposite,
                _,
            ) = CALL.unpack_from(data, start)
            if self._sequences.get(lane, 0) + 1 != sequence:
                self._count_loss(lane, sequence, exit_ns)
            self._sequences[lane] = sequence
            connection = self.connections.get(identity)
            if connection is None:
                self._unparsed("unknown_connection")
                return
            if not connection.owned:
                connection.owned = True
                connection.tgid = tgid
            at = start + _CALL_SIZE
            call = Call(_OPERATIONS[direction], call_class, enter_ns, exit_ns, size, True, position, opposite)  # noqa: FBT003 hot
            connection.receive(direction, call, position, offset, bytes(data[at : at + captured]), flags)
            conversation = connection.conversation
            if conversation.exchanges:
                self._exchanges(connection)
            if conversation.loose or conversation.earlier:
                self._loose(connection)
            if captured >= _WORTH_WEIGHING:
                self._account.weigh(connection)
                if self._account.overdrawn:
                    self._relieve(exit_ns)
            elif not connection.unweighed:
                self._account.note(connection)
            if size >= _WORTH_ASKING or (conversation.deaf and not connection.muted >> direction & 1):
                self._tell_policy(connection, direction, position + size, flags & HOW_WALKED)
            return
        self._rare(data, start)

    @property
    def held_bytes(self) -> int:
        """Memory of all connections, roughly, as of the last tick."""
        return self._account.total

    def _exchanges(self, connection: Connection) -> None:
        exchanges = connection.conversation.exchanges
        for exchange in exchanges:
            self.exchanges_out += 1
            calls = len(exchange.calls)
            self.calls_out += calls
            connection.open_calls -= calls
            self._sink.exchange(connection, exchange)
        exchanges.clear()

    def _loose(self, connection: Connection) -> None:
        if len(connection.conversation.loose) >= _LOOSE_BATCH:
            self._flush_loose(connection)
        else:
            self._with_loose.setdefault(connection, connection.last_ns + _PROTOCOL_WAIT_NS)

    def _flush_loose(self, connection: Connection) -> None:
        conversation = connection.conversation
        if conversation.earlier:
            for protocol, calls in conversation.earlier:
                self._hand_on(connection, calls, protocol)
            conversation.earlier.clear()
        if conversation.loose:
            loose, conversation.loose = conversation.loose, []
            self._hand_on(connection, loose, conversation.protocol)

    def _hand_on(self, connection: Connection, calls: list[Call], protocol: ProtocolName) -> None:
        self.calls_out += len(calls)
        connection.open_calls -= len(calls)
        self._sink.calls(connection, calls, protocol)

    def _tell_policy(self, connection: Connection, direction: int, end: int, walked: int) -> None:
        """Tells the kernel side where this direction is, unless it knows (`walked`) and is right."""
        conversation = connection.conversation
        unneeded = conversation.unneeded(direction)
        if unneeded < 0:
            if not connection.muted >> direction & 1:
                connection.muted |= 1 << direction
                self._sink.policy(connection, direction, 0, PolicyMode.NEVER)
            return
        framing = conversation.framing(direction)
        if walked:
            if framing is Framing.LOST:
                connection.held |= 1 << direction
                self._sink.policy(connection, direction, 0, PolicyMode.COPY)
        elif framing in _MODES and (framing is Framing.FRAME or unneeded >= _WORTH_SKIPPING):
            # Positions wrap at 32 bits and "before" means the nearer half. What is farther is told when it is near.
            if unneeded < _FARTHEST:
                connection.held &= ~(1 << direction)
                self._sink.policy(connection, direction, (end + unneeded) & 0xFFFFFFFF, _MODES[framing])
        elif conversation.protocol is ProtocolName.HTTP2 and not connection.frames_told:
            # The kernel side knows HTTP/2 by its preface only, and a late one is told here: nothing is to be skipped.
            connection.frames_told = True
            self._sink.policy(connection, direction, 0, PolicyMode.ALL)
        elif connection.held >> direction & 1 and framing is not Framing.LOST:
            connection.held &= ~(1 << direction)
            self._sink.policy(connection, direction, 0, PolicyMode.ALL)

    def _count_loss(self, lane: int, sequence: int, exit_ns: int) -> None:
        missing = (sequence - self._sequences.get(lane, 0) - 1) & 0xFFFFFFFF
        # Of processes that were not chosen in time only some records come here; the kernel side counts their losses.
        if missing < 1 << 31 and not lane & PROVISIONAL_LANE:
            self.lost += missing
            self._lost_ns = exit_ns

    def _unparsed(self, reason: str) -> None:
        self.unparsed[reason] = self.unparsed.get(reason, 0) + 1

    # -- the rare records --

    def _rare(self, data: memoryview, start: int) -> None:
        kind, _, _, flags, lane, sequence, tgid, identity, enter_ns, exit_ns = HEADER.unpack_from(data, start)
        if self._sequences.get(lane, 0) + 1 != sequence:
            self._count_loss(lane, sequence, exit_ns)
        self._sequences[lane] = sequence
        if kind == _OPEN_KIND:
            began = MET.unpack_from(data, start)[-2:] if flags & OPEN_BEGINNINGS else ()
            self._open(OPEN.unpack_from(data, start)[10:], began, tgid, identity, flags, enter_ns, exit_ns)
        else:
            self._close(CLOSE.unpack_from(data, start)[10:], identity, flags, enter_ns, exit_ns)

    def _open(
        self,
        fields: tuple[object, ...],
        began: tuple[int, ...],
        tgid: int,
        identity: int,
        flags: int,
        enter_ns: int,
        exit_ns: int,
    ) -> None:
        local, remote, local_port, remote_port, family, cause, _, netns, _, written, read, cookie = fields
        if identity in self.connections:
            self.bookkeeping += 1  # announced again, because its process has been chosen since
            return
        stale = self.connections.get(self._by_cookie.get(cookie, 0))  # type: ignore[call-overload]
        if stale is not None:
            # Its socket's memory is another connection's now: the close record was lost.
            self.errors["close_record_lost"] = self.errors.get("close_record_lost", 0) + 1
            self._end(stale, exit_ns)
        connection = Connection(
            identity,
            tgid,
            OpenCause(cause),  # type: ignore[arg-type]
            (_address(local, family), local_port),  # type: ignore[arg-type]
            (_address(remote, family), remote_port),  # type: ignore[arg-type]
            netns,  # type: ignore[arg-type]
            cookie,  # type: ignore[arg-type]
            self._converse,
        )
        if len(self.connections) >= self._max_connections:
            self._evict()
        connection.last_ns = exit_ns
        self.connections[identity] = connection
        self._account.note(connection)
        self._by_cookie[connection.cookie] = identity
        if flags & OPEN_FAILED:
            connection.beginnings = Beginnings.NEVER
        elif began:
            connection.beginnings = Beginnings.LOOSE
            connection.first_written, connection.first_read = began
        elif cause != OpenCause.MET:
            connection.beginnings = Beginnings.EXACT
            connection.first_written, connection.first_read = written, read  # type: ignore[assignment]
        self._sink.opened(connection)
        if cause == OpenCause.MET:
            self.bookkeeping += 1
            return
        failed = bool(flags & OPEN_FAILED)
        operation = Operation.CONNECT if cause == OpenCause.CONNECT else Operation.ACCEPT
        call_class = CallClass.CONNECT if cause == OpenCause.CONNECT else CallClass.ACCEPT
        connection.add_log(Call(operation, call_class, enter_ns, exit_ns, 0, not failed))
        if failed:
            self._end(connection, exit_ns)
            return
        connection.begin(written, read)  # type: ignore[arg-type]
        self._loose(connection)

    def _close(self, fields: tuple[int, ...], identity: int, flags: int, enter_ns: int, exit_ns: int) -> None:
        connection = self.connections.get(identity)
        if connection is None:
            self._unparsed("unknown_connection")
            return
        connection.close(fields[0], fields[1], exit_ns, flags)
        connection.add_log(Call(Operation.CLOSE, CallClass.CLOSE, enter_ns, exit_ns))
        self._end(connection, exit_ns)

    def _end(self, connection: Connection, now_ns: int) -> None:
        connection.conversation.close(now_ns, (EndedBy.AGENT, EndedBy.AGENT))
        self._exchanges(connection)
        self._flush_loose(connection)
        self._with_loose.pop(connection, None)
        self._collect_errors(connection)
        self.gap_bytes += connection.gap_bytes
        self.imbalance += abs(connection.open_calls)
        self.connections.pop(connection.id, None)
        self._account.forget(connection)
        if self._by_cookie.get(connection.cookie) == connection.id:
            del self._by_cookie[connection.cookie]
        self._sink.gone(connection)

    def _evict(self) -> None:
        # Insertion order is age; among the oldest few the one idle longest goes.
        oldest = [next_one for next_one, _ in zip(self.connections.values(), range(16), strict=False)]
        self.evicted += 1
        victim = min(oldest, key=lambda item: item.last_ns)
        self._on_evicted(victim)
        self._end(victim, victim.last_ns)

    def _relieve(self, now_ns: int) -> None:
        """Frees memory: what the costliest have gathered comes out as it is, and they begin anew; small ones end."""
        for connection in self._account.victims(self.connections, now_ns):
            if self._account.weight(connection) < LEAST_BYTES:
                self.evicted += 1
                self._on_evicted(connection)
                self._end(connection, connection.last_ns)
                continue
            self.relieved += 1
            connection.conversation.close(now_ns, (EndedBy.AGENT, EndedBy.AGENT))
            self._exchanges(connection)
            self._flush_loose(connection)
            self._with_loose.pop(connection, None)
            self._collect_errors(connection)
            connection.begin_anew()
            self._account.weigh(connection)

    def _collect_errors(self, connection: Connection) -> None:
        errors = connection.conversation.errors
        if errors:
            for reason, count in errors.items():
                self.errors[reason] = self.errors.get(reason, 0) + count
            errors.clear()

    # -- what the clock drives --

    def flush(self, now_ns: int) -> None:
        """Hands on stand-alone calls that wait for company, less those that may still be told what is spoken.

        Then those connections give way that hold more memory than there is.
        """
        waiting, self._with_loose = self._with_loose, {}
        for connection, until_ns in waiting.items():
            if now_ns < until_ns and connection.conversation.undecided:
                self._with_loose[connection] = until_ns
            else:
                self._flush_loose(connection)
        self._account.settle(self.connections)
        if self._account.overdrawn:
            self._relieve(now_ns)

    def expire(self, before_ns: int) -> None:
        """Lets go what nothing has answered since `before_ns`; walks all connections."""
        for connection in list(self.connections.values()):
            connection.conversation.expire(before_ns)
            for exchange in connection.conversation.exchanges:
                if exchange.completeness is Completeness.NO_RESPONSE and exchange.end_ns <= self._lost_ns:
                    exchange.completeness = Completeness.GAP  # what was lost may have been its response
            self._exchanges(connection)
            if connection.conversation.loose or connection.conversation.earlier:
                self._loose(connection)
            self._collect_errors(connection)

    def report_open(self, before_ns: int) -> None:
        """Reports the streams that are open since before `before_ns`; walks all connections."""
        for connection in list(self.connections.values()):
            connection.conversation.report_open(before_ns)
            self._exchanges(connection)

    def finish(self, now_ns: int) -> None:
        """The agent stops: everything open comes out."""
        for connection in list(self.connections.values()):
            self._end(connection, now_ns)

    def held(self) -> int:
        """Kernel logs read and not handed on yet; walks all connections."""
        return sum(connection.open_calls for connection in self.connections.values())

    def open_gap_bytes(self) -> int:
        """Bytes without a record on connections that still live, and on those that ended."""
        return self.gap_bytes + sum(connection.gap_bytes for connection in self.connections.values())


def _address(raw: bytes, family: int) -> bytes:
    if family == _AF_INET:
        return raw[:4]
    return raw[12:] if raw[:12] == _MAPPED else raw
