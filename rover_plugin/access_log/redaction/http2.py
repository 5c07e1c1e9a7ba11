# SPDX-License-Identifier: Apache-2.0
"""Redacts HTTP/2: frames stay, header blocks keep their shape (`hpack`), DATA and whatever else is text become zeros.

Frames are walked here, since the analyser does not look at what it need not know; a lost position is found again by the
analyser's own seeker. What is not recognised stays zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.model import Call, Exchange, ProtocolName, Side
from rover_plugin.access_log.protocols.analyzer import NOBODY, Framing
from rover_plugin.access_log.protocols.http2 import frames
from rover_plugin.access_log.protocols.http2.analyzer import MAX_HEADER_BLOCK
from rover_plugin.access_log.protocols.http2.half import LARGEST_SOUGHT_FRAME
from rover_plugin.access_log.protocols.http2.hpack import HeaderDecoder
from rover_plugin.access_log.protocols.http2.resync import FrameSeeker
from rover_plugin.access_log.redaction.hpack import redact_block
from rover_plugin.access_log.redaction.pieces import Piece, part, place, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.protocols.analyzer import Ends, Handover, Part

_SIZE: Final = frames.FRAME_HEADER_SIZE
# Kinds that hold numbers which the analysis depends on.
_PLAIN: Final = frozenset((frames.RST_STREAM, frames.SETTINGS, frames.WINDOW_UPDATE))
_SETTING_SIZE: Final = 6
_SETTINGS_KNOWN: Final = frozenset((1, 2, 3, 4, 5, 6, 8, 9))  # IANA's registry; any other may say anything
_WITH_BLOCK: Final = frozenset((frames.HEADERS, frames.PUSH_PROMISE, frames.CONTINUATION))
_GOAWAY_NUMBERS: Final = 8  # last stream id and error code; debug data may follow (RFC 9113 §6.8)


class Http2Redactor:
    """In an analyser's place: writes what may be seen into the outputs of its calls. Finds no exchanges."""

    protocol = ProtocolName.HTTP2

    def __init__(self, *, late_join: bool) -> None:
        self.exchanges: list[Exchange] = []
        self.loose: list[Call] = []
        self.errors: dict[str, int] = {}
        self.handover: Handover | None = None
        self._halves = (_Half(from_client=True), _Half(from_client=False))
        if late_join:
            self._halves[Side.RESPONSE].seek()

    def receive(self, side: Side, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        """See `Analyzer.receive`; `RedactingConversation` gives each part as a call of its own."""
        self.loose.append(call)
        self._halves[side].receive(call, data, unseen)
        for part_ in parts:
            self._halves[side].pass_over(len(part_.data) + part_.unseen)

    def gap(self, side: Side, size: int, *, recorded: bool = False) -> None:  # noqa: ARG002 zeroed either way
        """See `Analyzer.gap`."""
        self._halves[side].pass_over(size)

    def expire(self, before_ns: int) -> None:
        """Nothing here has a time."""

    def close(self, now_ns: int, ended_by: Ends = NOBODY) -> None:
        """What is incomplete stays zero."""

    def held_bytes(self) -> int:
        """What is kept here is bounded by frames, and recorders have no account."""
        return 0

    def unneeded(self, side: Side) -> int:  # noqa: ARG002 the seam's signature
        """Everything is to be recorded."""
        return 0

    def framing(self, side: Side) -> Framing:  # noqa: ARG002 the seam's signature
        """See `unneeded`."""
        return Framing.UNKNOWN


class _Half:
    """One side: bytes that wait for the rest of their frame, and where their outputs are."""

    def __init__(self, *, from_client: bool) -> None:
        self._from_client = from_client
        self._preface = from_client
        self._seeker: FrameSeeker | None = None
        self._decoder = HeaderDecoder(lambda _: None, from_start=False)
        self._forget()

    def _forget(self) -> None:
        self._waiting = bytearray()
        self._pieces: list[Piece] = []
        self._skip = 0  # payload that stays zero
        self._block: bytearray | None = None
        self._block_pieces: list[Piece] = []

    def seek(self) -> None:
        """The next byte may be anywhere in a frame."""
        self._forget()
        self._preface = False
        self._decoder.restart()
        self._seeker = FrameSeeker(LARGEST_SOUGHT_FRAME, from_client=self._from_client)

    def receive(self, call: Call, data: bytes, unseen: int) -> None:
        """Takes a call's bytes, and `unseen` more that were not copied."""
        if self._seeker is not None:
            self._look_for_boundary(self._seeker, call, data, unseen)
            return
        out, base = place(call, data)
        start = min(self._skip, len(data))
        self._skip -= start
        if start < len(data):
            self._waiting += data[start:]
            self._pieces.append((out, base + start, len(out)))
            fresh = len(self._waiting) == len(data)
            if not self._walk():
                self.seek()
                if fresh and self._from_client and not data.startswith(frames.PREFACE[: len(data)]):
                    # Not the connection's beginning: the bytes may be anything, frames too.
                    self.receive(call, data, unseen)
                    return
        if unseen:
            self.pass_over(unseen)

    def pass_over(self, size: int) -> None:
        """`size` bytes went by unseen; -1: nobody knows how many."""
        if self._seeker is not None and size >= 0:
            self._seeker.add(None, b"", size, claimed=True)
        elif 0 <= size <= self._skip:
            self._skip -= size
        else:
            self.seek()

    def _look_for_boundary(self, seeker: FrameSeeker, call: Call, data: bytes, unseen: int) -> None:
        boundary = seeker.add(call, data, unseen, claimed=True)
        if boundary < 0:
            return
        self._seeker = None
        for segment in seeker.segments_from(boundary):
            if segment.call is None:
                self.pass_over(segment.unseen)
            else:
                self.receive(segment.call, segment.data, segment.unseen)

    def _walk(self) -> bool:
        """Takes whole frames; False where no frame can be."""
        if self._preface:
            size = len(frames.PREFACE)
            if not self._waiting.startswith(frames.PREFACE[: len(self._waiting)]):
                return False
            if len(self._waiting) < size:
                return True
            self._preface = False
            spread(self._take(size), frames.PREFACE)
        while len(self._waiting) >= _SIZE:
            head, flags, stream_id = frames.FRAME_HEADER.unpack_from(self._waiting)
            kind, length = head & 0xFF, head >> 8
            stream_id &= frames.STREAM_ID_MASK
            if not frames.is_sound(kind, length, stream_id) or (self._block is None) is (kind == frames.CONTINUATION):
                return False
            if kind in _WITH_BLOCK or kind in _PLAIN or kind == frames.GOAWAY:
                size = shown = _SIZE + length
                if size > MAX_HEADER_BLOCK:
                    return False
                if kind == frames.GOAWAY:
                    shown = _SIZE + _GOAWAY_NUMBERS
            else:
                size = shown = _SIZE + (kind == frames.DATA and bool(flags & frames.PADDED))
            if len(self._waiting) < size:
                return True
            frame = bytes(self._waiting[:size])
            pieces = self._take(size)
            if kind in _WITH_BLOCK:
                self._take_fragment(kind, flags, frame, pieces)
            else:
                spread(pieces, _known_settings(frame) if kind == frames.SETTINGS else frame[:shown])
                self._leave(_SIZE + length - size)
        return True

    def _take(self, size: int) -> list[Piece]:
        """Removes the first `size` waiting bytes; returns where their outputs are."""
        taken = part(self._pieces, 0, size)
        self._pieces = part(self._pieces, size, len(self._waiting))
        del self._waiting[:size]
        return taken

    def _leave(self, size: int) -> None:
        """The next `size` bytes stay zero."""
        here = min(size, len(self._waiting))
        self._take(here)
        self._skip = size - here

    def _take_fragment(self, kind: int, flags: int, frame: bytes, pieces: list[Piece]) -> None:
        start, stop = frames.content_range(kind, flags, frame, _SIZE, len(frame))
        # Of what is in front of the block, a stream's priority says nothing that is needed.
        before = _SIZE + bool(flags & frames.PADDED) if kind == frames.HEADERS else start
        spread(pieces, frame[: min(before, stop)])
        if self._block is None:
            self._block = bytearray()
            self._block_pieces = []
        self._block += frame[start:stop]
        self._block_pieces += part(pieces, start, stop)
        if flags & frames.END_HEADERS or len(self._block) > MAX_HEADER_BLOCK:
            redacted = redact_block(bytes(self._block), self._decoder)
            if redacted is not None:
                spread(self._block_pieces, redacted)
            self._block = None


def _known_settings(frame: bytes) -> bytes:
    """A SETTINGS frame whose unknown parameters are zeros."""
    shown = bytearray(frame)
    for at in range(_SIZE, len(frame), _SETTING_SIZE):
        if int.from_bytes(frame[at : at + 2]) not in _SETTINGS_KNOWN:
            shown[at : at + _SETTING_SIZE] = bytes(len(frame[at : at + _SETTING_SIZE]))
    return bytes(shown)
