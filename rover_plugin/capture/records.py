# SPDX-License-Identifier: Apache-2.0
"""The records of `bpf/records.h`, as Python sees them. A test compiles the header and proves both sides equal.

The hot path unpacks a call record with one precompiled struct and no object; the others are rare.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

MAX_SHARDS = 8  # rings that bpf/rings.h spells out


class RecordKind(IntEnum):
    """`enum record_kind`."""

    CALL = 1
    OPEN = 2
    CLOSE = 3


class OpenCause(IntEnum):
    """`enum open_cause`."""

    MET = 0
    CONNECT = 1
    ACCEPT = 2


class CallClass(IntEnum):
    """`enum call_class`: system calls, numbered the same on every architecture."""

    NONE = 0
    READ = 1
    READV = 2
    RECVFROM = 3
    RECVMSG = 4
    RECVMMSG = 5
    WRITE = 6
    WRITEV = 7
    SENDTO = 8
    SENDMSG = 9
    SENDMMSG = 10
    SENDFILE = 11
    SPLICE = 12
    CONNECT = 13
    ACCEPT = 14
    CLOSE = 15
    SHUTDOWN = 16
    PREADV2 = 17
    PWRITEV2 = 18
    OTHER = 19


class PolicyMode(IntEnum):
    """`enum policy_mode` of bpf/maps.h: what a direction's bytes are copied for, from a position on."""

    ALL = 0
    SKIP = 1
    NEVER = 2
    CHUNK = 3
    FRAME = 4
    COPY = 5


CALL_NAMES = tuple(item.name.lower() for item in CallClass)

# flags of a call record
HOW_WALKED = 1
HOW_PIECES = 2
HOW_CHUNKS = 4

PROVISIONAL_LANE = 0x8000  # flag of the lane: its process had not been chosen when this was recorded
OPEN_FAILED = 1  # flags of an open record
OPEN_BEGINNINGS = 2  # flags of an open record: it is a MET
# flags of a close record
CLOSE_BY_PEER = 1
CLOSE_PEER_ENDED = 2
CLOSE_SHUT_FIRST = 4

# struct record_header: kind, call, direction, flags, lane, sequence, tgid, connection, enter_ns, exit_ns
_HEADER_FORMAT = "<BBBBHxxIIQQQ"
HEADER = Struct(_HEADER_FORMAT)
# struct call_record: header, then size, offset, captured, position, opposite, tid
CALL = Struct(_HEADER_FORMAT + "IIIIII")
# struct call_piece: unseen, length
PIECE = Struct("<II")
# struct call_chunks: front, unseen, content, left
CHUNKS = Struct("<IIII")
# struct open_record: header, then local[16], remote[16], local_port, remote_port, family, cause, state, netns, error,
# written, read, cookie
OPEN = Struct(_HEADER_FORMAT + "16s16sHHHBBIiIIQ")
# struct met_record: an open_record, then first_written, first_read
MET = Struct(OPEN.format + "II")
# struct close_record: header, then written, read, retransmitted, smoothed_rtt_us, bytes_received, bytes_acked
CLOSE = Struct(_HEADER_FORMAT + "IIIIQQ")
