# SPDX-License-Identifier: Apache-2.0
"""The kernel side's walk (bpf/walk.h, bpf/calls.h) in Python: bytes of calls in, what a call record would hold out.

It knows no bound on steps; a test that compares both stays below them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rover_plugin.capture.records import CHUNKS, HOW_CHUNKS, HOW_PIECES, HOW_WALKED, PIECE, PolicyMode

NONE, CONTENT, IN_CHUNKS, FRAMES = range(4)
_END, _END_LF, _SIZE, _SPACE, _EXTENSION, _SIZE_LF = range(6)

HEAD_WINDOW = 4096
LONGEST_LINE = 96
BEHIND_HEAD = 16
SMALL_PAYLOAD = 16
PREFACE_SIZE = 24
_WITH_CONTENT = (b"HTTP", b"POST", b"PUT ", b"PATC")
_MESSAGES = (*_WITH_CONTENT, b"GET ", b"HEAD", b"DELE", b"OPTI", b"CONN", b"TRAC")
_MODES = {PolicyMode.SKIP: CONTENT, PolicyMode.CHUNK: IN_CHUNKS, PolicyMode.FRAME: FRAMES}
_HALF = 1 << 31
_MASK = (1 << 32) - 1


@dataclass(slots=True)
class Record:
    """What a call record says: its flags, where `captured` begins in the call, and what follows the header."""

    flags: int
    offset: int
    captured: bytes


@dataclass(slots=True)
class Way:
    """One direction's struct walk, and what else struct connection knows of it."""

    begin: int | None  # position of the stream's first byte, where that is known
    state: int = NONE
    left: int = 0
    wanted: int = 0
    phase: int = 0
    digits: int = 0
    position: int = 0
    head: bytes = b""
    turned: int = 0
    muted: bool = False
    held: bool = False
    policy: tuple[PolicyMode, int] | None = None  # not taken yet


@dataclass(slots=True)
class WalkModel:
    """One connection, as bpf/calls.h follows it.

    Attributes:
        ways: by direction.
        capture_limit, continued_limit, always_copy: see `rover_plugin.capture.session`.
        walks: False for a kernel that refuses the walk: it only skips what user space says nobody needs.
    """

    ways: tuple[Way, Way]
    capture_limit: int = 65536
    continued_limit: int = 16384
    always_copy: int = 1024
    walks: bool = True
    calls: int = 0
    frames: bool = False
    frames_told: bool = False
    _pieces: list[tuple[int, bytearray]] = field(default_factory=list)

    def tell(self, direction: int, until: int, mode: PolicyMode, *, frames: bool) -> None:
        """User space writes a policy."""
        self.ways[direction].policy = (mode, until)
        self.frames_told = frames

    def call(self, direction: int, data: bytes, position: int, opposite: int, *, unreadable: bool = False) -> Record:
        """What the record of a call that moved `data` holds.

        Args:
            direction: of the call.
            data: the bytes it moved.
            position: of the first of them.
            opposite: position reached in the other direction.
            unreadable: they never were in the caller's memory.
        """
        way = self.ways[direction]
        size = len(data)
        small = size <= self.always_copy
        turned, way.turned = way.turned != opposite, opposite
        limit = self.capture_limit if turned else self.continued_limit
        if way.muted:
            return Record(0, 0, b"")
        asks = not small
        if small:
            asks = self.calls & 15 == 0
            self.calls += 1
        if asks:
            self._consult(way, position)
            if way.muted:
                return Record(0, 0, b"")
        if way.state and way.position != position:
            way.state = NONE
        if way.state in (CONTENT, IN_CHUNKS) and turned and not unreadable and data.startswith(_MESSAGES):
            way.state = NONE
        skip = 0
        if way.state:
            if way.left >= size and (way.state != FRAMES or not way.wanted):
                way.left -= size
                way.position = position + size & _MASK
                if not way.left and way.state == CONTENT:
                    way.state = NONE
                return Record(HOW_WALKED, 0, data if small and not unreadable else b"")
            if unreadable:
                way.state = NONE
                return Record(0, 0, b"")
            if way.state == FRAMES:
                return self._frames(way, data, position)
            if way.state == IN_CHUNKS:
                cut = not way.left and way.phase != _END
                return self._chunks(way, data, position, 0, b"", limit, cut=cut)
            skip = 0 if small else way.left
            way.state = NONE
        if unreadable:
            return Record(0, 0, b"")
        if small:
            return self._bytes(way, data, position, 0, data, size)
        if self.frames:
            limit = self.capture_limit
        limit = min(size - skip, limit)
        want = limit
        if self.walks and not skip and want > HEAD_WINDOW and not way.held and data.startswith(_WITH_CONTENT):
            want = HEAD_WINDOW
        return self._bytes(way, data, position, skip, data[skip : skip + want], limit)

    def _consult(self, way: Way, position: int) -> None:
        self.frames = self.frames or self.frames_told
        if way.policy is None:
            return
        mode, until = way.policy
        if mode is PolicyMode.NEVER:
            way.muted = True
        way.policy = None
        way.held = mode is PolicyMode.COPY
        state = _MODES.get(mode, NONE)
        if state and not self.walks:
            state = CONTENT
        distance = until - position & _MASK
        if state and (way.state or distance >= _HALF):
            return
        way.state = NONE if state == CONTENT and not distance else state
        way.left, way.wanted, way.phase, way.position, way.head = distance, 0, 0, position, b""

    def _bytes(self, way: Way, data: bytes, position: int, skip: int, captured: bytes, limit: int) -> Record:
        """Copied bytes: whether a walk begins with them."""
        small = len(data) <= self.always_copy
        if captured.startswith(b"PRI ") and self.calls <= 8:
            self.frames = True
        plain = Record(0, skip if captured else 0, captured)
        if not self.walks or way.held or len(captured) < 9:
            return plain
        if position == way.begin:
            settings = captured[:2] == b"\0\0" and captured[3] == 4 and captured[4:9] == bytes(5)
            if settings or captured.startswith(b"PRI "):
                way.state, way.phase, way.head = FRAMES, 0, b""
                way.left = way.wanted = 0 if settings else PREFACE_SIZE
                return self._frames(way, data, position)
        if not captured.startswith(_WITH_CONTENT):
            return plain
        if small and (not captured.endswith(b"\r\n") or captured[-7:-3] == b"\r\n0\r"):
            return plain
        return self._head(way, data, position, skip, captured, limit)

    # HTTP/2

    def _frames(self, way: Way, data: bytes, position: int) -> Record:
        self._pieces = []
        unseen = at = 0
        copied = b""
        while at < len(data):
            keep = True
            if way.left:
                keep = way.wanted > 0
                taken = min(way.wanted or way.left, len(data) - at)
                way.left -= taken
                if keep:
                    way.wanted -= taken
            else:
                taken = min(9 - len(way.head), len(data) - at)
                way.head += data[at : at + taken]
            copied = data[at : at + taken]
            at += taken
            unseen = self._append(copied, unseen) if keep else unseen + taken
            if len(way.head) == 9:
                head, way.head = way.head, b""
                if not _begin_frame(way, head):
                    rest = data[at:]
                    if rest:
                        self._append(rest, unseen)
                    way.state = NONE
                    break
        way.position = position + len(data) & _MASK
        flags = HOW_WALKED if way.state else 0
        if len(data) <= self.always_copy:
            return Record(flags, 0, data)
        return Record(
            flags | HOW_PIECES, 0, b"".join(PIECE.pack(hole, len(part)) + part for hole, part in self._pieces)
        )

    def _append(self, data: bytes, unseen: int) -> int:
        used = sum(PIECE.size + len(part) for _, part in self._pieces)
        if unseen or not self._pieces:
            if used >= self.capture_limit - PIECE.size:
                return unseen + len(data)
            self._pieces.append((unseen, bytearray()))
            used += PIECE.size
            unseen = 0
        room = max(self.capture_limit - used, 0)
        self._pieces[-1][1].extend(data[:room])
        return unseen + len(data[room:])

    # HTTP/1

    def _head(self, way: Way, data: bytes, position: int, skip: int, captured: bytes, limit: int) -> Record:
        small = len(data) <= self.always_copy
        end = _head_end(captured)
        if not end and not small:
            captured = data[skip : skip + limit]
            end = _head_end(captured)
        chunked, content = _framing(captured, end) if end else (False, -1)
        if end and captured[end : end + 4] == b"HTTP":
            chunked, content = False, -1
        if chunked:
            way.state, way.phase, way.wanted, way.digits, way.left = IN_CHUNKS, _SIZE, 0, 0, 0
            return self._chunks(way, data, position, skip, captured[:end], limit, cut=False)
        way.state = NONE
        after = len(data) - skip - end
        if content >= after:
            way.left = content - after
            way.state = CONTENT if way.left else NONE
            way.position = position + len(data) & _MASK
            if not small:
                captured = captured[: end + BEHIND_HEAD]
        elif not small:
            captured = data[skip : skip + limit]
        return Record(HOW_WALKED if way.state else 0, skip, captured)

    def _chunks(
        self, way: Way, data: bytes, position: int, skip: int, front: bytes, limit: int, *, cut: bool
    ) -> Record:
        small = len(data) <= self.always_copy
        at = skip + len(front)
        captured = bytearray(front)
        line = bytearray()
        passed = content = 0
        front_size = 0
        while at < len(data):
            if way.state != IN_CHUNKS:
                room = max(self.capture_limit - len(captured), 0)
                captured += data[at : at + min(limit, room)]
                break
            if way.left:
                taken = min(way.left, len(data) - at)
                if not passed:
                    front_size = len(captured)
                way.left -= taken
                passed += taken
                content += taken
                at += taken
                continue
            if len(line) >= LONGEST_LINE:
                captured += line
                line.clear()
                way.state = NONE
                continue
            over = _line_byte(way, data[at])
            line.append(data[at])
            at += 1
            if over is None:
                continue
            if not over or not way.wanted:
                captured += line
                line.clear()
                way.state, way.wanted = NONE, 0
                continue
            way.left, way.phase = way.wanted, _END
            if cut:
                captured += line
            else:
                if not passed:
                    front_size = len(captured)
                passed += len(line)
            line.clear()
            cut = False
        captured += line
        way.position = position + len(data) & _MASK
        flags = HOW_WALKED if way.state else 0
        if small:
            return Record(flags, 0, data)
        if passed:
            return Record(
                flags | HOW_CHUNKS, skip, bytes(captured) + CHUNKS.pack(front_size, passed, content, way.left)
            )
        return Record(flags, skip, bytes(captured))


def _begin_frame(way: Way, head: bytes) -> bool:
    length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
    stream = int.from_bytes(head[5:]) & 0x7FFFFFFF
    way.left = length
    way.wanted = length if length <= SMALL_PAYLOAD or kind in {1, 4, 5, 7, 9} else int(kind == 0 and flags & 8 != 0)
    if kind in {0, 1, 2, 3, 5, 9} and not stream:
        return False
    if kind in {4, 6, 7} and stream:
        return False
    if kind == 4:
        return length % 6 == 0
    if kind == 7:
        return length >= 8
    if kind > 9:
        return length <= 1 << 20
    return length == {2: 5, 3: 4, 6: 8, 8: 4}.get(kind, length)


def _line_byte(way: Way, byte: int) -> bool | None:
    """Whether a chunk-size line is over (True), none (False), or goes on."""
    letter = bytes((byte,))
    if way.phase == _END:
        way.wanted = way.digits = 0
        way.phase = _END_LF if letter == b"\r" else _SIZE
        return None if letter in b"\r\n" else False
    if way.phase == _END_LF:
        way.phase = _SIZE
        return None if letter == b"\n" else False
    if way.phase == _SIZE:
        if letter in b"0123456789abcdefABCDEF":
            way.wanted = (way.wanted << 4 | int(letter, 16)) & _MASK
            way.digits += 1
            return None if way.digits < 8 else False
        if not way.digits:
            return False
    if way.phase in {_SIZE, _SPACE}:
        following = {b" ": _SPACE, b"\t": _SPACE, b";": _EXTENSION, b"\r": _SIZE_LF}.get(letter)
        if following is None:
            return letter == b"\n"
        way.phase = following
        return None
    if way.phase == _EXTENSION:
        return True if letter == b"\n" else None
    return letter == b"\n"


_EMPTY_LINE = re.compile(rb"\n\r?\n")
_FIELDS = re.compile(rb"\n(content-length|transfer-encoding):([^\n]*\n)", re.IGNORECASE)
_LENGTH = re.compile(rb" *([0-9]+)\r?\n")
_CHUNKED = re.compile(rb" ?chunked[\r\n]", re.IGNORECASE)


def _head_end(captured: bytes) -> int:
    found = _EMPTY_LINE.search(captured)
    return found.end() if found else 0


def _framing(captured: bytes, end: int) -> tuple[bool, int]:
    """Whether the content comes in chunks, or else its length; -1 where that is not certain."""
    status = captured[9:12]
    if captured.startswith(b"HTTP") and (status[:1] in {b"1", b"3"} or (status[:1], status[2:]) == (b"2", b"4")):
        return False, -1
    fields = _FIELDS.findall(captured[:end])
    if len(fields) != 1:
        return False, -1
    name, value = fields[0]
    if name.lower() == b"transfer-encoding":
        return bool(_CHUNKED.match(value)), -1
    found = _LENGTH.match(value)
    return False, int(found[1]) if found and len(value) <= 16 else -1
