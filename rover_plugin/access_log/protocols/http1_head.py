# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 start lines and the few fields that matter, from one complete header section (RFC 9112 §2 to §6).

Pure functions over bytes. Only the needed fields are looked for: `lower()` and `find` are measured faster in CPython
than a regular expression or a dictionary of all fields, and hardly depend on how many fields there are. Whatever is
unusual (repeated framing fields, obs-fold, blanks before the colon) takes the slow, general way.

Text: the target's path stays as on the wire, percent-encoding included, so that two different targets never look the
same; bytes that are not UTF-8 become U+FFFD.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rover_plugin.access_log.protocols import texts, trace_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rover_plugin.access_log.model import TraceContext

# How the content's length is determined (RFC 9112 §6.3); numbers from 0 up are a Content-Length.
CHUNKED = -1
UNTIL_CLOSE = -2
INVALID = -3

PREFACE_LINE = b"PRI * HTTP/2.0"
"""The first line of the HTTP/2 connection preface (RFC 9113 §3.4)."""

WIRE_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
"""The methods that the backend's protocol has names for."""

_METHODS = {name.encode(): name for name in WIRE_METHODS}
_VERSIONS = frozenset((b"HTTP/1.1", b"HTTP/1.0"))
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")  # RFC 9110 §5.6.2, with a limit of our own
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9][ \t]+([1-9][0-9]{2})(?=[ \t\r\n])")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://([^/?#]*)([^?#]*)")  # RFC 3986 §3
# Runs of blanks, and blanks inside the target, are tolerated as RFC 9112 §3 allows.
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64})[ \t]++([^\n]*[^ \t\n])[ \t]++(HTTP/[0-9]\.[0-9])[ \t]*\r?\n"
)
# None of these ends in another one's name.
_EXTENSION_METHODS = (b"PROPFIND", b"REPORT", b"SEARCH", b"MKCOL", b"COPY", b"MOVE", b"PURGE", b"QUERY")
_KNOWN_METHODS = tuple(name + b" " for name in (*_METHODS, *_EXTENSION_METHODS))
_KNOWN_METHOD = re.compile(b"|".join(_KNOWN_METHODS))
# What may follow where `_CUT_LINE` says nothing yet: a scheme or nothing, an authority, an asterisk (RFC 9112 §3.2).
_SHORT_TARGET = re.compile(
    rb"(?:[A-Z]+ (?:h(?:t(?:t(?:p(?:s?(?::/?)?)?)?)?)?)?"
    rb"|CONNECT [^\x00-\x20\x7f]*(?: [HTP/1.01]*)?\r?|OPTIONS \*(?: [HTP/1.01]*)?\r?)\Z"
)
_CUT_LINE = re.compile(rb"[A-Z]+ (?:/|https?://)[^\x00-\x20\x7f]*(?: [HTP/1.01]*)?\r?\Z")
_LONG_TARGET = 256
_STATUS_LINE_START = re.compile(rb"HTTP/1\.[0-9][ \t]+[1-9][0-9]{2}(?:[ \t\r\n]|\Z)")
_REQUEST_LINE_BEGINNING = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}(?:\Z|[ \t])")
_FIELD_BEGINNING = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*:|\Z)|\r?(?:\n|\Z)")
_STATUS_LINE_PREFIX = b"HTTP/1."
_RARE_FIELD = re.compile(rb"\n(transfer-encoding|%b)[ \t]*:" % b"|".join(trace_context.HEADER_NAMES)).search
_COLON = 58


RequestHead = tuple[str, str, str | None, int, "TraceContext | None"]
"""Method, path, host, content (a length, `CHUNKED` or `INVALID`), trace context. A plain tuple is cheapest to make."""

ResponseHead = tuple[int, int]
"""Status, and content: a length, `CHUNKED`, `UNTIL_CLOSE` or `INVALID`."""


def head_end(data: bytes | bytearray, start: int) -> int:
    """Position after the first empty line at or after `start`, -1 if there is none.

    Lines end in CRLF or, tolerated, in a bare LF (RFC 9112 §2.2).
    """
    end = data.find(b"\n\r\n", start)
    if end < 0:
        bare = data.find(b"\n\n", start)
        return bare + 2 if bare >= 0 else -1
    bare = data.find(b"\n\n", start, end + 1)
    return bare + 2 if bare >= 0 else end + 3


def begins_message(data: bytes, *, response: bool) -> bool:
    """Whether bytes that are known to begin a message begin with a whole start line."""
    return (_STATUS_LINE_START if response else _REQUEST_LINE).match(data) is not None


def resumes_message(data: bytes, *, response: bool) -> bool:
    """Whether a call's bytes begin with a start line beyond doubt: the place to pick up a lost thread.

    Stricter than `begins_message`, because a call may begin in the middle of a message: only well-known methods, and
    what follows must be a field line or an empty one. A request line may be cut by the call's end; the parser looks at
    it again when it is whole.
    """
    if response:
        line = _STATUS_LINE_START.match(data)
    elif _KNOWN_METHOD.match(data) is None:
        return False
    else:
        line = _REQUEST_LINE.match(data)
        if line is None:
            return _CUT_LINE.match(data) is not None
    if line is None:
        return False
    end = data.find(b"\n", max(line.end() - 1, 0))
    return end < 0 or _FIELD_BEGINNING.match(data, end + 1) is not None


def may_resume_message(data: bytes) -> bool:
    """Whether a call's bytes can be the beginning of what `resumes_message` takes for a request."""
    if resumes_message(data, response=False):
        return True
    method = _KNOWN_METHOD.match(data)
    if method is None:
        return any(name.startswith(data) for name in _KNOWN_METHODS)
    return _SHORT_TARGET.match(data) is not None


def expects_continue(head: bytes) -> bool:
    """Whether a request's content may wait for an interim response (RFC 9110 §10.1.1)."""
    value = header(head, b"expect")
    return value is not None and b"100-continue" in value.lower()


def long_target(data: bytes) -> bool:
    """Whether this is the beginning of a request line that is too long for anything else."""
    return len(data) >= _LONG_TARGET and _KNOWN_METHOD.match(data) is not None and _CUT_LINE.match(data) is not None


def may_begin_message(data: bytes | bytearray, *, response: bool) -> bool:
    """Whether these bytes, with no line end yet, can be the beginning of a start line."""
    if response:
        return data.startswith(_STATUS_LINE_PREFIX) or _STATUS_LINE_PREFIX.startswith(data)
    return _REQUEST_LINE_BEGINNING.match(data) is not None


def parse_request(head: bytes) -> RequestHead | None:
    """Reads a request's header section, request line to empty line; `None` if its first line is not a request line."""
    line_end = head.find(b"\n")
    parts = head[:line_end].rstrip(b"\r").split(b" ")
    if len(parts) == 3 and parts[2] in _VERSIONS and parts[1]:
        token, target, _ = parts
    else:
        match = _REQUEST_LINE.match(head)
        if match is None or not match[3].startswith(b"HTTP/1"):
            return None
        token, target = match[1], match[2]
    method = _METHODS.get(token)
    if method is None:
        if not _TOKEN.fullmatch(token):
            return None
        method = token.decode()
    lowered = head.lower()
    host = None
    position = lowered.find(b"\nhost:", line_end)
    if position >= 0:
        end = head.find(b"\n", position + 6)
        folded = head[end + 1] in b" \t"
        host = _value(head, position + 6) if folded else head[position + 6 : end].strip()
    if target[:1] == b"/":
        query = target.find(b"?")
        path = target[:query] if query >= 0 else target
        if b"#" in path:
            path = path.partition(b"#")[0]
    elif method == "CONNECT":  # authority-form, RFC 9112 §3.2.3: the authority is the host, there is no path
        host = target
        path = b""
    elif (match := _ABSOLUTE.match(target)) is not None:  # absolute-form beats the Host field, §3.2.2
        host = match[1].rpartition(b"@")[2]
        path = match[2] or b"/"
    else:  # asterisk-form, or something odd: as it is
        path = target.partition(b"?")[0].partition(b"#")[0]
    found: dict[bytes, bytes] = {}
    match = _RARE_FIELD(lowered, line_end)
    while match is not None:
        position = match.end()
        found.setdefault(match[1], _value(head, position))
        match = _RARE_FIELD(lowered, position)
    if token == b"CONNECT":
        content = 0
    elif b"transfer-encoding" in found:
        content = _unusual_content(lowered, line_end, 0, INVALID)
    else:
        position = lowered.find(b"\ncontent-length", line_end)
        content = 0 if position < 0 else _length(lowered, position, line_end, 0)
    trace = trace_context.extract(found.get) if found else None
    if len(path) > texts.MAX_PATH or (host is not None and len(host) > texts.MAX_HOST):
        host_text = None if host is None else texts.text(host, texts.MAX_HOST)
        return method, texts.text(path, texts.MAX_PATH), host_text, content, trace
    try:
        return method, path.decode(), None if host is None else host.decode(), content, trace
    except UnicodeDecodeError:
        host_text = None if host is None else host.decode("utf-8", "replace")
        return method, path.decode("utf-8", "replace"), host_text, content, trace


def parse_response(head: bytes) -> ResponseHead | None:
    """Reads a response's header section, status line to empty line; `None` if its first line is not a status line."""
    match = _STATUS_LINE.match(head)
    if match is None:
        return None
    lowered = head.lower()
    if b"\ntransfer-encoding" in lowered:
        return int(match[1]), _unusual_content(lowered, match.end(), UNTIL_CLOSE, UNTIL_CLOSE)
    position = lowered.find(b"\ncontent-length", match.end())
    return int(match[1]), UNTIL_CLOSE if position < 0 else _length(lowered, position, match.end(), UNTIL_CLOSE)


def header(head: bytes, name: bytes) -> bytes | None:
    """The value of the first field called `name` (in lower case), `None` if there is none."""
    position = head.lower().find(b"\n" + name + b":")
    return None if position < 0 else _value(head, position + len(name) + 2)


def _value(head: bytes, start: int) -> bytes:
    """The field value that begins at `start`, unfolded (obs-fold, RFC 9112 §5.2) and without blanks around it."""
    end = head.find(b"\n", start)
    if end < 0:
        end = len(head)
    if head[end + 1 : end + 2] not in (b" ", b"\t"):
        return head[start:end].strip()
    lines = [head[start:end].strip()]  # joined once: a head may be thousands of folded lines
    while head[end + 1 : end + 2] in (b" ", b"\t"):
        start = end + 1
        end = head.find(b"\n", start)
        if end < 0:
            end = len(head)
        lines.append(head[start:end].strip())
    return b" ".join(filter(None, lines))


def _length(lowered: bytes, position: int, start: int, absent: int) -> int:
    """The Content-Length whose field begins at `position`, if it is one plain number; else the general way."""
    value_start = position + 15
    end = lowered.find(b"\n", value_start)
    if lowered[value_start] == _COLON and lowered[end + 1] not in b" \t":
        value = lowered[value_start + 1 : end].strip()
        if value.isdigit() and len(value) <= texts.MAX_DIGITS and lowered.find(b"\ncontent-length", end) < 0:
            return int(value)
    return _unusual_content(lowered, start, absent, INVALID)


def _unusual_content(lowered: bytes, start: int, absent: int, foreign: int) -> int:
    """How the content is delimited: a length, `CHUNKED`, `INVALID`, `absent` without framing fields.

    `foreign` stands for a Transfer-Encoding whose last coding is not chunked: an error in a request, until close in a
    response (RFC 9112 §6.3).
    """
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in _fields(lowered[start:]):
        if name == b"content-length":
            lengths += value.split(b",")
        elif name == b"transfer-encoding":
            codings += value.split(b",")
    # Empty list elements are ignored (RFC 9110 §5.6.1.2); `identity` is RFC 2616's way of saying nothing.
    codings = [
        name for name in (coding.partition(b";")[0].strip() for coding in codings) if name not in (b"", b"identity")
    ]
    if codings:
        return CHUNKED if codings[-1] == b"chunked" else foreign
    values = {length.strip() for length in lengths}
    if not values:
        return absent
    value = values.pop()
    if values or not value.isdigit() or len(value) > texts.MAX_DIGITS:
        return INVALID
    return int(value)


def _fields(lowered: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All (name, unfolded value) after the start line. Blanks before the colon are dropped, as lenient servers do."""
    position = lowered.find(b"\n")
    while 0 <= position < len(lowered) - 1:
        end = lowered.find(b"\n", position + 1)
        colon = lowered.find(b":", position + 1, end if end >= 0 else len(lowered))
        if colon >= 0 and lowered[position + 1] not in b" \t":
            yield lowered[position + 1 : colon].strip(), _value(lowered, colon + 1)
        position = end
