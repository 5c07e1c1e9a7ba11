# SPDX-License-Identifier: Apache-2.0
"""Redacts HTTP/1: what framing needs stays, every other value becomes filler of the same length, bodies become zeros.

The analyser does the framing; its steps are looked over the shoulder. What it does not recognise stays zero.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.model import Side
from rover_plugin.access_log.protocols.http1 import _CHUNK_SIZE, _LOST, _START, MAX_HEAD, Http1Analyzer
from rover_plugin.access_log.protocols.http1_head import parse_request, parse_response
from rover_plugin.access_log.redaction.known import METHODS, NAMES
from rover_plugin.access_log.redaction.pieces import Piece, fill, place, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.model import Call, Completeness
    from rover_plugin.access_log.protocols.analyzer import Part
    from rover_plugin.access_log.protocols.http1 import _Half

_LF: Final = 10
_REQUEST_LINE = re.compile(rb"(\S+[ \t]+)(.*?)([ \t]+HTTP/[0-9]\.[0-9][ \t]*\r?\n)", re.DOTALL)
_STATUS_LINE = re.compile(rb"(HTTP/[0-9]\.[0-9][ \t]+[0-9]{3})(.*)", re.DOTALL)
_SCHEME = re.compile(rb"https?://")
_WORD = re.compile(rb"[^\s,;]+")
_NOT_DIGIT = re.compile(rb"[^0-9,\s]")
_NOT_SLASH = re.compile(rb"[^/\s]")
_NOT_HEX = re.compile(rb"[^0-9A-Fa-f\s]")

# Fields that decide about framing, and the words in them that are no secret.
_WORD_FIELDS: Final = frozenset((b"transfer-encoding", b"connection", b"upgrade"))
_WORDS: Final = frozenset(
    b"br chunked close compress deflate gzip h2c http2-settings identity keep-alive te trailers upgrade".split()
)


class Http1Redactor(Http1Analyzer):
    """An analyser that writes what may be seen into the outputs of its calls."""

    def __init__(self, *, late_join: bool) -> None:
        super().__init__(late_join=late_join)
        self._call: Call | None = None
        # Where the bytes of a header section, chunk-size line or trailer line in progress are, by side.
        self._pieces: tuple[list[Piece], list[Piece]] = ([], [])

    def receive(self, side: Side, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        """See `Analyzer.receive`."""
        outer, self._call = self._call, call  # parked bytes are received while others are
        super().receive(side, call, data, unseen, parts)
        self._call = outer

    def _whole_request(self, call: Call, data: bytes) -> bool:  # noqa: ARG002 every step is to be seen
        return False

    def _whole_response(self, call: Call, data: bytes) -> bool:  # noqa: ARG002 see above
        return False

    def _head(self, half: _Half, call: Call, data: bytes, position: int) -> int:
        out, base = place(call, data)
        pieces = self._pieces[half.side]
        if half.state == _START:
            start = position
            while start < len(data) and data[start] in b"\r\n":
                out[base + start] = data[start]
                start += 1
            pieces.clear()
            position = start
        if position < len(data):
            pieces.append((out, base + position, len(out)))
            return super()._head(half, call, data, position)
        return position

    def _request_head(self, half: _Half, call: Call, head: bytes, data: bytes, position: int) -> int:
        if parse_request(head) is not None:
            spread(self._pieces[half.side], redact_head(head))
        return super()._request_head(half, call, head, data, position)

    def _response_head(self, half: _Half, call: Call, head: bytes, data: bytes, position: int) -> int:
        if parse_response(head) is not None:
            spread(self._pieces[half.side], redact_head(head))
        return super()._response_head(half, call, head, data, position)

    def _cut_head(self, half: _Half, label: Completeness) -> None:
        lines = bytes(half.buffer[: half.buffer.rfind(b"\n") + 1])
        parse = parse_response if half.side is Side.RESPONSE else parse_request
        if lines and len(half.buffer) <= MAX_HEAD and parse(lines + b"\r\n") is not None:
            spread(self._pieces[half.side], redact_head(lines))
        super()._cut_head(half, label)

    def _chunk_size(self, half: _Half, data: bytes, position: int) -> int:
        line = bytes(half.buffer)
        after = super()._chunk_size(half, data, position)
        pieces = self._go_on(half, data, position, after, begins=not line)
        if half.state not in (_CHUNK_SIZE, _LOST):
            digits, semicolon, extension = (line + data[position:after]).partition(b";")
            spread(pieces, _NOT_HEX.sub(b"x", digits) + semicolon + fill(extension))
        return after

    def _chunk_end(self, half: _Half, data: bytes, position: int) -> int:
        after = super()._chunk_end(half, data, position)
        if half.state != _LOST:
            spread(self._go_on(half, data, position, after, begins=True), data[position:after])
        return after

    def _trailer(self, half: _Half, data: bytes, position: int) -> int:
        line = bytes(half.buffer)
        after = super()._trailer(half, data, position)
        pieces = self._go_on(half, data, position, after, begins=not line)
        if half.state != _LOST and data[after - 1] == _LF:
            spread(pieces, _redact_field(line + data[position:after], b"")[0])
        return after

    def _go_on(self, half: _Half, data: bytes, position: int, after: int, *, begins: bool) -> list[Piece]:
        """Notes where bytes of the present line are; returns all such places."""
        pieces = self._pieces[half.side]
        if begins:
            pieces.clear()
        if self._call is not None:
            out, base = place(self._call, data)
            pieces.append((out, base + position, base + after))
        return pieces


def redact_head(head: bytes) -> bytes:
    """A header section (or its first lines, each with its end) without what is nobody's business; as long as before."""
    # Lines end in LF; a CR anywhere else is part of a line.
    first, *fields = [line + b"\n" for line in head.split(b"\n")[:-1]]
    parts = [_redact_start_line(first)]
    name = b""
    for line in fields:
        redacted, name = _redact_field(line, name)
        parts.append(redacted)
    return b"".join(parts)


def _redact_start_line(line: bytes) -> bytes:
    status = _STATUS_LINE.match(line)
    if status is not None:
        return status[1] + fill(status[2])
    request = _REQUEST_LINE.fullmatch(line)
    if request is None:
        return bytes(len(line))
    method, target, version = request.groups()
    if method.rstrip() not in METHODS:
        method = fill(method)
    return method + _redact_target(target) + version


def _redact_target(target: bytes) -> bytes:
    """Slashes of the path stay, and where the query begins (RFC 9112 §3.2)."""
    if target == b"*":
        return target
    scheme = _SCHEME.match(target)
    start = scheme.end() if scheme is not None else 0
    ends = [end for end in (target.find(b"?", start), target.find(b"#", start)) if end >= 0]
    end = min(ends, default=len(target))
    path = _NOT_SLASH.sub(b"x", target[start:end])
    return target[:start] + path + target[end : end + 1] + fill(target[end + 1 :])


def _redact_field(line: bytes, folded: bytes) -> tuple[bytes, bytes]:
    """A field line, and the name it or the line that it continues has; `folded` is that of the line before."""
    if line[:1] in (b" ", b"\t"):
        return _redact_value(folded, line), folded
    name, colon, value = line.partition(b":")
    if not colon:
        return fill(line), b""
    key = name.strip().lower()
    if key not in NAMES:
        name = fill(name)
    return name + colon + _redact_value(key, value), key


def _redact_value(name: bytes, value: bytes) -> bytes:
    if name == b"content-length":
        return _NOT_DIGIT.sub(b"x", value)
    if name in _WORD_FIELDS:
        return _WORD.sub(lambda word: word[0] if word[0].lower() in _WORDS else fill(word[0]), value)
    return fill(value)
