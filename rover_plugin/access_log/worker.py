# SPDX-License-Identifier: Apache-2.0
"""The worker process: reads one shard's ring, analyses it, hands fragments to the main process.

Run as `python -m rover_plugin.access_log.worker SOCKET OPTIONS` with an inherited file descriptor and the options as
JSON. The descriptors of ring and policies come over the socket; it answers once it reads. It ends when the main process
closes its end of the socket, or dies, after everything in the ring has been read and handed on.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from rover_plugin.access_log.encoders import make_encoder
from rover_plugin.access_log.link import PROTOCOLS, ROLES, LinkWriter
from rover_plugin.access_log.model import Completeness, ProtocolName
from rover_plugin.access_log.schedule import Schedule
from rover_plugin.access_log.shard import Shard
from rover_plugin.capture.bpf import Map
from rover_plugin.capture.records import HEADER
from rover_plugin.capture.ring import RingReader

if TYPE_CHECKING:
    from rover_plugin.access_log.connection import Connection
    from rover_plugin.access_log.model import Call, Exchange
    from rover_plugin.access_log.tap import Tap

# Records taken from the ring at a time, so that what was found travels on while a burst lasts.
_BATCH: Final = 2000
# Calls that travel inside an exchange; 256 make 25 KB of JSON. Those beyond go alone.
_CALLS_INSIDE: Final = 256
_SEND_BUFFER: Final = 4 << 20
# A ring that fills wakes its reader long before; batches of what has come meanwhile cost less than records one by one.
_WAIT_S: Final = 0.05
READY: Final = b"\1"
"""What the main process sends along with the descriptors, and is sent back by a worker that reads."""
_DRAIN_S: Final = 10.0
_MARK_NS: Final = 100_000_000
_POLICY: Final = struct.Struct("=IIBBB5x")
_POLICY_SKIP: Final = 1
_POLICY_NEVER: Final = 2
_IDENTITY: Final = struct.Struct("=Q")

_ROLE_NUMBERS: Final = {name: number for number, name in enumerate(ROLES)}
_PROTOCOL_NUMBERS: Final = {name: number for number, name in enumerate(PROTOCOLS)}


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told.

    Attributes:
        encodings: which fragments to make, in the order of their index on the link.
        queue_size: log messages that may wait for the main process.
        max_connections: of this shard.
        exchange_timeout_s: a request unanswered for so long is let go.
        open_report_s: a stream that stays open is reported each time this has passed.
        grpc_status_as_http: see `ProtobufEncoder`.
        record: repeat to the main process what is read, see `tap`.
    """

    shard: int
    encodings: tuple[str, ...]
    queue_size: int
    max_connections: int
    exchange_timeout_s: float
    grpc_status_as_http: bool
    path_templates: bool = False
    open_report_s: float = 60.0
    record: bool = False


class Policies(Protocol):
    """Where capture policies are written: a BPF map."""

    def set(self, key: bytes, value: bytes) -> None:
        """Sets the policy of the connection `key`."""

    def delete(self, key: bytes) -> bool:
        """Forgets it; False if there was none."""


class Outbox:
    """A shard's sink that encodes and hands on over the link, at each `hand_over`.

    What is found in a batch of records waits until the whole batch is analysed: two loops, each with its own code and
    data in the caches, take a quarter less time than one that does everything for each record (measured).

    Attributes:
        filtered: by encoding index and reason, exchanges of which an encoder makes no protocol log.
    """

    def __init__(self, link: LinkWriter, policies: Policies, options: WorkerOptions) -> None:
        self._link = link
        self._policies = policies
        self._encoders = [
            make_encoder(encoding, grpc_status_as_http=options.grpc_status_as_http) for encoding in options.encodings
        ]
        self._policy_state: dict[int, list[int]] = {}
        self.filtered: list[dict[str, int]] = [{} for _ in options.encodings]
        self._found: list[tuple[Connection, Exchange | list[Call] | None]] = []
        self._template = None
        if options.path_templates:
            from rover_plugin.access_log.protocols.path_template import template  # noqa: PLC0415 optional

            self._template = template

    def opened(self, connection: Connection) -> None:
        """Tells the main process at once: the other end, if it is ours too, may be waiting for a name."""
        self._tell(connection)

    def exchange(self, connection: Connection, exchange: Exchange) -> None:
        """Takes one exchange."""
        self._found.append((connection, exchange))

    def calls(self, connection: Connection, calls: list[Call]) -> None:
        """Takes stand-alone calls."""
        self._found.append((connection, calls))

    def gone(self, connection: Connection) -> None:
        """Will tell the main process to forget the connection."""
        self._found.append((connection, None))

    def hand_over(self) -> None:
        """Encodes what was found since the last time, for every output, and puts it on the link."""
        found, self._found = self._found, []
        for connection, what in found:
            if what is None:
                self._gone(connection)
            elif isinstance(what, list):
                self._calls(connection, what)
            else:
                self._exchange(connection, what)

    def _exchange(self, connection: Connection, exchange: Exchange) -> None:
        self._tell(connection)
        if self._template is not None and exchange.path is not None:
            exchange.path = self._template(exchange.path)
        if len(exchange.calls) > _CALLS_INSIDE:
            # A long transfer's calls, all in one message, would be more than a link or the backend takes.
            surplus, exchange.calls[_CALLS_INSIDE:] = exchange.calls[_CALLS_INSIDE:], ()
            self._calls(connection, surplus)
        for index, encoder in enumerate(self._encoders):
            fragment, protocol_logs = encoder.exchange(exchange)
            if fragment:
                self._link.fragment(connection.id, index, len(exchange.calls), protocol_logs, fragment)
            if not protocol_logs:
                reason = "still_open" if exchange.completeness is Completeness.OPEN else "no_status"
                filtered = self.filtered[index]
                filtered[reason] = filtered.get(reason, 0) + 1

    def _calls(self, connection: Connection, calls: list[Call]) -> None:
        self._tell(connection)
        for index, encoder in enumerate(self._encoders):
            for fragment, kernel_logs in encoder.calls(calls):
                self._link.fragment(connection.id, index, kernel_logs, 0, fragment)

    def _gone(self, connection: Connection) -> None:
        if connection.told:
            self._link.gone(connection.id)
        if self._policy_state.pop(connection.id, None) is not None:
            self._policies.delete(_IDENTITY.pack(connection.id))

    def set_clock(self, offset_ns: int) -> None:
        """Wall clock minus CLOCK_MONOTONIC, for encodings with wall-clock times."""
        for encoder in self._encoders:
            encoder.set_clock(offset_ns)

    def policy(self, connection: Connection, direction: int, until: int, *, never: bool) -> None:
        """Writes the connection's capture policy for the kernel side."""
        state = self._policy_state.setdefault(connection.id, [0, 0, 0, 0])
        state[direction] = until
        state[2 + direction] = _POLICY_NEVER if never else _POLICY_SKIP
        frames = connection.conversation.protocol is ProtocolName.HTTP2
        self._policies.set(_IDENTITY.pack(connection.id), _POLICY.pack(*state, frames))

    def _tell(self, connection: Connection) -> None:
        conversation = connection.conversation
        facts = (connection.tgid, conversation.role, conversation.protocol, conversation.tls)
        if facts != connection.told:
            connection.told = facts
            self._link.connection(
                connection,
                _ROLE_NUMBERS[conversation.role],
                _PROTOCOL_NUMBERS[conversation.protocol],
                tls=conversation.tls,
            )


def clock_offset_ns() -> int:
    """Wall clock minus CLOCK_MONOTONIC now; to be read anew from time to time, it may be stepped."""
    return time.time_ns() - time.monotonic_ns()


class Worker:
    """One shard's loop."""

    def __init__(self, channel: socket.socket, ring: RingReader, policies: Map, options: WorkerOptions) -> None:
        self._options = options
        channel.setblocking(False)  # noqa: FBT003 the socket module's own signature
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._channel = channel
        self._ring = ring
        self._link = LinkWriter(channel, options.queue_size)
        self._outbox = Outbox(self._link, policies, options)
        self._shard = Shard(self._outbox, options.max_connections)
        self._handle = self._shard.handle
        self._tap: Tap | None = None
        if options.record:
            from rover_plugin.access_log.tap import Tap  # noqa: PLC0415 brings protobuf along

            self._tap = Tap(options.shard, self._shard, self._link)
            self._handle = self._tap.handle
        self._oldest_ns = self._next_mark_ns = 0

    def run(self) -> None:
        """Works until the main process closes the link; then reads the ring to its end and hands everything on."""
        ring, link, outbox, tap = self._ring, self._link, self._outbox, self._tap
        schedule = Schedule(self._shard, self._options.exchange_timeout_s, self._options.open_report_s)
        self._set_clock()
        ring.also_wait_for(self._channel.fileno())
        while True:
            self._oldest_ns = 0
            ring.peek(self._note_oldest)
            # A main process that stands still must not make this one grow: the ring has its bound, and counts.
            taken = 0 if link.choked else ring.read(self._handle, _BATCH)
            now_ns = time.monotonic_ns()
            report_due = schedule.pass_time(now_ns)
            outbox.hand_over()
            if taken and self._oldest_ns and now_ns >= self._next_mark_ns:
                self._next_mark_ns = now_ns + _MARK_NS
                link.mark(self._oldest_ns)
            if tap is not None:
                tap.tell(now_ns)
            if report_due:
                self._set_clock()
                link.report(self._counts())
            link.flush()
            if taken == _BATCH:
                continue
            if self._asked_to_finish() or link.broken:
                break
            ring.wait(_WAIT_S)
        self._finish()

    def _set_clock(self) -> None:
        offset_ns = clock_offset_ns()
        self._outbox.set_clock(offset_ns)
        if self._tap is not None:
            self._tap.clock_offset_ns = offset_ns

    def _note_oldest(self, data: memoryview, start: int, end: int) -> None:  # noqa: ARG002 what a ring reader gives
        self._oldest_ns = HEADER.unpack_from(data, start)[-1]

    def _asked_to_finish(self) -> bool:
        try:
            return self._channel.recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _finish(self) -> None:
        while self._ring.read(self._handle):
            self._outbox.hand_over()
            self._link.drain(_DRAIN_S)
        now_ns = time.monotonic_ns()
        self._shard.finish(now_ns)
        self._outbox.hand_over()
        self._link.report(self._counts())
        if self._tap is not None:
            self._tap.tell(now_ns, final=True)
        self._link.drain(_DRAIN_S)

    def _counts(self) -> dict[str, object]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **shard_counts(self._options.shard, self._shard, self._outbox, self._link),
            "waiting_messages": self._link.waiting_messages,
            "ring_pending": self._ring.pending(),
            "ring_most_pending": self._ring.most_pending,
            "ring_size": self._ring.size,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "max_rss_bytes": usage.ru_maxrss * 1024,
        }


def shard_counts(number: int, shard: Shard, outbox: Outbox, link: LinkWriter) -> dict[str, object]:
    """A worker's half of the loss ledger (see `telemetry.ledger`)."""
    return {
        "shard": number,
        "records": shard.records,
        "lost_ring": shard.lost,
        "calls_out": shard.calls_out,
        "exchanges_out": shard.exchanges_out,
        "bookkeeping": shard.bookkeeping,
        "unparsed": shard.unparsed,
        "errors": shard.errors,
        "held": shard.held(),
        "imbalance": shard.imbalance,
        "evicted": shard.evicted,
        "gap_bytes": shard.open_gap_bytes(),
        "filtered": outbox.filtered,
        "lost_queue": [[encoding, reason, *both] for (encoding, reason), both in link.lost.items()],
        "connections": len(shard.connections),
    }


def main() -> int:
    """Runs one worker."""
    # The main process decides when to end; a signal to the whole group must not cut the flush short.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    arguments = json.loads(sys.argv[2])
    options = WorkerOptions(**{**arguments, "encodings": tuple(arguments["encodings"])})
    channel = socket.socket(fileno=int(sys.argv[1]))
    ready, descriptors, _, _ = socket.recv_fds(channel, len(READY), 2)
    if len(descriptors) != 2:  # the main process has given up
        return 1
    ring, policies = descriptors
    # What was imported stays; the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    worker = Worker(channel, RingReader(ring), Map(policies), options)
    channel.send(ready)
    worker.run()
    os.close(ring)
    return 0


if __name__ == "__main__":
    sys.exit(main())
