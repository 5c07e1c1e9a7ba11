# SPDX-License-Identifier: Apache-2.0
"""One connection in user space: who it belongs to, where in its two byte streams it is, what it says.

Sans-I/O: driven by records, in the order of one shard's ring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Beginnings, Direction, EndedBy, Role
from rover_plugin.access_log.parts import IN_PARTS, unpack
from rover_plugin.capture.records import CLOSE_BY_PEER, CLOSE_PEER_ENDED, CLOSE_SHUT_FIRST, OpenCause

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.access_log.model import Call

_HALF: Final = 1 << 31
_MASK: Final = (1 << 32) - 1

_ROLES: Final = {OpenCause.CONNECT: Role.CLIENT, OpenCause.ACCEPT: Role.SERVER, OpenCause.MET: Role.UNKNOWN}


class Connection:
    """One TCP connection of a watched process.

    Attributes:
        id: the kernel side's number for it.
        tgid: the process it belongs to: the first that moves bytes on it, until then the one that opened it.
        local, remote: (address bytes in network order, port).
        beginnings: how well `first_written` and `first_read` are known.
        first_written, first_read: position (32 bits) of the first byte of either stream.
        cookie: address of its struct sock; the same one again is another connection, and this one has ended.
        conversation: what is said on it.
        told: (tgid, role, tls) as last told to outputs.
        muted: directions (bit 0, bit 1) whose bytes the kernel side was told not to copy any more.
        held: directions in which it was told not to follow the framing, until it is told where they are.
        frames_told: the kernel side was told that this is HTTP/2.
        open_calls: calls taken that have not come out; 0 at the end, or something lost one.
        gap_bytes: bytes that moved without a record.
        last_ns: exit of the newest call.
        unweighed: it has taken calls since its shard's account weighed it.
    """

    __slots__ = (
        "_expected",
        "_hole",
        "beginnings",
        "conversation",
        "cookie",
        "first_read",
        "first_written",
        "frames_told",
        "gap_bytes",
        "held",
        "id",
        "last_ns",
        "local",
        "muted",
        "netns",
        "open_calls",
        "owned",
        "remote",
        "tgid",
        "told",
        "unweighed",
    )

    def __init__(
        self,
        identity: int,
        tgid: int,
        cause: OpenCause,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        netns: int,
        cookie: int,
        converse: Callable[[Role], Conversation] = Conversation,
    ) -> None:
        self.id = identity
        self.tgid = tgid
        self.local = local
        self.remote = remote
        self.netns = netns
        self.cookie = cookie
        self.conversation = converse(_ROLES[cause])
        self.beginnings = Beginnings.UNKNOWN
        self.first_written = self.first_read = 0
        self.owned = False
        self.told: tuple[object, ...] = ()
        self.muted = 0
        self.held = 0
        self.frames_told = False
        self.gap_bytes = 0
        self.open_calls = 0
        self.last_ns = 0
        self.unweighed = False
        # Position of the next byte by direction; None until the first call of a connection met midway.
        self._expected: list[int | None] = [None, None]
        # By direction, where the latest gap began and its size: its records may only be late.
        self._hole = [(0, 0), (0, 0)]

    def begin_anew(self) -> None:
        """From here on what is said is taken up as if the connection had just been met; its positions stay."""
        self.conversation = self.conversation.successor()

    def begin(self, written: int, read: int) -> None:
        """Both streams begin at these positions; not to be called for a connection met midway."""
        self._expected = [read, written]

    def receive(self, direction: int, call: Call, position: int, offset: int, data: bytes, flags: int = 0) -> None:
        """Takes one call that moved bytes.

        Args:
            direction: a `Direction`.
            call: the call; `call.size` bytes moved.
            position: TCP sequence number of its first byte.
            offset: where in the call `data` begins; the bytes before it were left out by our own capture policy.
            data: what was captured.
            flags: of the call's record: what `data` is.
        """
        self.last_ns = call.exit_ns
        self.open_calls += 1
        expected = self._expected[direction]
        end = (position + call.size) & _MASK
        if expected is None or expected == position:
            self._expected[direction] = end
        elif self._misplaced(direction, call, expected, position, end):
            return
        if self._expected[1 - direction] is None and call.opposite >= 0:
            self._expected[1 - direction] = call.opposite
        if offset or flags & IN_PARTS:
            first, unseen, parts = unpack(flags, call.size, offset, data)
            self.conversation.receive(direction, call, first, unseen, parts)
        else:
            self.conversation.receive(direction, call, data, call.size - len(data))

    def _misplaced(self, direction: int, call: Call, expected: int, position: int, end: int) -> bool:
        """Takes note of bytes that are not the next ones; returns whether they come too late to be of use."""
        distance = (position - expected) & _MASK
        if distance < _HALF:
            self._expected[direction] = end
            self.gap_bytes += distance
            self._hole[direction] = (expected, distance)
            self.conversation.gap(direction, distance)
            return False
        # Records of two threads in the wrong order.
        start, size = self._hole[direction]
        if ((position - start) & _MASK) + call.size <= size:
            self.gap_bytes -= call.size
            self.conversation.loose.append(call)
            return True
        if (end - expected) & _MASK < _HALF:
            self._expected[direction] = end
        return False

    def add_log(self, call: Call) -> None:
        """Takes a call that moved no bytes: connect, accept, close."""
        self.open_calls += 1
        self.conversation.loose.append(call)

    def close(self, written: int, read: int, now_ns: int, flags: int = 0) -> None:
        """The connection ended at these positions: bytes without a record are a gap, what is open comes out.

        Args:
            written: TCP sequence number after the last byte written.
            read: that after the last byte read.
            now_ns: when.
            flags: of the close record.
        """
        for direction, position in ((Direction.INGRESS, read), (Direction.EGRESS, written)):
            expected = self._expected[direction]
            distance = (position - expected) & _MASK if expected is not None else 0
            # One is the FIN's own sequence number.
            if 1 < distance < _HALF:
                self.gap_bytes += distance
                self.conversation.gap(direction, distance)
        self.conversation.close(now_ns, _ended_by(flags))


def _ended_by(flags: int) -> tuple[EndedBy, EndedBy]:
    """Who ended what is read and what is written, from the flags of a close record."""
    if flags & CLOSE_BY_PEER:
        return EndedBy.RESET, EndedBy.RESET
    if not flags & CLOSE_PEER_ENDED:
        return EndedBy.LOCAL, EndedBy.LOCAL
    return EndedBy.REMOTE, EndedBy.LOCAL if flags & CLOSE_SHUT_FIRST else EndedBy.REMOTE
