# SPDX-License-Identifier: Apache-2.0
"""What a protocol analyser is: bytes of one connection in, exchanges out, no clock, no socket, no logging.

Every `Call` given to `receive` comes out exactly once, at the latest at `close`: in one `Exchange.calls`, in `loose`,
or, where the connection changes its protocol, in `Handover.rest`. A call belongs to the exchange its first byte belongs
to; a call that starts between two messages and begins a new one belongs to the new one.

No bytes make an analyser raise: what cannot be understood is counted in `errors` and skipped to the next place where a
message can be recognised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.model import Call, EndedBy, Exchange, ProtocolName, Side


Ends = tuple["EndedBy | None", "EndedBy | None"]
"""Who ended the bytes of requests, and of responses (by `Side`); `None` if that is not known."""

NOBODY: Final[Ends] = (None, None)


class Framing(IntEnum):
    """What a side's next byte is once the bytes that need not be copied have passed."""

    LOST = -1  # nobody knows, though it has begun
    UNKNOWN = 0  # bytes are in the middle of what is needed, or nothing is known yet
    HEAD = 1  # the first of an HTTP/1 message
    CHUNK = 2  # the CRLF after a chunk's content
    FRAME = 3  # the first of an HTTP/2 frame header


@dataclass(frozen=True, slots=True)
class Part:
    """What follows in a call of which the kernel side copied the framing alone: `data`, then `unseen` uncopied bytes.

    Attributes:
        content: how many of the `unseen` bytes are content of chunks; the others are whole lines and line ends.
            They begin within a chunk or where one may begin, and end within one or right after its content. -1: nobody
            has looked into them.
        left: where `content` is known: bytes of the last chunk's content that are still to come.
    """

    data: bytes
    unseen: int
    content: int = -1
    left: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one call that nobody has taken yet: the arguments of `Analyzer.receive`."""

    side: Side
    call: Call
    data: bytes
    unseen: int
    parts: Sequence[Part] = ()

    @property
    def size(self) -> int:
        """Bytes that were copied."""
        return len(self.data) + sum(len(part.data) for part in self.parts)


@dataclass(slots=True)
class Handover:
    """The connection speaks something else from here on (RFC 9110 §7.8, §9.3.6; RFC 7540 §3.2 for h2c).

    Attributes:
        protocol: HTTP2 after `101` for h2c or a preface, TCP for WebSocket and other upgrades and for CONNECT.
        rest: bytes not consumed, to be given to the next analyser's `receive` in this order. Their calls have not come
            out anywhere else. Empty for TCP: those calls are in `loose`.
        upgraded: for h2c, the request that becomes stream 1 (RFC 7540 §3.2), with the calls so far; not in `exchanges`.
    """

    protocol: ProtocolName
    rest: list[Piece] = field(default_factory=list)
    upgraded: Exchange | None = None


class Analyzer(Protocol):
    """One connection's parser. Not thread-safe; the owner of the connection calls it.

    The caller reads and clears `exchanges`, `loose` and `errors` whenever it likes, and looks at `handover` after each
    `receive`; once that is set it closes this analyser and goes on with the next.

    Attributes:
        exchanges: finished exchanges, in the order they finished.
        loose: calls that belong to no exchange: they become stand-alone kernel logs.
        protocol: what this analyser speaks.
        handover: set when the connection changes its protocol.
        errors: how often something could not be parsed, by reason (names as in metrics).
    """

    exchanges: list[Exchange]
    loose: list[Call]
    protocol: ProtocolName
    handover: Handover | None
    errors: dict[str, int]

    def receive(self, side: Side, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        """Takes one call's bytes: `data` was captured and is followed by `unseen` bytes that were not copied.

        Then come the bytes of `parts`, in order. All together are `call.size` bytes, less those told by `gap` before.
        """

    def gap(self, side: Side, size: int, *, recorded: bool = False) -> None:
        """Bytes of this side moved with no record at all (lost records, sendfile); -1: nobody knows how many.

        `recorded` ones are the first bytes of the next call, left out by our own capture policy: no loss.

        To be told before the next bytes of that side, and, where the end of the stream is known, before `close`: what
        nobody tells cannot be labelled.
        """

    def expire(self, before_ns: int) -> None:
        """Emits as `NO_RESPONSE` the requests that nothing has answered and whose last byte is older than this."""

    def close(self, now_ns: int, ended_by: Ends = NOBODY) -> None:
        """The connection ended, or the analyser is no longer wanted: everything open comes out.

        `ended_by` becomes that of messages this cut short (RFC 9112 §8) and, the response's, of unanswered requests.
        """

    def held_bytes(self) -> int:
        """Memory that it keeps beyond an empty analyser, roughly, without the calls it has been given."""

    def unneeded(self, side: Side) -> int:
        """Capture policy: how many of this side's next bytes need not be copied; 0 = all needed, -1 = none, ever."""

    def framing(self, side: Side) -> Framing:
        """What comes after the `unneeded` bytes: the kernel side can go on from there by itself."""
