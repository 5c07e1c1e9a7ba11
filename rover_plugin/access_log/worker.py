# SPDX-License-Identifier: Apache-2.0
"""The worker process: reads one shard's ring, analyses it, hands fragments to the main process.

Run as `rover_plugin.access_log.worker SOCKET OPTIONS` (`children`) with an inherited file descriptor and the options as
JSON. The descriptors of its rings and of the policies come over the socket; it answers once it reads. From then on the
socket brings which processes the feed chooses (`provisional`). It ends when the main process closes its end, or dies,
after everything in the rings has been read and handed on.
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
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.link import MAX_DATAGRAM, LinkWriter
from rover_plugin.access_log.outbox import Outbox
from rover_plugin.access_log.provisional import Provisional, read_decisions
from rover_plugin.access_log.schedule import Schedule
from rover_plugin.access_log.shard import Shard
from rover_plugin.access_log.worker_options import READY, WorkerOptions
from rover_plugin.capture.bpf import Map
from rover_plugin.capture.confinement import confine_worker
from rover_plugin.capture.records import HEADER
from rover_plugin.capture.ring import RingReader

if TYPE_CHECKING:
    from rover_plugin.access_log.connection import Connection
    from rover_plugin.access_log.tap import Tap

# Records taken from the ring at a time, so that what was found travels on while a burst lasts.
BATCH: Final = 2000
# After so many it is looked whether they held more exchanges than a batch has records, and whether the main process
# keeps up: the end of one connection may be that of ten thousand streams.
SLICE: Final = 20
_SEND_BUFFER: Final = 4 << 20
# A ring that fills wakes its reader long before; batches of what has come meanwhile cost less than records one by one.
_WAIT_S: Final = 0.05
_DRAIN_S: Final = 10.0
# struct sock address: key of the kernel's connections; their id stands first in the value (struct connection).
_COOKIE: Final = struct.Struct("=Q")
_MARK_NS: Final = 100_000_000


def clock_offset_ns() -> int:
    """Wall clock minus CLOCK_MONOTONIC now; to be read anew from time to time, it may be stepped."""
    return time.time_ns() - time.monotonic_ns()


class Worker:
    """One shard's loop."""

    def __init__(
        self,
        channel: socket.socket,
        ring: RingReader,
        policies: Map,
        options: WorkerOptions,
        provisional_ring: RingReader | None = None,
        connections: Map | None = None,
    ) -> None:
        self._options = options
        channel.setblocking(False)  # noqa: FBT003 the socket module's own signature
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._channel = channel
        self._ring = ring
        self._link = LinkWriter(channel, options.queue_size)
        self._outbox = Outbox(self._link, policies, options)
        self._kernel_connections = connections
        self._shard = Shard(
            self._outbox,
            options.max_connections,
            max_bytes=options.max_bytes,
            on_evicted=self._forget_in_kernel,
        )
        self._handle = self._shard.handle
        self._tap: Tap | None = None
        if options.record:
            from rover_plugin.access_log.tap import Tap  # noqa: PLC0415 brings protobuf along

            self._tap = Tap(options.shard, self._shard, self._link)
            self._handle = self._tap.handle
        self._provisional_ring = provisional_ring
        self._provisional = Provisional(self._handle, self._shard.connections.__contains__)
        self._finishing = False
        self._oldest_ns = self._next_mark_ns = 0

    def run(self) -> None:
        """Works until the main process closes the link; then reads the ring to its end and hands everything on."""
        ring, link, outbox, tap = self._ring, self._link, self._outbox, self._tap
        schedule = Schedule(self._shard, self._options.exchange_timeout_s, self._options.open_report_s)
        self._set_clock()
        ring.also_wait_for(self._channel.fileno())
        if self._provisional_ring is not None:
            ring.also_wait_for_ring(self._provisional_ring)
        while True:
            self._oldest_ns = 0
            ring.peek(self._note_oldest)
            now_ns = time.monotonic_ns()
            # A main process that stands still must not make this one grow: the ring has its bound, and counts.
            choked = link.choked
            handed_on = self._provisional.chosen
            taken = 0 if choked else self._read(now_ns, BATCH)
            choked = choked or link.choked
            handed_on = taken + self._provisional.chosen - handed_on
            report_due = schedule.pass_time(now_ns)
            outbox.hand_over()
            if taken and self._oldest_ns and now_ns >= self._next_mark_ns:
                self._next_mark_ns = now_ns + _MARK_NS
                link.mark(self._oldest_ns)
            # What is held, or how old it is, a replay does not know.
            if handed_on < BATCH and not choked:
                link.reached(now_ns if tap is not None else self._provisional.reached(now_ns))
            elif taken and tap is None:
                link.reached(self._oldest_ns)
            if tap is not None:
                tap.tell(now_ns)
            if report_due:
                self._set_clock()
                link.report(self._counts())
            link.flush()
            if taken == BATCH:
                continue
            if self._finishing or link.broken:
                break
            ring.wait(_WAIT_S)
        self._finish()

    def _forget_in_kernel(self, connection: Connection) -> None:
        """Makes room in the kernel's table, too; who uses the connection again is met there anew."""
        if self._kernel_connections is None:
            return
        key = _COOKIE.pack(connection.cookie)
        value = self._kernel_connections.get(key)
        if value is not None and _COOKIE.unpack_from(value)[0] == connection.id:
            self._kernel_connections.delete(key)

    def _set_clock(self) -> None:
        offset_ns = clock_offset_ns()
        self._outbox.set_clock(offset_ns)
        if self._tap is not None:
            self._tap.clock_offset_ns = offset_ns

    def _note_oldest(self, data: memoryview, start: int, end: int) -> None:  # noqa: ARG002 what a ring reader gives
        self._oldest_ns = HEADER.unpack_from(data, start)[-1]

    def _read(self, now_ns: int, limit: int) -> int:
        """Takes what waits in both rings; returns how many records of the shard's own."""
        # In this order: a record before `until` that a chosen process made comes after its choice and after everything
        # that its connection put into the other ring before that.
        until = self._ring.produced()
        self._learn_decisions()
        if self._provisional_ring is not None:
            provisional = self._provisional
            self._provisional_ring.read(lambda data, start, end: provisional.handle(data, start, end, now_ns))
        self._provisional.pass_time(now_ns)
        taken = 0
        while taken < limit:
            some = self._ring.read(self._handle, min(SLICE, limit - taken), until)
            taken += some
            if some < SLICE:
                break
            if self._outbox.found > BATCH:
                self._outbox.hand_over()
                if self._link.choked:
                    break  # what is left is better left in the ring than dropped
        return taken

    def _learn_decisions(self) -> None:
        while not self._finishing:
            try:
                datagram = self._channel.recv(MAX_DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                datagram = b""
            for fate, pid, until_ns in read_decisions(datagram):
                self._provisional.decide(fate, pid, until_ns)
            self._finishing = not datagram

    def _finish(self) -> None:
        self._learn_decisions()
        while self._read(time.monotonic_ns(), BATCH):
            self._outbox.hand_over()
            self._link.drain(_DRAIN_S)
        self._provisional.finish()
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
            "provisional": self._provisional.counts(),
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
        "relieved": shard.relieved,
        "held_bytes": shard.held_bytes,
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
    ready, descriptors, _, _ = socket.recv_fds(channel, len(READY), 4)
    if len(descriptors) != 4:  # the main process has given up
        return 1
    ring, provisional, policies, connections = descriptors
    # What was imported stays; the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    worker = Worker(channel, RingReader(ring), Map(policies), options, RingReader(provisional), Map(connections))
    if options.confine:
        confine_worker()
    channel.send(ready)
    worker.run()
    os.close(ring)
    os.close(provisional)
    return 0


if __name__ == "__main__":
    sys.exit(main())
