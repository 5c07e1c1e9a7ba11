# SPDX-License-Identifier: Apache-2.0
"""The nouns of the access log: a call on a socket, an HTTP exchange, the ends of a connection.

Plain data, no behaviour: protocol analysers fill these, encoders read them. Times are nanoseconds of
CLOCK_MONOTONIC, sizes are bytes. `None` means "not known", never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rover_plugin.discovery.model import Entity


class Direction(IntEnum):
    """Which way bytes move, seen from the watched process."""

    INGRESS = 0
    EGRESS = 1


class Beginnings(IntEnum):
    """How well it is known where the two streams of a connection began (docs/naming.md)."""

    UNKNOWN = 0
    EXACT = 1
    LOOSE = 2  # the stream written may have begun one position later
    NEVER = 3  # it was never established: there is no other end


class Side(IntEnum):
    """Which half of the HTTP conversation bytes belong to, whoever is watched."""

    REQUEST = 0
    RESPONSE = 1


class Role(StrEnum):
    """What the watched process is on a connection (RFC 9110 §3.3)."""

    CLIENT = "client"
    SERVER = "server"
    UNKNOWN = "unknown"


class ProtocolName(StrEnum):
    """Application protocol of a connection, as far as it is known."""

    TCP = "tcp"
    HTTP1 = "http/1"
    HTTP2 = "http/2"
    TLS = "tls"


class Operation(IntEnum):
    """What a call did to the connection; one kernel log of the wire contract each."""

    CONNECT = 0
    ACCEPT = 1
    CLOSE = 2
    READ = 3
    WRITE = 4


class Completeness(StrEnum):
    """How much of an exchange was seen (design §4, "Exchange")."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"  # cut short, or bytes of it moved without being copied, and a field depends on them
    GAP = "gap"  # records of this exchange were lost
    LATE_JOIN = "late_join"  # the agent came after the connection began, and a field depends on what it missed
    NO_RESPONSE = "no_response"  # connection closed, stream reset or time-out, and no byte of a final response before
    OPEN = "open"  # a report of a stream that goes on: it comes again, at the latest at its end


class EndedBy(StrEnum):
    """Who ended a message before its end, or a connection on which a response was still owed."""

    LOCAL = "local"  # the watched process: it closed or reset the connection, or ended
    REMOTE = "remote"  # the peer, in order: its FIN (RFC 9293 §3.6), or RST_STREAM or GOAWAY in HTTP/2
    RESET = "reset"  # the peer's RST, or its silence until TCP gave up
    AGENT = "agent"  # nobody: the agent stopped watching


@dataclass(slots=True)
class Call:
    """One call on a socket (or connect/accept/close): becomes exactly one kernel log.

    Attributes:
        syscall: index into `rover_plugin.capture.records.SYSCALL_NAMES`.
        size: bytes the call moved; 0 for connect, accept and close.
        success: for connect and close.
        position: of its first byte in its direction's stream (32 bits, wrapping); -1 if not known.
        opposite: position reached in the other direction's stream when the call returned; -1 if not known.
    """

    operation: Operation
    syscall: int
    enter_ns: int
    exit_ns: int
    size: int = 0
    success: bool = True
    position: int = -1
    opposite: int = -1


@dataclass(slots=True)
class TraceContext:
    """Trace identifiers found in request headers; provider is `skywalking` or `zipkin`."""

    provider: str
    trace_id: str
    segment_id: str
    span_id: str


@dataclass(slots=True)
class Exchange:
    """One request with its response, and the calls that carried them.

    `start_ns` is when the request's first byte was handed over: the entry of the call that wrote it, or the exit of
    the call that read it (a blocking read begins long before its request). `end_ns` is the exit of the call that
    moved the last byte seen.
    Sizes: headers = start line, fields and blank line (HTTP/1) or header block bytes (HTTP/2); body = content without
    chunk framing or padding.
    """

    version: int  # 1 or 2
    method: str | None = None  # as on the wire, any token
    path: str | None = None  # without query and fragment
    host: str | None = None
    status: int | None = None
    request_header_bytes: int = 0
    request_body_bytes: int = 0
    response_header_bytes: int = 0
    response_body_bytes: int = 0
    start_ns: int = 0
    end_ns: int = 0
    trace: TraceContext | None = None
    completeness: Completeness = Completeness.COMPLETE
    stream_id: int | None = None
    grpc_status: int | None = None
    grpc_message: str | None = None
    calls: list[Call] = field(default_factory=list)
    ended_by: EndedBy | None = None  # where a message was cut short, or no response came; None: nobody, or not known

    @property
    def protocol(self) -> ProtocolName:
        """What it was spoken in, whatever its connection speaks before or after (RFC 9110 §7.8, §9.3.6)."""
        return ProtocolName.HTTP2 if self.version == 2 else ProtocolName.HTTP1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a connection: its address and, where known, whose it is. IPv4-mapped IPv6 is shown as IPv4.

    Attributes:
        seen: address and port the other end's socket has instead, where the kernel translates them.
    """

    host: str
    port: int
    entity: Entity | None = None
    pid: int | None = None
    seen: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class ResolvedConnection:
    """A connection as outputs see it: both ends named, role and TLS as known now.

    What is spoken is not the connection's: it may change, and every exchange and call carries its own.
    """

    id: int
    pid: int
    local: Endpoint
    remote: Endpoint
    role: Role
    tls: bool
