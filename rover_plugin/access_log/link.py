# SPDX-License-Identifier: Apache-2.0
"""What a worker tells the main process, over a SEQPACKET socket pair: datagrams of items, each a header and a payload.

Only one way, except that closing the main process's end asks the worker to finish.
"""

from __future__ import annotations

import json
import select
import time
from collections import deque
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rover_plugin.access_log.model import Beginnings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rover_plugin.access_log.connection import Connection

MAX_DATAGRAM: Final = 60_000
MAX_RECORDS: Final = 48_000

# kind, encoding index, kernel logs, protocol logs, length of the payload, connection id
_ITEM: Final = Struct("<BBHIIQ")
_ITEM_SIZE: Final = _ITEM.size
_MAX_PAYLOAD: Final = MAX_DATAGRAM - _ITEM_SIZE
# Waiting for the main process at most, of whatever kind; beyond it nothing more is read from the ring.
_CHOKE_BYTES: Final = 16 << 20
# A queue of small messages ends by their number, one of large messages by this.
_MOST_WAITING_BYTES: Final = 32 << 20
UNLIMITED: Final = 1 << 30  # a queue that nothing may be missing in
# pid, network namespace, role, tls, ipv6, beginnings, ports, first positions written and read, addresses
_CONNECTION: Final = Struct("<IIBBBBHHII16s16s")

ROLES: Final = ("unknown", "client", "server")
_BEGINNINGS: Final = tuple(Beginnings)


class Item(IntEnum):
    """What an item is."""

    CONNECTION = 1  # a connection's description, before its first fragment and when it changes
    FRAGMENT = 2  # an encoder's bytes
    GONE = 3  # the connection's last item
    REPORT = 4  # the worker's own counts, as JSON
    RECORDS = 5  # in datagrams of their own: what the worker was given, see `tap`
    MARK = 6  # instead of a connection id: when the oldest call of what was just handed over ended
    REACHED = 7  # instead of a connection id: what was recorded before this time has been handed over


FRAGMENT: Final = int(Item.FRAGMENT)  # the one kind that is not rare


class ConnectionFacts(NamedTuple):
    """A connection as the worker knows it: no names yet. `beginnings`: see `Connection`."""

    id: int
    pid: int
    netns: int
    role: str
    tls: bool
    ipv6: bool
    local_port: int
    remote_port: int
    local: bytes
    remote: bytes
    beginnings: Beginnings = Beginnings.UNKNOWN
    first_written: int = 0
    first_read: int = 0


class Channel(Protocol):
    """What a link needs of its socket."""

    def send(self, datagram: bytes, /) -> int:
        """Sends a datagram, or raises BlockingIOError."""

    def fileno(self) -> int:
        """What `poll` waits for."""


class LinkWriter:
    """The worker's end. Nothing blocks: what the socket does not take waits in a bounded queue.

    Args:
        channel: a non-blocking SOCK_SEQPACKET socket, or what behaves like one.
        queue_size: log messages that may wait; further ones are dropped and counted in `lost`. Once half of them wait,
            a connection may add no more than there is room for others.

    Attributes:
        lost: kernel and protocol logs dropped, by encoding index and reason.
    """

    def __init__(self, channel: Channel, queue_size: int) -> None:
        self._channel = channel
        self._queue_size = queue_size
        self._parts: list[bytes] = []
        self._size = 0
        self._messages = 0
        self._waiting: deque[tuple[bytes, int]] = deque()
        self.waiting_messages = 0
        self._waiting_bytes = 0
        self._parts_of: dict[int, float] = {}  # of the queue, by connection, since half of it has been taken
        self.lost: dict[tuple[int, str], list[int]] = {}
        self.broken = False

    @property
    def choked(self) -> bool:
        """Whether so much waits that nothing more should be made: in the ring, who put most loses first."""
        return self._waiting_bytes > _CHOKE_BYTES or self.waiting_messages * 2 > self._queue_size

    def connection(self, connection: Connection, role: int, *, tls: bool) -> None:
        """Describes a connection, or its change."""
        local, local_port = connection.local
        remote, remote_port = connection.remote
        payload = _CONNECTION.pack(
            connection.tgid,
            connection.netns,
            role,
            tls,
            len(local) == 16,
            connection.beginnings,
            local_port,
            remote_port,
            connection.first_written,
            connection.first_read,
            local,
            remote,
        )
        self._append(_ITEM.pack(Item.CONNECTION, 0, 0, 0, len(payload), connection.id) + payload)

    def fragment(self, identity: int, encoding: int, kernel_logs: int, protocol_logs: int, payload: bytes) -> bool:
        """Hands on an encoder's fragment; False if it had to be dropped because the main process does not keep up."""
        reason = "message_too_large" if len(payload) > _MAX_PAYLOAD else self._refusal(identity, len(payload))
        if reason:
            self.lose(encoding, reason, kernel_logs, protocol_logs)
            return False
        size = _ITEM_SIZE + len(payload)
        if self._size + size > MAX_DATAGRAM:
            self._cut()
        self._messages += 1
        self._size += size
        self._parts += (_ITEM.pack(FRAGMENT, encoding, kernel_logs, protocol_logs, len(payload), identity), payload)
        return True

    def _refusal(self, identity: int, size: int) -> str:
        """Why the queue does not take a message, or nothing; counts it for its connection where that matters."""
        if not self._waiting or self._queue_size == UNLIMITED:
            return ""
        taken = max(
            (self.waiting_messages + self._messages) / self._queue_size, self._waiting_bytes / _MOST_WAITING_BYTES
        )
        if taken >= 1:
            return "queue_full"
        if taken > 0.5:
            part = self._parts_of.get(identity, 0) + max(1 / self._queue_size, size / _MOST_WAITING_BYTES)
            if part > 1 - taken:
                return "queue_share"
            self._parts_of[identity] = part
        return ""

    def lose(self, encoding: int, reason: str, kernel_logs: int, protocol_logs: int) -> None:
        """Counts logs that are not handed on."""
        lost = self.lost.setdefault((encoding, reason), [0, 0])
        lost[0] += kernel_logs
        lost[1] += protocol_logs

    def gone(self, identity: int) -> None:
        """The connection's last item."""
        self._append(_ITEM.pack(Item.GONE, 0, 0, 0, 0, identity))

    def report(self, counts: dict[str, object]) -> None:
        """The worker's counts."""
        payload = json.dumps(counts).encode()
        self._append(_ITEM.pack(Item.REPORT, 0, 0, 0, len(payload), 0) + payload)

    def records(self, content: bytes) -> None:
        """What the datagrams since the last such call came of; the encoding index says whether more of it follows."""
        self._cut()
        for start in range(0, len(content), MAX_RECORDS):
            part = content[start : start + MAX_RECORDS]
            more = start + len(part) < len(content)
            self._queue(_ITEM.pack(Item.RECORDS, more, 0, 0, len(part), 0) + part, 0)

    def mark(self, oldest_ns: int) -> None:
        """Tells how old what was handed over is: `oldest_ns` of CLOCK_MONOTONIC."""
        self._append(_ITEM.pack(Item.MARK, 0, 0, 0, 0, oldest_ns))

    def reached(self, before_ns: int) -> None:
        """Tells that everything recorded before this time of CLOCK_MONOTONIC has been handed over."""
        self._append(_ITEM.pack(Item.REACHED, 0, 0, 0, 0, before_ns))

    def _append(self, item: bytes) -> None:
        if self._size + len(item) > MAX_DATAGRAM:
            self._cut()
        self._parts.append(item)
        self._size += len(item)

    def _cut(self) -> None:
        if self._parts:
            self._queue(b"".join(self._parts), self._messages)
            self._parts, self._size, self._messages = [], 0, 0
            self._send()

    def _queue(self, datagram: bytes, messages: int) -> None:
        self._waiting.append((datagram, messages))
        self._waiting_bytes += len(datagram)
        self.waiting_messages += messages

    def _send_first(self) -> None:
        datagram, messages = self._waiting[0]
        self._channel.send(datagram)
        self._waiting.popleft()
        self._waiting_bytes -= len(datagram)
        self.waiting_messages -= messages

    def _send(self) -> None:
        while self._waiting:
            try:
                self._send_first()
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                return

    def flush(self) -> None:
        """Sends what is there, as far as the socket takes it."""
        self._cut()
        self._send()
        if self._parts_of and not self.choked:
            self._parts_of.clear()

    def drain(self, timeout_s: float) -> None:
        """Sends everything, waiting up to `timeout_s` seconds for the other side."""
        self._cut()
        until = time.monotonic() + timeout_s
        # A timeout of the socket's own would take an ioctl, which a confined worker may not make.
        poll = select.poll()
        self._send()
        while self._waiting and not self.broken:
            poll.register(self._channel.fileno(), select.POLLOUT)
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                self.broken = True
                return
            self._send()


def read_items(datagram: bytes) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Items of a datagram: (kind, encoding index, kernel logs, protocol logs, connection id, payload)."""
    at, end = 0, len(datagram)
    while at < end:
        kind, encoding, kernel_logs, protocol_logs, length, identity = _ITEM.unpack_from(datagram, at)
        start = at + _ITEM_SIZE
        at = start + length
        yield kind, encoding, kernel_logs, protocol_logs, identity, datagram[start:at]


def read_connection(identity: int, payload: bytes) -> ConnectionFacts:
    """Reads the payload of a CONNECTION item."""
    pid, netns, role, tls, ipv6, beginnings, local_port, remote_port, first_written, first_read, local, remote = (
        _CONNECTION.unpack(payload)
    )
    if not ipv6:
        local, remote = local[:4], remote[:4]
    return ConnectionFacts(
        identity,
        pid,
        netns,
        ROLES[role],
        bool(tls),
        bool(ipv6),
        local_port,
        remote_port,
        local,
        remote,
        _BEGINNINGS[beginnings],
        first_written,
        first_read,
    )
