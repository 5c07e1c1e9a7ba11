# SPDX-License-Identifier: Apache-2.0
"""Finding a frame boundary in the middle of an HTTP/2 connection.

A boundary is believed when frames tile from it: each of several frame headers in a row is plausible, and the header
blocks among them are well formed. One header passes by chance about once in 10^8 random bytes; three in a row do not.
Two are enough where every call from the candidate on begins and ends with a frame, as flushed writes do.

Each byte is looked at once: a candidate remembers where its next frame header must be and waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.protocols.http2 import frames, hpack
from rover_plugin.access_log.protocols.weights import SEGMENT_BYTES

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Call

ENOUGH_FRAMES: Final = 3
ENOUGH_FRAMES_ALIGNED: Final = 2
KEPT_BYTES: Final = 64 * 1024
KEPT_CALLS: Final = 1024
CANDIDATES: Final = 32
TILED: Final = 64  # frames in a row, beyond which nobody looks
_MAYBE_HEADER: Final = (frames.plausible_header(from_client=False), frames.plausible_header(from_client=True))


@dataclass(slots=True)
class Segment:
    """One call's bytes while nobody knows what they are; `claimed` if the call has already come out."""

    call: Call | None
    offset: int
    data: bytes
    unseen: int
    claimed: bool

    @property
    def end(self) -> int:
        """Offset behind the last byte, seen or not."""
        return self.offset + len(self.data) + self.unseen


@dataclass(slots=True)
class Candidate:
    """A place where frames tile so far: where the first begins, where the next must, how many there were.

    `aligned` while it began with a call and every call since ended with a frame.
    """

    start: int
    next: int
    frames: int
    aligned: bool


def is_well_formed(block: bytes) -> bool:
    """Whether a header block's representations end exactly where the block does (RFC 7541 §6); touches no table."""
    at, end = 0, len(block)
    try:
        while at < end:
            byte = block[at]
            at += 1
            prefix = 0x7F if byte >= 0x80 else 0x3F if byte >= 0x40 else 0x1F if byte >= 0x20 else 0x0F
            index = byte & prefix
            if index == prefix:
                index, at = hpack.read_integer(block, at, prefix)
            if byte >= 0x80:
                if not 0 < index <= hpack.LARGEST_INDEX:
                    return False
                continue
            if prefix == 0x1F:
                continue
            for _ in range(2 if not index else 1):
                length = block[at] & 0x7F
                at += 1
                if length == 0x7F:
                    length, at = hpack.read_integer(block, at, 0x7F)
                at += length
    except (IndexError, OverflowError):
        return False
    return at == end


class FrameSeeker:
    """Keeps the last bytes of one direction until a boundary is found in them.

    Offsets count all bytes since the search began, seen or not. `_tail` is what was captured since the last hole: no
    frame header can be read before it.

    Args:
        max_frame_size: longest payload a frame may have here.
        from_client: whether these are a client's bytes (even streams and PUSH_PROMISE are not its to send).
        start: where the first boundary may be.

    Attributes:
        segments: what is kept, oldest first.
        dropped: calls that fell out of the window before anything was found; the owner drains it.
        skipped: captured bytes given up so far; those that were not copied prove nothing.
    """

    def __init__(self, max_frame_size: int, *, from_client: bool, start: int = 0) -> None:
        self.segments: list[Segment] = []
        self.dropped: list[Call] = []
        self.skipped = 0
        self._max_frame_size = max_frame_size
        self._from_client = from_client
        self._candidates: list[Candidate] = []
        self._tail = bytearray()
        self._tail_offset = 0
        self._scanned = start
        self._end = 0
        self._kept = 0  # captured bytes in `segments`
        self._dead: set[int] = set()  # frame headers in the tail from which frames do not tile

    def held_bytes(self) -> int:
        """Memory of what is kept, roughly: the bytes, once more as the tail, and where frames may begin in it."""
        return self._kept + len(self._tail) + len(self.segments) * SEGMENT_BYTES

    def add(self, call: Call | None, data: bytes, unseen: int, *, claimed: bool) -> int:
        """Takes one call's bytes, or a hole (`call` None, no data).

        Returns:
            The offset of a boundary now believed, or -1.
        """
        offset = self._end
        segment = Segment(call, offset, data, unseen, claimed)
        self.segments.append(segment)
        self._tail += data
        self._kept += len(data)
        self._end = offset + len(data)
        found = self._follow()
        if found < 0:
            found = self._scan(offset)
        if unseen:
            self._end += unseen
            self._tail.clear()
            self._tail_offset = self._scanned = self._end
            self._candidates = [candidate for candidate in self._candidates if candidate.next >= self._end]
            self._dead.clear()
        if len(self._dead) > KEPT_BYTES // frames.FRAME_HEADER_SIZE:
            self._dead.clear()
        self._forget()
        return found

    def segments_from(self, boundary: int) -> list[Segment]:
        """What to replay: the segments from `boundary` on, the first one cut to begin there."""
        rest = [segment for segment in self.segments if segment.end > boundary]
        self._drop([segment for segment in self.segments if segment.end <= boundary])
        if rest and boundary > rest[0].offset:
            rest[0].data = rest[0].data[boundary - rest[0].offset :]
        return rest

    def _drop(self, segments: list[Segment]) -> None:
        self.dropped.extend(s.call for s in segments if s.call is not None and not s.claimed)

    def _forget(self) -> None:
        """Drops the oldest segments beyond the window, with the candidates that began in them."""
        excess = 0
        while excess < len(self.segments) - 1 and (self._kept > KEPT_BYTES or len(self.segments) - excess > KEPT_CALLS):
            self._kept -= len(self.segments[excess].data)
            self.skipped += len(self.segments[excess].data)
            excess += 1
        if not excess:
            return
        self._drop(self.segments[:excess])
        oldest = self.segments[excess].offset
        del self.segments[:excess]
        self._candidates = [candidate for candidate in self._candidates if candidate.start >= oldest]
        if oldest > self._tail_offset:
            del self._tail[: oldest - self._tail_offset]
            self._tail_offset = oldest
        self._scanned = max(self._scanned, oldest)

    def _header(self, offset: int) -> tuple[int, int, int] | None:
        """(kind, flags, length) of a plausible frame header at `offset`, or None."""
        head, flags, stream_id = frames.FRAME_HEADER.unpack_from(self._tail, offset - self._tail_offset)
        kind, length = head & 0xFF, head >> 8
        if not frames.is_plausible(kind, flags, length, stream_id, self._max_frame_size):
            return None
        if self._from_client and (kind == frames.PUSH_PROMISE or (kind in frames.OPENS_OR_FILLS and not stream_id & 1)):
            return None
        return kind, flags, length

    def _scan(self, call_start: int) -> int:
        """Looks for new candidates in the bytes not looked at before, until one is believed: its start, or -1."""
        shift = self._tail_offset
        stop = max(len(self._tail) - frames.FRAME_HEADER_SIZE + 1, 0)
        for match in _MAYBE_HEADER[self._from_client].finditer(self._tail, max(self._scanned - shift, 0)):
            if len(self._candidates) >= CANDIDATES:
                break
            offset = match.start() + shift
            if offset in self._dead or self._header(offset) is None:
                continue
            candidate = Candidate(offset, offset, 0, aligned=offset == call_start)
            if self._tiles(candidate):
                if self._is_believed(candidate):
                    return offset
                self._candidates.append(candidate)
        self._scanned = max(self._scanned, stop + shift)
        return -1

    def _follow(self) -> int:
        """Follows the candidates as far as the bytes go: the start of the first that is believed, or -1."""
        kept: list[Candidate] = []
        for candidate in self._candidates:
            if self._tiles(candidate):
                if self._is_believed(candidate):
                    return candidate.start
                kept.append(candidate)
        self._candidates = kept
        return -1

    def _is_believed(self, candidate: Candidate) -> bool:
        candidate.aligned = candidate.aligned and candidate.next == self._end
        return candidate.frames >= (ENOUGH_FRAMES_ALIGNED if candidate.aligned else ENOUGH_FRAMES)

    def _tiles(self, candidate: Candidate) -> bool:
        """Counts the frames that follow; False as soon as something that is no frame does."""
        passed: list[int] = []
        while candidate.next + frames.FRAME_HEADER_SIZE <= self._end and candidate.frames < TILED:
            header = None if candidate.next in self._dead else self._header(candidate.next)
            if header is None:
                self._dead.update(passed)
                return False
            kind, flags, length = header
            payload = candidate.next + frames.FRAME_HEADER_SIZE
            if kind == frames.HEADERS:
                if payload + length > self._end:
                    break
                at = payload - self._tail_offset
                content = bytes(self._tail[at : at + length])
                start, end = frames.content_range(kind, flags, content, 0, length)
                if flags & frames.END_HEADERS and not (start < end and is_well_formed(content[start:end])):
                    self._dead.update(passed)
                    return False
            elif kind == frames.CONTINUATION and not candidate.frames:
                return False
            passed.append(candidate.next)
            candidate.next = payload + length
            candidate.frames += 1
        return True
