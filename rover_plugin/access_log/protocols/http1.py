# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.0 and HTTP/1.1 message framing (RFC 9112), with the request a response answers as its context.

Theory of operation. Each side is a `_Half`: a state, the exchange it is filling, and how many bytes of the present part
are still to come. `receive` walks a call's bytes from state to state. Only a header section, a chunk-size line or a
trailer line that is cut by the end of a call is ever kept, and the search for its end goes on where it stopped. Content
is counted, never looked at, so bytes that were not copied (`unseen`) or not even recorded (`gap`) cost nothing there.
Where they hit framing, the side is *lost*: it picks up the thread at the next call that begins with a start line. Which
response belongs to which request, then and always, is `http1_pairing`'s business.

What is in an exchange:

- header bytes: the final response's header section. Interim (1xx) responses and trailers are in no size, but the calls
  that carried them are in the exchange;
- a header section that was cut still yields the fields seen, labelled; a framing that cannot be trusted (conflicting
  Content-Length, bad chunk size; RFC 9112 §6.3) is counted and labelled `truncated`;
- any token as method; those that the backend has no name for are counted;
- at most `MAX_CALLS` calls: the further calls of a very long message are `loose`, the times and sizes go on.

Tolerated as most servers do: bare LF, empty lines before a request, obs-fold, any token as method.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rover_plugin.access_log.model import Call, Completeness, EndedBy, Exchange, Operation, ProtocolName, Side
from rover_plugin.access_log.protocols.analyzer import NOBODY, Framing, Handover, Piece
from rover_plugin.access_log.protocols.http1_head import (
    CHUNKED,
    INVALID,
    PREFACE_LINE,
    UNTIL_CLOSE,
    WIRE_METHODS,
    begins_message,
    expects_continue,
    head_end,
    header,
    may_begin_message,
    may_resume_message,
    parse_request,
    parse_response,
    resumes_message,
)
from rover_plugin.access_log.protocols.http1_pairing import Pairing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.protocols.analyzer import Ends, Part
    from rover_plugin.access_log.protocols.http1_head import RequestHead

MAX_HEAD = 65_536
"""Bytes of a header section; a longer one is counted and its message labelled `truncated`."""

MAX_CALLS = 512
"""Calls kept in one exchange."""

_MAX_CHUNK_LINE = 16_384
_MAX_PARKED = 65_536
_MAX_PARKED_CALLS = 256
_MAX_CHUNK_DIGITS = 15
_HEX = b"0123456789abcdefABCDEF"
_LONGEST_TOKEN = 80
_CR = 13
_LF = 10

_READ = Operation.READ
_TRUNCATED = Completeness.TRUNCATED
_GAP = Completeness.GAP
_COMPLETE = Completeness.COMPLETE


# What a side's next byte is. Plain numbers in this order: comparing them is a good part of the work.
_START = 0  # of a message, or of an empty line before it
_HEAD = 1  # inside a header section that began in an earlier call
_LENGTH = 2  # content, `remaining` bytes of it
_CHUNK_DATA = 3  # content of a chunk, `remaining` bytes of it
_CHUNK_END = 4  # the CRLF after it, `remaining` bytes of it
_CHUNK_SIZE = 5  # inside a chunk-size line
_TRAILER = 6  # inside the trailer section; `remaining` bytes of it may still come
_UNTIL_CLOSE = 7  # content until the connection closes
_OFFERED = 8  # of a request's content, `remaining` bytes or CHUNKED; or, if it is declined, of the next request
_LOST = 9  # unknown
_PARKED = 10  # of a request, or of a tunnel: the answer to the last request will tell
_DONE = 11  # not HTTP/1's any more

_COUNTED = frozenset((_LENGTH, _CHUNK_DATA, _CHUNK_END))
_IN_CHUNKS = frozenset((_CHUNK_DATA, _CHUNK_END, _CHUNK_SIZE))
_FRAMING = {_LENGTH: Framing.HEAD, _CHUNK_DATA: Framing.CHUNK, _LOST: Framing.LOST}


class _Half:
    """One side of the connection."""

    __slots__ = ("begin", "buffer", "calls", "exchange", "first", "method", "offer", "remaining", "side", "state")

    def __init__(self, side: Side, state: int) -> None:
        self.side = side
        self.state = state
        self.exchange: Exchange | None = None
        self.method: str | None = None  # of the request that the present response answers, as far as that is known
        self.remaining = 0
        self.offer: int | None = None  # the content that was declined if what is read now is a request: as `remaining`
        self.buffer = bytearray()  # a cut header section or line
        self.first: Call | None = None  # the call in which a cut header section begins,
        self.begin = -1  # and the position of its first byte in the stream
        self.calls: list[Call] = []  # of a header section, or of interim responses, before there is an exchange


class Http1Analyzer:
    """An `Analyzer` for one HTTP/1 connection.

    Args:
        late_join: the first bytes it is given may not be the connection's first (they may be in the middle of a
            message, or answer a request never seen).
    """

    protocol = ProtocolName.HTTP1

    def __init__(self, *, late_join: bool = False) -> None:
        self.exchanges: list[Exchange] = []
        self.loose: list[Call] = []
        self.errors: dict[str, int] = defaultdict(int)
        self.handover: Handover | None = None
        state = _LOST if late_join else _START
        self._request = _Half(Side.REQUEST, state)
        self._response = _Half(Side.RESPONSE, state)
        doubt = Completeness.LATE_JOIN if late_join else None
        self._pairing = Pairing(self.exchanges, self.loose, self.errors, doubt)
        self._parked: list[Piece] = []
        self._parked_lost = False
        self._fresh = False  # the present call is in nobody's list yet
        self._unseen = 0  # bytes of the present call that follow those that were copied

    def receive(self, side: Side, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        """See `Analyzer.receive`."""
        if side:
            half = self._response
            previous, self._pairing.latest_response = self._pairing.latest_response, call
            if half.state == _START and not unseen and not parts and self._whole_response(call, data):
                return
        else:
            half = self._request
            previous, self._pairing.latest_request = self._pairing.latest_request, call
            if half.state == _START and not unseen and not parts and self._whole_request(call, data):
                return
        self._fresh = True
        self._unseen = unseen
        for part in parts:
            self._unseen += len(part.data) + part.unseen
        if half.state >= _LENGTH:
            self._own_continued(half, call, previous, data)
        elif half.state == _HEAD:
            half.calls.append(call)
            self._fresh = False
        self._take_bytes(half, call, data, unseen, parts)
        for index, part in enumerate(parts, 1):
            if half.state >= _PARKED:  # and so is the rest of the call
                break
            self._unseen -= unseen + len(part.data)
            unseen = part.unseen
            self._take_bytes(half, call, part.data, unseen, parts[index:], part)
        if self._fresh:
            self._fresh = False
            self.loose.append(call)

    def _take_bytes(
        self, half: _Half, call: Call, data: bytes, unseen: int, parts: Sequence[Part], chunks: Part | None = None
    ) -> None:
        """Takes bytes of a call: those of `chunks`, or its first; `parts` follow."""
        size = len(data)
        position = 0
        while position < size:
            state = half.state
            if state <= _HEAD:
                position = self._head(half, call, data, position)
            elif state <= _CHUNK_DATA:
                position = self._content(half, size, position)
            elif state == _CHUNK_SIZE:
                position = self._chunk_size(half, data, position)
            elif state == _CHUNK_END:
                position = self._chunk_end(half, data, position)
            elif state == _TRAILER:
                position = self._trailer(half, data, position)
            elif state == _UNTIL_CLOSE:
                _add_content(half, size - position)
                position = size
            elif state == _OFFERED:
                self._offered(half, call, data, position)
            else:
                break
        if half.state >= _PARKED:
            self._set_aside(half, Piece(half.side, call, data[position:], unseen, parts))
        elif unseen:
            if chunks is not None and chunks.content >= 0:
                self._pass_chunks(half, chunks)
            else:
                self._skip(half, unseen, _TRUNCATED)

    def gap(self, side: Side, size: int, *, recorded: bool = False) -> None:
        """See `Analyzer.gap`."""
        if size:
            self._skip(self._response if side else self._request, size, _TRUNCATED if recorded else _GAP)

    def expire(self, before_ns: int) -> None:
        """See `Analyzer.expire`."""
        for half in (self._response, self._request):
            exchange = half.exchange
            if exchange is None or exchange.end_ns >= before_ns:
                continue
            if half.state == _LOST:
                self._end(half)
            elif half.state == _OFFERED and self._pairing.answered(exchange):
                half.state = _LOST
                self._end(half)
        if self._response.state != _HEAD:  # else the first of them is being answered
            self._pairing.expire(before_ns)

    def close(self, now_ns: int, ended_by: Ends = NOBODY) -> None:  # noqa: ARG002 the last byte's time is what counts
        """See `Analyzer.close`."""
        for half in (self._response, self._request):
            if half.state == _HEAD:
                if half.offer is not None and half.exchange is not None:
                    half.exchange.ended_by = ended_by[half.side]
                self._cut_head(half, _TRUNCATED)
                if half.side and half.exchange is None:
                    self._pairing.cut_answer(ended_by[Side.RESPONSE])
            if half.exchange is not None:
                self._cut(half, half.exchange, ended_by[half.side])
                self._end(half)
            self.loose += half.calls
            half.calls = []
            half.buffer.clear()
            half.state = _DONE
        self.loose += [piece.call for piece in self._parked]
        self._parked = []
        self._pairing.close(ended_by[Side.RESPONSE])

    def held_bytes(self) -> int:
        """See `Analyzer.held_bytes`."""
        buffered = len(self._request.buffer) + len(self._response.buffer)
        return buffered + sum(len(piece.data) for piece in self._parked) + self._pairing.held_bytes()

    def unneeded(self, side: Side) -> int:
        """See `Analyzer.unneeded`."""
        half = self._response if side else self._request
        if half.state in (_LENGTH, _CHUNK_DATA):
            # Without the request, a Content-Length may be that of a HEAD response: the next bytes must be looked at.
            return half.remaining if _framed(half) else 0
        if half.state == _DONE or (half.state == _UNTIL_CLOSE and _framed(half)):
            return -1
        return 0

    def framing(self, side: Side) -> Framing:
        """See `Analyzer.framing`."""
        half = self._response if side else self._request
        return _FRAMING.get(half.state, Framing.UNKNOWN)

    # Nearly all traffic: a call that carries one whole message, when nothing else is under way. These two do what the
    # general way does, in three quarters of its time; whatever is unusual, they leave to it.

    def _whole_request(self, call: Call, data: bytes) -> bool:
        pairing = self._pairing
        if pairing.queue or not pairing.resting() or self._response.exchange is not None:
            return False
        size = len(data)
        end = head_end(data, 0)
        if end < 0 or end > MAX_HEAD:
            return False
        parsed = parse_request(data if end == size else data[:end])
        if parsed is None:
            return False
        method, path, host, content, trace = parsed
        if content != size - end or method == "CONNECT" or method not in WIRE_METHODS:
            return False
        start_ns = call.exit_ns if call.operation == _READ else call.enter_ns
        pairing.queue.append(
            Exchange(
                1,
                method,
                path,
                host,
                None,
                end,
                content,
                0,
                0,
                start_ns,
                call.exit_ns,
                trace,
                _COMPLETE,
                None,
                None,
                None,
                [call],
            )
        )
        return True

    def _whole_response(self, call: Call, data: bytes) -> bool:
        pairing = self._pairing
        queue = pairing.queue
        if len(queue) != 1 or self._request.state != _START or self._response.calls or not pairing.resting():
            return False
        exchange = queue[0]
        if call.exit_ns < exchange.start_ns or exchange.method == "CONNECT":
            return False
        size = len(data)
        end = head_end(data, 0)
        if end < 0 or end > MAX_HEAD:
            return False
        parsed = parse_response(data if end == size else data[:end])
        if parsed is None:
            return False
        status, content = parsed
        if exchange.method == "HEAD" or status == 204 or status == 304:  # noqa: PLR1714 - hot; RFC 9112 §6.3
            content = 0
        if content != size - end or status < 200:
            return False
        exchange.status = status
        exchange.response_header_bytes = end
        exchange.response_body_bytes = content
        exchange.calls.append(call)
        if call.exit_ns > exchange.end_ns:  # noqa: PLR1730 - max() is a call
            exchange.end_ns = call.exit_ns
        del queue[0]
        self.exchanges.append(exchange)
        return True

    # Calls

    def _own_continued(self, half: _Half, call: Call, previous: Call | None, data: bytes) -> None:
        """Gives a call to the message that it goes on with; a lost side may find its thread again here."""
        exchange = half.exchange
        if half.state == _LOST:
            if self._resumes(half, call, previous, data):
                if exchange is not None:
                    self._end(half)
                half.state = _START
                return
            if half.side is Side.RESPONSE:
                self._settle_cut_request()
                exchange = half.exchange
                self._pairing.lose_responses(_TRUNCATED, exchange)
        elif half.state == _OFFERED and data:
            return
        elif not _framed(half) and _begins_response(data, 0):
            self._end(half)
            half.state = _START
            return
        if exchange is not None:
            self._own(exchange, call)

    def _resumes(self, half: _Half, call: Call, previous: Call | None, data: bytes) -> bool:
        """Whether a lost side's bytes begin a message.

        They are the one before, going on, where the other side has not moved since, unless the client does not wait:
        content may look like anything. And by its position the response looked for is known by its first bytes.
        """
        if not resumes_message(data, response=half.side is Side.RESPONSE):
            return (
                half.side is Side.RESPONSE
                and data != b""
                and may_begin_message(data, response=True)
                and self._pairing.begins_reply(call, self._stream_position(call, data, 0))
            )
        return previous is None or call.opposite < 0 or call.opposite != previous.opposite or self._pairing.pipelines

    def _own(self, exchange: Exchange, call: Call) -> None:
        self._fresh = False
        if len(exchange.calls) < MAX_CALLS:
            exchange.calls.append(call)
        else:
            self.loose.append(call)
        exchange.end_ns = max(exchange.end_ns, call.exit_ns)

    def _stream_position(self, call: Call, data: bytes, position: int) -> int:
        """Position of `data[position]` in its stream; -1 if not known."""
        if call.position < 0:
            return -1
        return (call.position + call.size - self._unseen - len(data) + position) & 0xFFFFFFFF

    def _take_calls(self, half: _Half, call: Call) -> list[Call]:
        """The calls of a message whose header section ends in this one."""
        calls = half.calls
        half.calls = []
        if self._fresh:
            self._fresh = False
            calls.append(call)
        return calls

    # Header sections

    def _head(self, half: _Half, call: Call, data: bytes, position: int) -> int:
        """Takes bytes of a header section; returns the position after them."""
        buffer = half.buffer
        if half.state == _START:
            while data[position] == _CR or data[position] == _LF:  # RFC 9112 §2.2
                position += 1
                if position == len(data):
                    return position
            end = head_end(data, position)
            if end < 0 or end - position > MAX_HEAD:
                half.state = _HEAD
                half.remaining = 0
                half.first = call
                half.begin = self._stream_position(call, data, position)
                if self._fresh:
                    self._fresh = False
                    half.calls.append(call)
                buffer += memoryview(data)[position : position + MAX_HEAD + 1]
                self._check_cut_head(half, call, 0)
                return len(data)
            head = data if end - position == len(data) else data[position:end]
        else:
            before = len(buffer)
            searched = max(0, before - 2)
            buffer += memoryview(data)[position : position + MAX_HEAD + 1]
            end = head_end(buffer, searched)
            if end < 0 or end > MAX_HEAD:
                self._check_cut_head(half, call, before)
                return len(data)
            head = bytes(memoryview(buffer)[:end])
            half.buffer = bytearray()
            end += position - before
        half.state = _START
        if half.side:
            return self._response_head(half, call, head, data, end)
        return self._request_head(half, call, head, data, end)

    def _check_cut_head(self, half: _Half, call: Call, checked: int) -> None:
        """Goes on with a header section in the next call, if it can be one and is not too long."""
        buffer = half.buffer
        response = half.side is Side.RESPONSE
        if half.offer is not None and not self._declines(half, call, bytes(buffer)):
            return
        if len(buffer) > MAX_HEAD:
            self._lose(half, _TRUNCATED, "http1_head_too_large")
        elif half.remaining == 0:  # the start line is not known to be one
            if buffer.find(b"\n", checked) >= 0:
                if begins_message(bytes(buffer), response=response):
                    half.remaining = 1
                else:
                    self._lose(half, _TRUNCATED, "http1_bad_start_line")
            elif checked < _LONGEST_TOKEN and not may_begin_message(buffer, response=response):
                self._lose(half, _TRUNCATED, "http1_bad_start_line")

    def _request_head(self, half: _Half, call: Call, head: bytes, data: bytes, position: int) -> int:
        if half.offer is not None and not self._declines(half, call, head):
            return position
        parsed = parse_request(head)
        if parsed is None:
            if head.startswith(PREFACE_LINE) and (start := self._preface(half, head, position)) >= 0:
                return start
            self._lose(half, _TRUNCATED, "http1_bad_start_line")
            return len(data)
        if parsed[0] not in WIRE_METHODS:
            self._pairing.count("http1_other_method")
        content = parsed[3]
        available = len(data) - position
        if 0 <= content <= available:
            exchange, first = self._new_request(half, call, parsed, len(head))
            exchange.request_body_bytes = content
            self._pairing.add_request(exchange, first)
            if parsed[0] == "CONNECT":
                half.state = _PARKED
            self._check_early_response(parsed[0])
            return position + content
        half.exchange = self._begin_request(half, call, parsed, len(head))
        if not available and content != INVALID and expects_continue(head):
            half.remaining = content
            half.state = _OFFERED
        elif content >= 0:
            half.remaining = content
            half.state = _LENGTH
        elif content == CHUNKED:
            half.state = _CHUNK_SIZE
        else:
            self._lose(half, _TRUNCATED, "http1_bad_content_length")
            return len(data)
        return position

    def _new_request(self, half: _Half, call: Call, parsed: RequestHead, size: int) -> tuple[Exchange, Call]:
        """A request's exchange, and the call in which it began."""
        response = self._response
        if response.exchange is not None and response.state == _LOST:
            self._end(response)
        first = half.first
        if first is None and self._fresh:
            self._fresh = False
            first = call
            calls = [call]
        else:
            first = first or call
            half.first = None
            calls = self._take_calls(half, call)
        start_ns = first.exit_ns if first.operation == _READ else first.enter_ns
        method, path, host, _, trace = parsed
        return Exchange(
            1,
            method,
            path,
            host,
            None,
            size,
            0,
            0,
            0,
            start_ns,
            call.exit_ns,
            trace,
            _COMPLETE,
            None,
            None,
            None,
            calls,
        ), first

    def _begin_request(self, half: _Half, call: Call, parsed: RequestHead, size: int) -> Exchange:
        exchange, first = self._new_request(half, call, parsed, size)
        exchange = self._pairing.begin_request(exchange, first)
        self._check_early_response(parsed[0])
        return exchange

    def _check_early_response(self, method: str) -> None:
        """A response that came before its request may have been taken for one with content."""
        response = self._response
        if method == "HEAD" and response.exchange is not None and response.exchange.method == "HEAD":
            response.state = _START
            self._end(response)

    def _response_head(self, half: _Half, call: Call, head: bytes, data: bytes, position: int) -> int:
        parsed = parse_response(head)
        if parsed is None:
            self._lose(half, _TRUNCATED, "http1_bad_start_line")
            return len(data)
        status, content = parsed
        begin = -1
        if self._pairing.doubt is not None:
            begin = half.begin if half.first else self._stream_position(call, data, position - len(head))
        if status < 200 and status != 101:
            self._interim(half, call, begin)
            return position
        exchange, method = self._begin_response(half, call, status, len(head), begin)
        if status == 101 or (method == "CONNECT" and status < 300):
            self._switch(exchange, head, status)
            return position
        if method == "HEAD" or status in (204, 304) or (method is None and _begins_response(data, position)):
            content = 0  # RFC 9112 §6.3
        if self._request.state == _PARKED and not self._pairing.queue:
            self._resume()
        if 0 <= content <= len(data) - position:
            exchange.response_body_bytes = content
            self._end_response(exchange)
            return position + content
        half.exchange = exchange
        if content > 0:
            half.remaining = content
            half.state = _LENGTH
        elif content == CHUNKED:
            half.state = _CHUNK_SIZE
        elif content == UNTIL_CLOSE:
            half.state = _UNTIL_CLOSE
        else:
            self._lose(half, _TRUNCATED, "http1_bad_content_length")
            return len(data)
        return position

    def _begin_response(
        self, half: _Half, call: Call, status: int, size: int, begin: int
    ) -> tuple[Exchange, str | None]:
        if self._request.state == _HEAD:
            self._settle_cut_request()
        exchange, method = self._pairing.begin_response(half.first or call, begin)
        half.method = method
        half.first = None
        exchange.status = status
        exchange.response_header_bytes = size
        if self._fresh and not half.calls:
            self._fresh = False
            exchange.calls.append(call)
        else:
            exchange.calls += self._take_calls(half, call)
        if call.exit_ns > exchange.end_ns:  # noqa: PLR1730 - max() is a call
            exchange.end_ns = call.exit_ns
        return exchange, method

    def _settle_cut_request(self) -> None:
        """Before a response: a header section that is not over lost its rest, to be told later, or never had one."""
        if self._request.state == _HEAD and not self._pairing.owed():
            self._lose(self._request, _TRUNCATED)

    def _interim(self, half: _Half, call: Call, begin: int) -> None:
        """A 1xx response (RFC 9110 §15.2): its calls belong to the exchange, the final response is still to come."""
        half.first = None
        exchange = self._pairing.awaiting(begin)
        calls = self._take_calls(half, call)
        if exchange is None:
            half.calls = kept = calls
        else:
            kept = exchange.calls
            kept += calls
            exchange.end_ns = max(exchange.end_ns, call.exit_ns)
        self.loose += kept[MAX_CALLS:]
        del kept[MAX_CALLS:]

    def _cut_head(self, half: _Half, label: Completeness) -> None:
        """Makes what it can of a header section whose end will never be seen."""
        if half.offer is not None and half.exchange is not None:  # content or a request, nobody will know
            half.offer = None
            if half.exchange.completeness is _COMPLETE:
                half.exchange.completeness = label
            self._end(half)
        size = len(half.buffer)
        lines = bytes(half.buffer[: half.buffer.rfind(b"\n") + 1])
        half.buffer = bytearray()
        latest = half.calls[-1] if half.calls else half.first
        fresh, self._fresh = self._fresh, False  # the present call may be the other side's
        if lines and latest is not None:
            if half.side is Side.REQUEST:
                request = parse_request(lines + b"\r\n")
                if request is not None:
                    half.exchange = self._begin_request(half, latest, request, size)
            else:
                response = parse_response(lines + b"\r\n")
                if response is None:
                    pass
                elif response[0] < 200 and response[0] != 101:
                    self._interim(half, latest, half.begin)
                else:
                    half.exchange, _ = self._begin_response(half, latest, response[0], size, half.begin)
            if half.exchange is not None and half.exchange.completeness is _COMPLETE:
                half.exchange.completeness = label
        half.first = None
        self.loose += half.calls
        half.calls = []
        self._fresh = fresh

    # Content

    def _offered(self, half: _Half, call: Call, data: bytes, position: int) -> None:
        """What comes after a request's `Expect: 100-continue` (RFC 9110 §10.1.1) and perhaps its final response."""
        exchange = half.exchange
        pairing = self._pairing
        if exchange is None:
            answered = False
        else:
            answered = pairing.answered(exchange) or call.opposite not in (-1, pairing.responses_end())
        if answered and may_resume_message(data[position:]):
            half.offer = half.remaining
            half.state = _START
        else:
            self._accept_content(half)
            if exchange is not None and self._fresh:
                self._own(exchange, call)

    def _accept_content(self, half: _Half) -> None:
        if half.remaining == CHUNKED:
            half.remaining = 0
            half.state = _CHUNK_SIZE
        else:
            half.state = _LENGTH

    def _declines(self, half: _Half, call: Call, seen: bytes) -> bool:
        """Whether the bytes after an offer are, or can still be, the next request; else takes them as content."""
        if resumes_message(seen, response=False):
            half.offer = None
            self._end(half)
            return True
        if may_resume_message(seen):
            return True
        half.remaining, half.offer = half.offer or 0, None
        half.buffer = bytearray()
        half.first = None
        calls, half.calls = half.calls, []
        if half.exchange is not None:
            for earlier in calls:
                self._own(half.exchange, earlier)
        self._accept_content(half)
        self._take_bytes(half, call, seen, 0, ())
        return False

    def _content(self, half: _Half, size: int, position: int) -> int:
        """Counts content of known length."""
        taken = min(half.remaining, size - position)
        _add_content(half, taken)
        half.remaining -= taken
        if half.remaining == 0:
            self._end_content(half)
        return position + taken

    def _end_content(self, half: _Half) -> None:
        if half.state == _LENGTH:
            half.state = _START
            self._end(half)
        else:
            half.state = _CHUNK_END
            half.remaining = 2

    def _chunk_size(self, half: _Half, data: bytes, position: int) -> int:
        """Takes a chunk-size line with its extensions (RFC 9112 §7.1)."""
        end = data.find(b"\n", position, position + _MAX_CHUNK_LINE)
        if end < 0:
            half.buffer += memoryview(data)[position : position + _MAX_CHUNK_LINE]
            if len(half.buffer) >= _MAX_CHUNK_LINE:
                self._lose(half, _TRUNCATED, "http1_bad_chunk_size")
            return len(data)
        line = data[position:end]
        if half.buffer:
            line = bytes(half.buffer) + line
            half.buffer = bytearray()
        digits = line.partition(b";")[0].strip()
        significant = digits.lstrip(b"0")
        if not digits or len(significant) > _MAX_CHUNK_DIGITS or digits.translate(None, _HEX):
            self._lose(half, _TRUNCATED, "http1_bad_chunk_size")
            return len(data)
        if significant:
            half.remaining = int(significant, 16)
            half.state = _CHUNK_DATA
        else:
            half.remaining = MAX_HEAD
            half.state = _TRAILER
        return end + 1

    def _chunk_end(self, half: _Half, data: bytes, position: int) -> int:
        """Takes one byte of the CRLF after a chunk's content, or a bare LF."""
        byte = data[position]
        if byte == _LF:
            half.state = _CHUNK_SIZE
        elif byte == _CR and half.remaining == 2:
            half.remaining = 1
        else:
            self._lose(half, _TRUNCATED, "http1_bad_chunk_end")
            return len(data)
        return position + 1

    def _trailer(self, half: _Half, data: bytes, position: int) -> int:
        """Takes a line of the trailer section (RFC 9112 §7.1.2); an empty one ends the message."""
        end = data.find(b"\n", position)
        after = end + 1 if end >= 0 else len(data)
        half.remaining -= after - position
        if half.remaining < 0:
            self._lose(half, _TRUNCATED, "http1_trailer_too_large")
            return len(data)
        half.buffer += memoryview(data)[position:after]
        if end >= 0:
            if len(half.buffer) <= 2 and half.buffer.strip(b"\r\n") == b"":
                half.state = _START
                self._end(half)
            half.buffer.clear()
        return after

    # The end of messages

    def _end(self, half: _Half) -> None:
        """The half's present message is over."""
        exchange = half.exchange
        half.exchange = None
        if exchange is None:
            return
        if half.side is Side.RESPONSE:
            self._end_response(exchange)
        else:
            self._pairing.end_request(exchange)

    def _end_response(self, exchange: Exchange) -> None:
        self._pairing.end_response(exchange)
        request = self._request
        if request.exchange is exchange and request.state == _LOST:
            self._end(request)

    def _cut(self, half: _Half, exchange: Exchange, ended_by: EndedBy | None) -> None:
        """The connection ends before the half's present message may end (RFC 9112 §8)."""
        if half.state >= _LOST:
            return
        if half.state == _UNTIL_CLOSE and _ends_content(self._pairing.latest_response, ended_by):
            return
        if half.state == _OFFERED:  # an answer has declined its content, or there is none
            return
        if exchange.completeness is _COMPLETE and (half.side or self._pairing.answered(exchange)):
            exchange.completeness = _TRUNCATED  # else nobody has answered it, which says more
        if exchange.ended_by is None:
            exchange.ended_by = ended_by

    # Bytes that were not seen, and bytes that make no sense

    def _skip(self, half: _Half, count: int, label: Completeness) -> None:
        """Passes over `count` bytes (-1: unknown) that moved unseen."""
        while count:
            state = half.state
            exchange = half.exchange
            if exchange is not None and label is _GAP and exchange.completeness is _COMPLETE:
                exchange.completeness = _GAP
            if state == _UNTIL_CLOSE:
                _add_content(half, max(count, 0))
                return
            if state >= _PARKED:
                self._parked_lost = True
                return
            if state == _OFFERED and label is not _GAP:
                self._accept_content(half)
                continue
            if state not in _COUNTED or count < 0 or not _framed(half):
                self._lose(half, label)
                return
            taken = min(half.remaining, count)
            count -= taken
            half.remaining -= taken
            if state == _CHUNK_END:  # what follows a chunk's content can only be CRLF
                if half.remaining == 0:
                    half.state = _CHUNK_SIZE
                continue
            _add_content(half, taken)
            if half.remaining == 0:
                self._end_content(half)

    def _pass_chunks(self, half: _Half, part: Part) -> None:
        """Passes over chunks that the kernel side has walked through."""
        if half.state not in _IN_CHUNKS or half.buffer:
            self._lose(half, _TRUNCATED, "http1_bad_chunk_size")
            return
        _add_content(half, part.content)
        half.state = _CHUNK_DATA if part.left else _CHUNK_END
        half.remaining = part.left or 2

    def _lose(self, half: _Half, label: Completeness, reason: str = "") -> None:
        """Nothing more is known of this side until a call begins with a start line."""
        if reason:
            self._pairing.count(reason)
        if half.side is Side.RESPONSE:
            self._settle_cut_request()
        if half.state == _HEAD:
            self._cut_head(half, label)
        half.buffer = bytearray()
        exchange = half.exchange
        if exchange is not None and exchange.completeness is _COMPLETE:
            exchange.completeness = label
        half.state = _LOST
        if half.side is Side.REQUEST:
            self._pairing.lose_requests(label)
        else:
            self._pairing.lose_responses(label, exchange)
        if label is _GAP:  # the next bytes may be another message's
            self._end(half)

    # Other protocols on the same connection

    def _switch(self, exchange: Exchange, head: bytes, status: int) -> None:
        """The response ends HTTP/1 on this connection: 101, or 2xx to CONNECT."""
        if self._request.exchange is not None:
            self._cut(self._request, self._request.exchange, None)
        self._request.state = self._response.state = _DONE
        upgrade = header(head, b"upgrade") if status == 101 else None
        parked, self._parked = self._parked, []
        if upgrade is None or b"h2c" not in upgrade.lower():
            self.handover = Handover(ProtocolName.TCP)
            self.loose += [piece.call for piece in parked]
            self._end_response(exchange)
            return
        self.handover = Handover(ProtocolName.HTTP2, parked)
        exchange = self._pairing.take_upgraded(exchange)
        if exchange.path is None:  # its request was never seen
            self._end_response(exchange)
        else:
            exchange.status = None
            exchange.response_header_bytes = 0
            self.handover.upgraded = exchange
            if self._request.exchange is exchange:
                self._request.exchange = None

    def _preface(self, half: _Half, head: bytes, position: int) -> int:
        """HTTP/2 from here on, or as soon as an upgrade is answered. Returns where it begins, -1 if that is lost."""
        start = position - len(head)
        calls = half.calls
        if not calls and self._fresh and self._pairing.queue:
            half.state = _PARKED
            return start
        rest = []
        if calls and calls[0] is half.first:
            rest.append(Piece(half.side, calls[0], head[:-start], 0))
            self.loose += calls[1:-1]
            half.calls = []
            self._fresh = True
            start = 0
        elif not self._fresh:
            return -1
        half.first = None
        self._request.state = self._response.state = _DONE
        self.handover = Handover(ProtocolName.HTTP2, rest)
        return start

    def _set_aside(self, half: _Half, piece: Piece) -> None:
        """Keeps bytes for whoever is to have them, together with their call."""
        call = piece.call
        if not piece.data and not piece.unseen and not piece.parts:
            return
        if half.state == _PARKED:
            held = sum(parked.size for parked in self._parked)
            if self._fresh and len(self._parked) < _MAX_PARKED_CALLS and held + piece.size <= _MAX_PARKED:
                self._parked.append(piece)
                self._fresh = False
            else:
                self._parked_lost = True
        elif self.handover is not None and self.handover.protocol is ProtocolName.HTTP2:
            upgraded = self.handover.upgraded
            if not self._fresh and upgraded is not None and upgraded.calls and upgraded.calls[-1] is call:
                upgraded.calls.pop()
                self._fresh = True
            if self._fresh:
                self.handover.rest.append(piece)
                self._fresh = False
            else:
                self._pairing.count("http1_upgrade_in_shared_call")

    def _resume(self) -> None:
        """The answer was no: what was parked is HTTP/1 after all."""
        self._request.state = _START
        parked, self._parked = self._parked, []
        if self._parked_lost:
            self._parked_lost = False
            self._lose(self._request, _TRUNCATED, "http1_parked_bytes_lost")
            self.loose += [piece.call for piece in parked]
            return
        for piece in parked:
            self.receive(piece.side, piece.call, piece.data, piece.unseen, piece.parts)


def _ends_content(latest: Call | None, ended_by: EndedBy | None) -> bool:
    """Whether content that lasts until the connection closes has ended in order.

    Its reader may have shut its own side down long before, so a writer that was not reset has written all it wanted.
    """
    if ended_by is EndedBy.LOCAL:
        return latest is None or latest.operation is not _READ
    return ended_by is None or ended_by is EndedBy.REMOTE


def _begins_response(data: bytes, position: int) -> bool:
    """Whether another response is where the content of one whose request is unknown should be (HEAD has none)."""
    if position == len(data):
        return False
    start = data[position : position + 16]
    whole = len(start) == 16
    return begins_message(start, response=True) or (not whole and may_begin_message(start, response=True))


def _framed(half: _Half) -> bool:
    """Whether a message's framing is certain: a response to HEAD says what it does not have (RFC 9112 §6.3)."""
    if not half.side or half.method is not None:
        return True
    exchange = half.exchange
    return exchange is not None and (exchange.method is not None or exchange.response_body_bytes > 0)


def _add_content(half: _Half, size: int) -> None:
    exchange = half.exchange
    if exchange is None:
        return
    if half.side:
        exchange.response_body_bytes += size
    else:
        exchange.request_body_bytes += size
