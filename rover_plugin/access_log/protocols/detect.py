# SPDX-License-Identifier: Apache-2.0
"""What a connection speaks, and who asks: learnt from the bytes of both directions, and revisable.

What is proof, at the beginning of a call or of a few short calls put together:

- HTTP/1: a whole request line or status line with `HTTP/1.x` (RFC 9112 §3, §4), or hundreds of bytes of a long target;
- HTTP/2: the client preface (RFC 9113 §3.4), or valid frames that end where the call ends, one of them HEADERS whose
  block is well-formed HPACK with pseudo-header fields (`frame_shape`);
- TLS: record headers (RFC 8446 §5.1) that end where the call ends, or two calls that begin with one.

Everything less is no proof: a connection is TCP once both directions have shown enough of something else. Short
preludes are not enough (PROXY protocol, SOCKS). Where the beginning was missed, the TCP verdict is the
only one that `Detector.feed` takes back, if a later call does begin with one of the above, until it is `hopeless`: in
HTTP, who speaks after the other has spoken begins a message, save for interruptions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from rover_plugin.access_log.model import Direction, ProtocolName
from rover_plugin.access_log.protocols.frame_shape import Speaker, judge_frames
from rover_plugin.access_log.protocols.http1_head import begins_message, long_target, may_begin_message

_PROXY_LINE = re.compile(rb"PROXY (?:TCP4|TCP6|UNKNOWN)[^\r\n]{0,96}\r\n")
_PROXY_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_MAX_PENDING = 2048  # bytes of a cut beginning that are kept, per direction
_ENOUGH_BYTES = 64  # of each direction
_ENOUGH_ONE_WAY_BYTES = 16_384
_ENOUGH_ONE_WAY_CALLS = 16
_HOPELESS_TURNS = 8  # of each direction
_HOPELESS_CALLS = 1024  # of one direction, without a word of the other
_MAX_TLS_RECORD = 16_384 + 2_048  # TLS 1.2 allows the most (RFC 5246 §6.2.3)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a connection speaks.

    Attributes:
        protocol: HTTP1, HTTP2, TLS or TCP.
        requests: the direction in which requests move: EGRESS makes the watched process the client. `None` if the
            protocol has none, or it is not known.
    """

    protocol: ProtocolName
    requests: Direction | None = None


class _Doubt(Enum):
    MAYBE = 1  # the beginning of something, cut
    FRAMES = 2  # of HTTP/2's shape, but no proof, or cut
    TLS_HINT = 3  # a TLS record header, and a record that goes on beyond the call
    NO = 4


class _Way:
    """One direction's state."""

    __slots__ = ("calls", "pending", "pending_calls", "prefaced", "size", "strange")

    def __init__(self) -> None:
        self.calls = 0
        self.size = 0
        self.pending_calls = 0
        self.strange = 0  # turns in a row that began with nothing we know
        self.pending = b""
        self.prefaced = False  # what was found begins with HTTP/2's preface


class Detector:
    """Finds out what one connection speaks. Keeps at most 2 KB of each direction; no bytes make it raise.

    Attributes:
        verdict: what it speaks, `None` while undecided.
        from_start: the preface was the first that the client said, so all that was fed of either side is HTTP/2, from
            its first byte on.
    """

    __slots__ = ("_speaking", "_tls_hints", "_ways", "from_start", "verdict")

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.from_start = False
        self._ways = (_Way(), _Way())
        self._tls_hints = 0
        self._speaking: Direction | None = None

    @property
    def hopeless(self) -> bool:
        """Whether no later call can be expected to begin a message, even if the connection was met in one."""
        first, second = self._ways
        if first.calls and second.calls:
            return first.strange >= _HOPELESS_TURNS and second.strange >= _HOPELESS_TURNS
        return first.calls + second.calls >= _HOPELESS_CALLS

    def feed(self, direction: Direction, data: bytes, unseen: int = 0) -> Verdict | None:
        """Takes the captured bytes of one call, followed by `unseen` bytes that were not copied.

        Returns:
            `None` while undecided. HTTP1, HTTP2 and TLS are final; after TCP, feeding further calls may still give
            another verdict.
        """
        if self.verdict is not None and self.verdict.protocol is not ProtocolName.TCP:
            return self.verdict
        way = self._ways[direction]
        if not data and not unseen:
            return self.verdict
        way.calls += 1
        way.size += len(data) + unseen
        found = self._look(way, direction, data, unseen)
        if found is _Doubt.FRAMES:
            way.strange = 0
        elif direction is not self._speaking:
            way.strange += 1
        self._speaking = direction
        if isinstance(found, Verdict):
            self.verdict = found
            if found.protocol is ProtocolName.HTTP2 and way.prefaced and way.pending_calls == way.calls:
                self.from_start = True
                other = self._ways[1 - direction]
                other.pending_calls = other.calls
        elif self.verdict is None and self._seen_enough():
            self.verdict = Verdict(ProtocolName.TCP)
        return self.verdict

    def begun(self, direction: Direction) -> int:
        """How many of the last calls of this direction belong to what was found or may begin; those before do not."""
        return self._ways[direction].pending_calls

    def _look(self, way: _Way, direction: Direction, data: bytes, unseen: int) -> Verdict | _Doubt:
        found: Verdict | _Doubt = _Doubt.NO
        joined = way.pending + data
        if way.pending and data:
            found = classify(joined, direction, unseen)
        if found is _Doubt.NO:
            joined = data
            way.pending_calls = 0
            if data:
                found = classify(data, direction, unseen)
        if found is _Doubt.TLS_HINT:
            self._tls_hints += 1
            if self._tls_hints > 1:
                return Verdict(ProtocolName.TLS)
        if isinstance(found, Verdict):
            way.pending_calls += 1
            way.prefaced = joined.lstrip(b"\r\n").startswith(PREFACE)
        elif found is not _Doubt.NO and not unseen and len(joined) <= _MAX_PENDING:
            way.pending = joined
            way.pending_calls += 1
            return found
        else:
            way.pending_calls = 0
        way.pending = b""
        return found

    def _seen_enough(self) -> bool:
        if all(way.size >= _ENOUGH_BYTES and not way.pending for way in self._ways):
            return True
        return any(
            not way.pending and (way.size >= _ENOUGH_ONE_WAY_BYTES or way.calls >= _ENOUGH_ONE_WAY_CALLS)
            for way in self._ways
        )


def proxy_header_size(data: bytes) -> int:
    """Size of the PROXY protocol header that these bytes begin with, 0 if they do not.

    Load balancers write it before everything else, often in one segment with the first request (haproxy.org,
    proxy-protocol.txt §2.1 and §2.2).
    """
    if data.startswith(b"PROXY "):
        match = _PROXY_LINE.match(data)
        return match.end() if match else 0
    if data.startswith(_PROXY_SIGNATURE) and len(data) >= 16:
        return min(len(data), 16 + (data[14] << 8 | data[15]))
    return 0


def classify(data: bytes, direction: Direction, unseen: int = 0) -> Verdict | _Doubt:
    """What the bytes at the beginning of a call prove."""
    first = data[0]
    other = Direction.INGRESS if direction is Direction.EGRESS else Direction.EGRESS
    if 0x14 <= first <= 0x17:
        return _tls(data, unseen)
    text = data.lstrip(b"\r\n")
    if not text:
        return _Doubt.MAYBE
    if text.startswith(PREFACE[: len(text)]):
        return Verdict(ProtocolName.HTTP2, direction) if len(text) >= len(PREFACE) else _Doubt.MAYBE
    if begins_message(text, response=True):
        return Verdict(ProtocolName.HTTP1, other) if len(text) > 12 else _Doubt.MAYBE
    if b"\n" in text:
        if begins_message(text, response=False) and b"HTTP/1." in text.partition(b"\n")[0]:
            return Verdict(ProtocolName.HTTP1, direction)
    elif may_begin_message(text, response=True):
        return _Doubt.MAYBE
    elif may_begin_message(text, response=False):
        if long_target(text):
            return Verdict(ProtocolName.HTTP1, direction)
        return _Doubt.MAYBE
    speaker = judge_frames(data, unseen)
    if speaker is Speaker.NOBODY:
        return _Doubt.NO
    if speaker is Speaker.UNKNOWN:
        return _Doubt.FRAMES
    return Verdict(ProtocolName.HTTP2, direction if speaker is Speaker.CLIENT else other)


def _tls(data: bytes, unseen: int) -> Verdict | _Doubt:
    """Walks TLS records: type, version 3.0 to 3.4, length; the last one may be cut anywhere."""
    position = 0
    size = len(data)
    while position < size:
        header = data[position : position + 5]
        if not 0x14 <= header[0] <= 0x17 or header[1:2] not in (b"", b"\x03") or header[2:3] > b"\x04":
            return _Doubt.NO
        if len(header) < 5:
            return _Doubt.TLS_HINT if position else _Doubt.MAYBE
        length = header[3] << 8 | header[4]
        if not 0 < length <= _MAX_TLS_RECORD:
            return _Doubt.NO
        position += 5 + length
    return Verdict(ProtocolName.TLS) if position == size + unseen else _Doubt.TLS_HINT
