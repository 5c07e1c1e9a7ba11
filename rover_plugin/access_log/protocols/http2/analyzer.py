# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 from both directions' bytes (RFC 9113), sans-I/O: calls in, exchanges out. See `protocols.analyzer`.

Each direction has its own frame position, header block in progress and HPACK decoder; both share the streams.

What a direction can be doing when a call arrives:

- *walking*: at a frame boundary, nothing kept;
- *inside a payload nobody needs* (`left`): DATA, or a frame that says nothing to the log: counted down, not copied;
- *holding part of a frame* (`partial`): until `need` bytes of it are here;
- *seeking* (`seeker`): nobody knows where frames begin.

Sizes: header bytes are header block fragments, HEADERS and CONTINUATION, of head and trailers (not of interim
responses), without padding and priority fields. Body bytes are DATA payload without padding.

At most `MAX_CALLS` calls belong to an exchange or to one report of it; the further ones are `loose`, the times and
sizes go on.

An exchange ends when both sides have ended the stream, at RST_STREAM, or when the server's GOAWAY disowns it. It is
complete if both sides ended it, with all the content they announced (§8.1.1); `ended_by` says who cut it short.

What nobody saw may have been anything. Each side counts such losses, and each stream remembers how many there had been
when it began, and when a head of it came: so a loss concerns every open stream without a walk through them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.model import Completeness, EndedBy, Exchange, Operation, ProtocolName, Side
from rover_plugin.access_log.protocols.analyzer import NOBODY, Framing
from rover_plugin.access_log.protocols.http2 import frames
from rover_plugin.access_log.protocols.http2.half import LARGEST_SOUGHT_FRAME, MOST_CREDIT, Half
from rover_plugin.access_log.protocols.http2.resync import Segment
from rover_plugin.access_log.protocols.http2.streams import (
    BOTH_ENDS,
    DONE,
    REQUEST_END,
    REQUEST_HEAD,
    RESPONSE_END,
    RESPONSE_HEAD,
    SHORT,
    Stream,
    label_unknown,
    read_request,
    take_request,
    take_response,
)
from rover_plugin.access_log.protocols.weights import CLOSED_BYTES, EXCHANGE_BYTES, STREAM_BYTES, exchange_text_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.model import Call
    from rover_plugin.access_log.protocols.analyzer import Ends, Handover, Part
    from rover_plugin.access_log.protocols.http2.hpack import Fields

MAX_STREAMS: Final = 10_000
MAX_HEADER_BLOCK: Final = 256 * 1024
MAX_SKIPPED: Final = 1 << 20  # bytes without a frame boundary before the connection is given up
MAX_FUTILE: Final = 32  # boundaries believed in vain, with no new request between them
COST_OF_DOUBT: Final = 2048  # captured bytes that pay for one more search in a call's rest
MAX_CLOSED: Final = 1024
MAX_GOAWAYS: Final = 16  # that mean anything: a shutdown has two (§6.8), and each one walks the streams
MAX_SETTINGS_SENT: Final = 64
MAX_CALLS: Final = 512  # of one exchange
_READ: Final = Operation.READ
NEVER: Final = 1 << 32  # above every stream id

_CLEAN_END = REQUEST_HEAD | RESPONSE_HEAD | BOTH_ENDS
_CUT = frozenset({Completeness.TRUNCATED, Completeness.NO_RESPONSE})

_unpack_header = frames.FRAME_HEADER.unpack_from
_KEPT_WHOLE = frozenset({frames.RST_STREAM, frames.SETTINGS, frames.PUSH_PROMISE, frames.GOAWAY, frames.CONTINUATION})
_ON_LIVE_STREAM = frozenset({frames.DATA, frames.RST_STREAM, frames.CONTINUATION})


class Http2Analyzer:
    """Parser of one HTTP/2 connection; implements `protocols.analyzer.Analyzer`.

    Args:
        joined: the connection began before we saw it, so the first bytes may be anywhere in a frame.
        upgraded: the HTTP/1 request that became stream 1 by upgrade to h2c (RFC 7540 §3.2).

    Attributes:
        fields_known, fields_unknown: wanted fields decoded and fields unknown, counted in blocks decoded without the
            whole header table (after a late join or a loss): the recovery rate.
    """

    def __init__(self, joined: bool, upgraded: Exchange | None = None) -> None:
        self.exchanges: list[Exchange] = []
        self.loose: list[Call] = []
        self.protocol = ProtocolName.HTTP2
        self.handover: Handover | None = None
        self.errors: dict[str, int] = {}
        self.fields_known = 0
        self.fields_unknown = 0
        self._streams: dict[int, Stream] = {}
        self._request = Half(Side.REQUEST)
        self._response = Half(Side.RESPONSE)
        self._directions = (self._request, self._response)
        self._joined = joined
        # Every request on a stream from `_requests_from` to `_last_request` was seen; those below may not have been.
        self._requests_from = NEVER if joined else 0
        self._last_request = 0
        self._uncertain = joined
        self._closed: dict[int, None] = {}  # streams that ended lately, kept while a response may lack its request
        self._orphans: list[int] = []  # heap of streams whose response ended and whose request may still come
        self._goaways = 0
        self._futile = 0
        self._futile_at = 0
        self._proven = not joined  # a preface or a header block was there, so this is HTTP/2 whatever follows
        self._client_local: bool | None = None  # whether the watched process is the client
        if joined:
            self._response.seek(Completeness.LATE_JOIN)
        if upgraded is not None:
            self._adopt(upgraded)

    def _adopt(self, upgraded: Exchange) -> None:
        """Makes the request of an upgrade stream 1, already ended by the client."""
        upgraded.version = 2
        upgraded.stream_id = 1
        stream = Stream(1, upgraded)
        stream.seen = REQUEST_HEAD | REQUEST_END
        self._streams[1] = stream
        self._last_request = 1
        # The client's first SETTINGS were in the HTTP2-Settings field, which nobody kept.
        self._allow_anything(self._response)

    # The seam

    def receive(self, side: Side, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        """See `Analyzer.receive`."""
        direction = self._directions[side]
        if parts:
            claimed = self._deliver(direction, Segment(call, 0, data, unseen, claimed=False), more=True)
            for index, part in enumerate(parts, 1):
                segment = Segment(call, 0, part.data, part.unseen, claimed)
                claimed = self._deliver(direction, segment, more=index < len(parts))
            return
        if direction.slow or unseen:
            self._deliver(direction, Segment(call, 0, data, unseen, claimed=False))
            return
        claimed = self._walk(direction, call, data, 0, call, claimed=False)
        if direction.rest is not None:
            rest, direction.rest = direction.rest, None
            self._deliver(direction, Segment(call, 0, rest, 0, claimed))
        elif not claimed:
            self._place(direction, call)

    def gap(self, side: Side, size: int, *, recorded: bool = False) -> None:
        """See `Analyzer.gap`."""
        direction = self._directions[side]
        direction.started = True
        if not recorded:
            self._count("gap")
        self._pass_over(direction, None, size, Completeness.TRUNCATED if recorded else Completeness.GAP)

    def expire(self, before_ns: int) -> None:
        """Emits what has been idle since before `before_ns` and is not waiting for its peer's long answer.

        A stream without a response head comes out as NO_RESPONSE; one whose response has ended, or may have ended
        among lost bytes, comes out as it is. A stream that is alive, or idle in the middle of its response, stays.
        """
        for stream in list(self._streams.values()):
            exchange = stream.exchange
            if exchange.start_ns >= before_ns:
                break  # streams are in the order they began
            if exchange.end_ns >= before_ns:
                continue
            waits = not stream.seen & RESPONSE_HEAD or stream.seen & RESPONSE_END
            if waits or self._lost(self._request, stream) or self._lost(self._response, stream):
                self._finish(stream)

    def report_open(self, before_ns: int) -> None:
        """Puts a copy, labelled OPEN, of every exchange open since before `before_ns` into `exchanges`.

        The copy takes the calls so far, since each comes out once; sizes and end are of the exchange so far.
        """
        for stream in self._streams.values():
            exchange = stream.exchange
            if exchange.start_ns >= before_ns:
                break  # streams are in the order they began
            self.exchanges.append(replace(exchange, completeness=Completeness.OPEN))
            exchange.calls = []

    def close(self, now_ns: int, ended_by: Ends = NOBODY) -> None:  # noqa: ARG002 ends are the calls' times here
        """The connection ended: every open stream and every call kept back comes out."""
        for stream in list(self._streams.values()):
            side = self._request if stream.seen & RESPONSE_END else self._response
            self._finish(stream, None if self._lost(side, stream) else ended_by[not side.is_request])
        for direction in self._directions:
            self._release(direction)

    def held_bytes(self) -> int:
        """See `Analyzer.held_bytes`."""
        texts = sum(exchange_text_bytes(stream.exchange) for stream in self._streams.values())
        halves = self._request.held_bytes() + self._response.held_bytes()
        return len(self._streams) * (STREAM_BYTES + EXCHANGE_BYTES) + texts + halves + len(self._closed) * CLOSED_BYTES

    def unneeded(self, side: Side) -> int:
        """Capture policy: how many of this side's next bytes need not be copied; 0 = all needed, -1 = none, ever."""
        return -1 if self.protocol is ProtocolName.TCP else self._directions[side].left

    def framing(self, side: Side) -> Framing:
        """See `Analyzer.framing`."""
        direction = self._directions[side]
        if direction.seeker is not None:
            return Framing.LOST
        cut = direction.preface or direction.partial
        return Framing.UNKNOWN if cut or self.protocol is ProtocolName.TCP else Framing.FRAME

    # From calls to frames

    def _deliver(self, direction: Half, segment: Segment, *, more: bool = False) -> bool:
        """Takes a segment in whatever state the direction is, and everything a found boundary brings back.

        Args:
            direction: whose it is.
            segment: of a call.
            more: another one of the same call follows, which may bring the stream that claims it.

        Returns:
            Whether the call has been claimed, or will be without the segments that follow.
        """
        direction.started = True
        if self._client_local is None and segment.call is not None:
            self._client_local = (segment.call.operation is Operation.WRITE) is direction.is_request
        direction.credit = min(direction.credit + len(segment.data), MOST_CREDIT)
        claimed = segment.claimed
        queue = deque((segment,))
        while queue:
            segment = queue.popleft()
            call = segment.call
            seeker = direction.seeker
            if self.protocol is ProtocolName.TCP:
                if call is not None and not segment.claimed:
                    self.loose.append(call)
                claimed = True
            elif seeker is not None:
                boundary = seeker.add(call, segment.data, segment.unseen, claimed=segment.claimed)
                more = False
                claimed = True
                if boundary >= 0:
                    direction.seeker = None
                    direction.losses += boundary > 0
                    queue.extendleft(reversed(seeker.segments_from(boundary)))
                self.loose += seeker.dropped
                seeker.dropped.clear()
                if seeker.skipped > MAX_SKIPPED and not self._proven:
                    self._give_up()
            elif call is None:
                self._pass_over(direction, None, segment.unseen, Completeness.GAP)
            else:
                claimed = self._resume(direction, call, segment.data, claimed=segment.claimed)
                if direction.rest is not None:
                    queue.appendleft(Segment(call, 0, direction.rest, segment.unseen, claimed))
                    direction.rest = None
                    continue
                if segment.unseen:
                    claimed = self._pass_over(direction, call, segment.unseen, None, claimed=claimed)
                if not claimed and not more:
                    self._place(direction, call)
                    claimed = True
        return claimed

    def _place(self, direction: Half, call: Call) -> None:
        """Puts a call that no stream has claimed: aside while its frame header is incomplete, else with the loose."""
        if direction.preface or 0 < len(direction.partial) < frames.FRAME_HEADER_SIZE:
            direction.pending.append(call)
        else:
            self.loose.append(call)

    def _resume(self, direction: Half, call: Call, data: bytes, *, claimed: bool) -> bool:
        """Goes on where the last call stopped. Returns whether a stream has claimed the call."""
        at = 0
        origin = call
        if direction.left:
            at = min(direction.left, len(data))
            claimed = self._pass_left(direction, call, at, claimed=claimed)
            if direction.left:
                return claimed
        elif direction.preface:
            direction.partial += data
            if direction.partial.startswith(frames.PREFACE):
                data = bytes(direction.partial)
                at = len(frames.PREFACE)
                self._began(direction)
            elif frames.PREFACE.startswith(direction.partial):
                return claimed
            else:
                direction.rest = bytes(direction.partial)
                self._desync(direction, Completeness.LATE_JOIN, "" if self._joined else "no_preface")
                return claimed
        elif direction.partial:
            direction.partial += data
            if len(direction.partial) < direction.need:
                return self._claim(direction.partial_stream, call, claimed=claimed)
            data = bytes(direction.partial)
            origin = direction.origin or call
            if direction.pending:
                self._settle_pending(direction, data, origin)
            direction.partial.clear()
            direction.partial_stream = None
        direction.slow = False
        return self._walk(direction, call, data, at, origin, claimed=claimed)

    def _began(self, direction: Half) -> None:
        """The preface: this is the connection's first byte after all, and so is the other side's if none came yet."""
        direction.partial.clear()
        direction.preface = False
        self._proven = True
        self.loose += direction.pending
        direction.pending.clear()
        if self._joined and not self._response.started:
            self._response.from_start()
            self._uncertain = False
            # A server may send its SETTINGS before it reads anything, and they may be what was missed (§3.4).
            self._allow_anything(direction)
        if self._joined:
            self._joined = False
            self._requests_from = 0

    def _settle_pending(self, direction: Half, data: bytes, origin: Call) -> None:
        """Gives calls with the first bytes of a frame header to the stream of that frame, if `_walk` will take it."""
        head, _, stream_id = _unpack_header(data)
        kind, length = head & 0xFF, head >> 8
        stream = None
        in_order = (direction.block is not None) is (kind == frames.CONTINUATION)
        sound = head <= direction.max_head and frames.is_sound(kind, length, stream_id & frames.STREAM_ID_MASK)
        if in_order and sound and (kind == frames.DATA or length <= MAX_HEADER_BLOCK - frames.FRAME_HEADER_SIZE):
            stream = self._stream_of(direction, kind, stream_id, origin)
        if stream is None:
            self.loose += direction.pending
        else:
            for call in direction.pending:
                self._add_call(stream.exchange, call)
        direction.pending.clear()

    def _stream_of(self, direction: Half, kind: int, stream_id: int, origin: Call) -> Stream | None:
        """The live stream a frame header speaks of, begun by it where it can begin one."""
        if kind == frames.HEADERS:
            return self._stream_for_head(direction, stream_id & frames.STREAM_ID_MASK, origin)
        if kind in _ON_LIVE_STREAM:
            return self._streams.get(stream_id & frames.STREAM_ID_MASK)
        return None

    def _claim(self, stream: Stream | None, call: Call, *, claimed: bool) -> bool:
        """Adds the call to the stream unless another has claimed it; moves the exchange's end."""
        if stream is None or stream.seen & DONE:
            return claimed
        if not claimed:
            self._add_call(stream.exchange, call)
        stream.exchange.end_ns = max(stream.exchange.end_ns, call.exit_ns)
        return True

    def _add_call(self, exchange: Exchange, call: Call) -> None:
        calls = exchange.calls
        if len(calls) < MAX_CALLS:
            calls.append(call)
        else:
            self.loose.append(call)

    def _pass_left(self, direction: Half, call: Call | None, size: int, *, claimed: bool) -> bool:
        """Counts down a payload nobody needs; at its end, END_STREAM takes effect."""
        stream = direction.left_stream
        if call is not None and size:
            claimed = self._claim(stream, call, claimed=claimed)
        direction.left -= size
        if not direction.left:
            direction.left_stream = None
            direction.slow = False
            if direction.left_ends and stream is not None and not stream.seen & DONE:
                self._end(direction, stream)
        return claimed

    def _walk(self, direction: Half, call: Call, data: bytes, at: int, origin: Call, *, claimed: bool) -> bool:
        """The hot loop: whole frames from offset `at`, a frame header there. Returns whether a stream claimed the call.

        Args:
            direction: whose bytes.
            call: the call that moved the end of `data`.
            data: bytes.
            at: where the first frame header begins.
            origin: the call that moved the first byte at `at`.
            claimed: whether the call has been claimed already.
        """
        streams = self._streams
        size = len(data)
        max_head = direction.max_head
        is_request = direction.is_request
        exit_ns = call.exit_ns
        while (start := at + 9) <= size:
            head, flags, stream_id = _unpack_header(data, at)
            end = start + (head >> 8)
            kind = head & 0xFF
            if stream_id > 0x7FFFFFFF:  # the reserved bit is ignored (§4.1)
                stream_id &= 0x7FFFFFFF
            # The SETTINGS that allow a large frame may have been written by a thread whose record comes later.
            if head > max_head and (kind or stream_id not in streams):
                return self._bad_frame(direction, data, at, "frame_size", claimed=claimed)
            if kind == 0:  # DATA
                body = end - start
                pad = 0
                if flags & 0x8:
                    if start >= size:
                        break
                    pad = data[start]
                    body -= pad + 1
                    if body < 0:
                        return self._bad_frame(direction, data, at, "padding", claimed=claimed)
                stream = streams.get(stream_id)
                if stream is not None:
                    exchange = stream.exchange
                    if not claimed:
                        claimed = True
                        if len(exchange.calls) < MAX_CALLS:
                            exchange.calls.append(call)
                        else:
                            self.loose.append(call)
                    if exchange.end_ns < exit_ns:  # noqa: PLR1730 hot: a call of max() takes three times as long
                        exchange.end_ns = exit_ns
                    if is_request:
                        exchange.request_body_bytes += body
                    else:
                        exchange.response_body_bytes += body
                    if flags & 0x1 and end <= size:
                        self._end(direction, stream)
                elif not stream_id or direction.block is not None:
                    return self._bad_frame(direction, data, at, "frame_order", claimed=claimed)
                if end > size:
                    self._leave(direction, end - size, stream, pad, ends=flags & 0x1 != 0)
                    return claimed
            elif kind == 1:  # HEADERS
                if direction.block is not None or not stream_id:
                    return self._bad_frame(direction, data, at, "frame_order", claimed=claimed)
                if end > size:
                    break
                if flags & 0x28:
                    start, stop = frames.content_range(kind, flags, data, start, end)
                else:
                    stop = end
                stream = streams.get(stream_id)
                if stream is None or (is_request and not stream.seen & REQUEST_HEAD):
                    stream = self._stream_for_head(direction, stream_id, origin)
                if stream is not None:
                    exchange = stream.exchange
                    if not claimed:
                        claimed = True
                        if len(exchange.calls) < MAX_CALLS:
                            exchange.calls.append(call)
                        else:
                            self.loose.append(call)
                    if exchange.end_ns < exit_ns:  # noqa: PLR1730 hot: a call of max() takes three times as long
                        exchange.end_ns = exit_ns
                if flags & 0x4:
                    self._read_block(direction, stream, data[start:stop], flags & 0x1 != 0)
                else:
                    self._begin_block(direction, stream, data[start:stop], ends=flags & 0x1 != 0, is_push=False)
            elif kind in {8, 6, 2}:  # WINDOW_UPDATE, PING, PRIORITY
                if direction.block is not None or not frames.is_sound(kind, head >> 8, stream_id):
                    return self._bad_frame(direction, data, at, "frame_order", claimed=claimed)
                if end > size:
                    self._leave(direction, end - size, None, 0, ends=False)
                    return claimed
            elif kind in _KEPT_WHOLE:
                if not frames.is_sound(kind, head >> 8, stream_id) or (direction.block is None) is (kind == 9):
                    return self._bad_frame(direction, data, at, "frame_order", claimed=claimed)
                if end > size:
                    break
                claimed = self._rare_frame(direction, call, origin, data[at:end], claimed=claimed)
            elif end - start > LARGEST_SOUGHT_FRAME:  # of a kind that nobody has defined
                return self._bad_frame(direction, data, at, "frame_size", claimed=claimed)
            elif end > size:
                self._leave(direction, end - size, None, 0, ends=False)
                return claimed
            at = end
            origin = call
        if at < size:
            claimed = self._keep(direction, call, data[at:], origin, claimed=claimed)
        return claimed

    def _keep(self, direction: Half, call: Call, part: bytes, origin: Call, *, claimed: bool) -> bool:
        """Keeps the beginning of a frame until the rest is here."""
        need = frames.FRAME_HEADER_SIZE
        stream = None
        if len(part) >= need:
            head, flags, stream_id = _unpack_header(part)
            kind = head & 0xFF
            need = need + 1 if kind == frames.DATA and flags & frames.PADDED else need + (head >> 8)
            if need > MAX_HEADER_BLOCK:
                return self._bad_frame(direction, part, 0, "header_block_size", claimed=claimed)
            stream = self._stream_of(direction, kind, stream_id, origin)
            claimed = self._claim(stream, call, claimed=claimed)
        direction.partial += part
        direction.need = need
        direction.origin = origin
        direction.partial_stream = stream
        direction.slow = True
        return claimed

    def _leave(self, direction: Half, size: int, stream: Stream | None, pad: int, *, ends: bool) -> None:
        """Counts the next `size` bytes down without looking at them."""
        direction.left = size
        direction.left_stream = stream
        direction.left_pad = pad
        direction.left_ends = ends
        direction.slow = True

    # Frames other than DATA and HEADERS

    def _rare_frame(self, direction: Half, call: Call, origin: Call, frame: bytes, *, claimed: bool) -> bool:
        """RST_STREAM, SETTINGS, GOAWAY, PUSH_PROMISE, CONTINUATION, each whole. Returns whether the call is claimed."""
        head, flags, stream_id = _unpack_header(frame)
        kind = head & 0xFF
        stream_id &= frames.STREAM_ID_MASK
        if kind == frames.SETTINGS:
            self._settings(direction, flags, frame[frames.FRAME_HEADER_SIZE :])
        elif kind == frames.RST_STREAM:
            stream = self._streams.get(stream_id)
            claimed = self._claim(stream, call, claimed=claimed)
            if stream is not None:
                self._reset(direction, stream)
        elif kind == frames.GOAWAY:
            if not direction.is_request:
                self._disown(direction, int.from_bytes(frame[9:13]) & frames.STREAM_ID_MASK)
        elif kind == frames.CONTINUATION:
            claimed = self._claim(direction.block_stream, call, claimed=claimed)
            self._continue_block(direction, frame[frames.FRAME_HEADER_SIZE :], ends=bool(flags & frames.END_HEADERS))
        elif not direction.is_request:
            claimed = self._push_promise(direction, call, origin, frame, claimed=claimed)
        return claimed

    def _settings(self, direction: Half, flags: int, payload: bytes) -> None:
        """SETTINGS bounds the other side's encoder and frames; ACK says that side's limit is in force (§6.5.3).

        Between the two the encoder may use either limit, so the larger is allowed.
        """
        other = self._response if direction.is_request else self._request
        if flags & frames.ACK:
            if other.settings_sent:
                size = other.settings_sent.pop(0)
                if size is not None:
                    waiting = [later for later in other.settings_sent if later is not None]
                    direction.decoder.allowed = max(size, *waiting) if waiting else size
            return
        settings = frames.parse_settings(payload)
        size = settings.get(frames.SETTINGS_HEADER_TABLE_SIZE)
        direction.settings_sent.append(size)
        if size is not None and other.decoder.allowed is not None:
            other.decoder.allowed = max(size, other.decoder.allowed)
        if len(direction.settings_sent) > MAX_SETTINGS_SENT:
            direction.settings_sent.clear()
            other.decoder.allowed = None
        longest = settings.get(frames.SETTINGS_MAX_FRAME_SIZE, 0)
        if frames.DEFAULT_MAX_FRAME_SIZE <= longest <= frames.LARGEST_FRAME_SIZE:
            other.max_head = max(other.max_head, longest << 8 | 0xFF)

    @staticmethod
    def _allow_anything(direction: Half) -> None:
        """Nobody knows what the other side's SETTINGS allow this side."""
        direction.decoder.allowed = None
        direction.max_head = frames.LARGEST_FRAME_SIZE << 8 | 0xFF

    def _sender(self, direction: Half) -> EndedBy | None:
        if self._client_local is None:
            return None
        return EndedBy.LOCAL if self._client_local is direction.is_request else EndedBy.REMOTE

    def _reset(self, direction: Half, stream: Stream) -> None:
        """This side ended the stream for both (§6.4)."""
        stream.exchange.ended_by = sender = self._sender(direction)
        self._finish(stream, sender)

    def _disown(self, direction: Half, last_stream_id: int) -> None:
        """The server's GOAWAY: requests above `last_stream_id` were not and will not be processed (§6.8)."""
        if last_stream_id >= self._last_request:
            return
        self._goaways += 1
        if self._goaways > MAX_GOAWAYS:
            return
        for stream in list(self._streams.values()):
            if stream.id > last_stream_id and stream.id & 1:
                self._reset(direction, stream)

    def _push_promise(self, direction: Half, call: Call, origin: Call, frame: bytes, *, claimed: bool) -> bool:
        """A pushed request travels in the response direction and is complete with its header block (§8.4)."""
        flags = frame[4]
        start, stop = frames.content_range(frames.PUSH_PROMISE, flags, frame, frames.FRAME_HEADER_SIZE, len(frame))
        promised = int.from_bytes(frame[max(start - 4, 0) : start]) & frames.STREAM_ID_MASK
        stream = None
        if promised and not promised & 1 and promised not in self._streams:
            stream = self._begin(promised, origin)
        claimed = self._claim(stream, call, claimed=claimed)
        self._begin_block(direction, stream, frame[start:stop], ends=False, is_push=True)
        if flags & frames.END_HEADERS:
            self._end_block(direction)
        return claimed

    # Header blocks

    def _begin_block(
        self, direction: Half, stream: Stream | None, fragment: bytes, *, ends: bool, is_push: bool
    ) -> None:
        direction.block = bytearray(fragment)
        direction.block_stream = stream
        direction.block_ends = ends
        direction.block_is_push = is_push
        direction.block_damaged = False

    def _continue_block(self, direction: Half, fragment: bytes, *, ends: bool) -> None:
        block = direction.block
        if block is None:
            return
        block += fragment
        if len(block) > MAX_HEADER_BLOCK and not direction.block_damaged:
            self._count("header_block_size")
            self._damage_block(direction, Completeness.TRUNCATED)
        if ends:
            self._end_block(direction)

    def _end_block(self, direction: Half) -> None:
        block, direction.block = direction.block, None
        stream, direction.block_stream = direction.block_stream, None
        if block is None:
            return
        if not direction.block_damaged:
            self._read_block(direction, stream, bytes(block), direction.block_ends, direction.block_is_push)
        elif direction.block_ends and stream is not None and not stream.seen & DONE:
            self._end(direction, stream)

    def _damage_block(self, direction: Half, label: Completeness) -> None:
        """Reads what is there of a block whose rest is missing; forgets the table that the rest would have changed."""
        block, stream = direction.block, direction.block_stream
        if block is None:
            return
        head, fields, _, _ = direction.decoder.decode(bytes(block))
        direction.decoder.restart()
        direction.label = label
        direction.block_damaged = True
        block.clear()
        if stream is None or stream.seen & DONE:
            return
        if direction.block_is_push:
            take_request(stream, read_request(fields), 0)
        elif direction.is_request:
            take_request(stream, head, 0)
        else:
            take_response(stream, head, 0)
        stream.label = stream.label or label
        self._proven = True

    def _read_block(
        self, direction: Half, stream: Stream | None, block: bytes, ends: bool, is_push: bool = False
    ) -> None:
        """Decodes a whole header block, which every block must be for the table's sake, and gives it to its stream."""
        decoder = direction.decoder
        head, fields, unknown, error = decoder.decode(block)
        if error:
            self._count(error)
            direction.label = Completeness.GAP
        if not decoder.complete:
            self.fields_known += len(fields)
            self.fields_unknown += unknown
        if stream is None or stream.seen & DONE:
            return
        if self._uncertain:
            self._begin_head(direction, stream, fields)
        if is_push:
            take_request(stream, read_request(fields), len(block))
            stream.seen |= REQUEST_END
        elif direction.is_request:
            take_request(stream, head, len(block))
        else:
            take_response(stream, head, len(block))
        if unknown:
            label_unknown(stream, fields, direction.label, is_request=direction.is_request or is_push, ends=ends)
        if ends:
            self._end(direction, stream)

    def _begin_head(self, direction: Half, stream: Stream, fields: Fields) -> None:
        """A block after some loss: if it is a head, what was lost before it does not matter to its side any more."""
        if fields.get(b":method") or fields.get(b":status"):
            self._proven = True
            if direction.is_request and not stream.seen & REQUEST_HEAD:
                stream.request_losses = direction.losses
            elif not direction.is_request and not stream.seen & RESPONSE_HEAD:
                stream.response_losses = direction.losses

    # Streams

    def _begin(self, stream_id: int, origin: Call) -> Stream:
        """A new stream whose first byte was in `origin`."""
        if len(self._streams) >= MAX_STREAMS:
            self._count("streams")
            self._finish(next(iter(self._streams.values())), EndedBy.AGENT)
        exchange = Exchange(2)
        exchange.stream_id = stream_id
        exchange.start_ns = origin.exit_ns if origin.operation is _READ else origin.enter_ns
        stream = self._streams[stream_id] = Stream(stream_id, exchange)
        if self._uncertain:
            stream.request_losses = self._request.losses
            stream.response_losses = self._response.losses
        return stream

    def _stream_for_head(self, direction: Half, stream_id: int, origin: Call) -> Stream | None:
        """The live stream of a HEADERS frame, begun here if it can be new; None if it ended before."""
        stream = self._streams.get(stream_id)
        if not direction.is_request:
            if stream is None and self._may_lack_request(stream_id):
                stream = self._begin(stream_id, origin)
            return stream
        if stream_id <= self._last_request or not stream_id & 1:
            return stream
        if self._requests_from == NEVER:
            self._requests_from = stream_id
        self._last_request = stream_id
        if stream is None:
            stream = self._begin(stream_id, origin)
        else:  # its response came first: calls of two threads can be recorded in either order
            stream.exchange.start_ns = origin.exit_ns if origin.operation is _READ else origin.enter_ns
        if self._orphans:
            self._finish_orphans(stream_id)
        return stream

    def _may_lack_request(self, stream_id: int) -> bool:
        """Whether a response on an unknown stream may belong to a request that was missed or is still to come."""
        if self._requests_from <= stream_id <= self._last_request or stream_id in self._closed:
            return False
        return bool(stream_id & 1) or self._uncertain

    def _finish_orphans(self, below: int) -> None:
        """Responses that ended on streams below a request's stream: their own request will not come any more."""
        orphans = self._orphans
        while orphans and orphans[0] < below:
            stream = self._streams.get(heappop(orphans))
            if stream is not None and stream.seen & (REQUEST_HEAD | RESPONSE_END) == RESPONSE_END:
                self._finish(stream)

    def _end(self, direction: Half, stream: Stream) -> None:
        """One side ended the stream."""
        exchange = stream.exchange
        if direction.is_request:
            stream.seen |= REQUEST_END
            if stream.request_length > exchange.request_body_bytes:
                self._fall_short(direction, stream)
        else:
            stream.seen |= RESPONSE_END
            if stream.response_length > exchange.response_body_bytes:
                self._fall_short(direction, stream)
        seen = stream.seen
        if self._uncertain:
            if stream.label is None and seen & (REQUEST_HEAD if direction.is_request else RESPONSE_HEAD):
                stream.label = direction.label if self._lost(direction, stream) else None
        elif seen == _CLEAN_END and stream.label is None:
            # What `_finish` comes to for almost every stream.
            stream.seen = seen | DONE
            del self._streams[stream.id]
            self.exchanges.append(exchange)
            return
        if seen & BOTH_ENDS == BOTH_ENDS:
            self._finish(stream)
        elif seen & RESPONSE_END:
            if not seen & REQUEST_HEAD:
                if stream.id < self._requests_from != NEVER:
                    self._finish(stream)
                else:
                    heappush(self._orphans, stream.id)
            elif self._lost(self._request, stream):
                self._finish(stream)

    def _fall_short(self, direction: Half, stream: Stream) -> None:
        """A side ended its message before all of the content it had announced (§8.1.1)."""
        exchange = stream.exchange
        if stream.label is not None or self._lost(direction, stream):
            return
        if not direction.is_request:
            without = exchange.method == "HEAD" or exchange.status in {204, 304}
            if without or (exchange.method is None and not exchange.response_body_bytes):
                return
        stream.seen |= SHORT
        exchange.ended_by = self._sender(direction)

    def _lost(self, direction: Half, stream: Stream) -> bool:
        """Whether unseen bytes of this side may have belonged to the stream: to its message, or to all of it."""
        if direction.seeker is not None:
            return True
        return direction.losses != (stream.request_losses if direction.is_request else stream.response_losses)

    def _finish(self, stream: Stream, ended_by: EndedBy | None = None) -> None:
        """The exchange is over: labels it and hands it out.

        Args:
            stream: whose it is.
            ended_by: who ended it, if not both sides did.
        """
        seen = stream.seen
        if seen & DONE:
            return
        stream.seen = seen | DONE
        del self._streams[stream.id]
        exchange = stream.exchange
        label = stream.label
        if label is None:
            label = self._label_of_incomplete(stream)
            if label is Completeness.NO_RESPONSE and ended_by is EndedBy.AGENT:
                label = Completeness.TRUNCATED
            if label in _CUT and exchange.ended_by is None:
                exchange.ended_by = ended_by
        if label is not None:
            exchange.completeness = label
        for direction in self._directions:
            if direction.left_stream is stream:
                self._take_back(direction, exchange)
        if self._uncertain:
            self._closed[stream.id] = None
            if len(self._closed) > MAX_CLOSED:
                del self._closed[next(iter(self._closed))]
        self.exchanges.append(exchange)

    def _label_of_incomplete(self, stream: Stream) -> Completeness | None:
        """The label of a stream by what is missing of it, and whether that may have passed unseen."""
        seen, exchange = stream.seen, stream.exchange
        if not seen & REQUEST_HEAD:
            return self._request.label
        if (not seen & REQUEST_END or exchange.method is None) and self._lost(self._request, stream):
            return self._request.label
        if (not seen & RESPONSE_END or exchange.status is None) and self._lost(self._response, stream):
            return self._response.label
        if not seen & RESPONSE_HEAD:
            return Completeness.NO_RESPONSE
        return None if seen & (BOTH_ENDS | SHORT) == BOTH_ENDS else Completeness.TRUNCATED

    def _take_back(self, direction: Half, exchange: Exchange) -> None:
        """Bytes of a DATA frame that never came do not count."""
        missing = max(direction.left - direction.left_pad, 0)
        if direction.is_request:
            exchange.request_body_bytes -= missing
        else:
            exchange.response_body_bytes -= missing

    # Losses

    def _pass_over(
        self, direction: Half, call: Call | None, size: int, label: Completeness | None, *, claimed: bool = True
    ) -> bool:
        """`size` bytes that nobody saw (-1: any number); `label` is for what they hit, None for bytes not copied.

        Returns whether a stream has claimed the call.
        """
        if direction.seeker is not None:
            if size < 0:
                self._release(direction)
                direction.seek(direction.label)
            else:
                direction.seeker.add(None, b"", size, claimed=True)
            return claimed
        if size and len(direction.partial) >= frames.FRAME_HEADER_SIZE:
            self._damage_frame(direction, label or Completeness.TRUNCATED)
        if size > 0 and direction.left:
            stream = direction.left_stream
            if stream is not None and label is not None:
                stream.label = stream.label or label
            take = min(size, direction.left)
            size -= take
            claimed = self._pass_left(direction, call, take, claimed=claimed)
        if size:
            self._desync(direction, label or Completeness.TRUNCATED, "")
        return claimed

    def _damage_frame(self, direction: Half, label: Completeness) -> None:
        """A hole in the frame in `partial`: uses what is there of it, and leaves the rest to be counted down."""
        part = bytes(direction.partial)
        head, flags, _ = _unpack_header(part)
        kind, end = head & 0xFF, frames.FRAME_HEADER_SIZE + (head >> 8)
        stream = direction.partial_stream
        direction.partial.clear()
        direction.partial_stream = None
        self._leave(direction, end - len(part), None, 0, ends=False)
        if kind == frames.DATA:  # with padding of which nobody knows how much
            body = max(end - frames.FRAME_HEADER_SIZE - 1, 0)
            if stream is not None and not stream.seen & DONE:
                stream.label = stream.label or label
                if direction.is_request:
                    stream.exchange.request_body_bytes += body
                else:
                    stream.exchange.response_body_bytes += body
            direction.left_stream = stream
            direction.left_ends = bool(flags & frames.END_STREAM)
        elif kind == frames.RST_STREAM:
            if stream is not None and not stream.seen & DONE:
                self._reset(direction, stream)
        elif kind == frames.SETTINGS:
            self._allow_anything(self._response if direction.is_request else self._request)
        elif kind != frames.GOAWAY:
            self._damage_block_frame(direction, stream, part, label)

    def _damage_block_frame(self, direction: Half, stream: Stream | None, part: bytes, label: Completeness) -> None:
        """A hole in HEADERS, PUSH_PROMISE or CONTINUATION."""
        head, flags, _ = _unpack_header(part)
        kind, start = head & 0xFF, frames.FRAME_HEADER_SIZE
        stop = start + (head >> 8)
        if kind == frames.CONTINUATION:
            if direction.block is not None:
                direction.block += part[start:]
            stream = direction.block_stream
        else:
            start, stop = frames.content_range(kind, flags, part, start, stop)
            is_push = kind == frames.PUSH_PROMISE
            ends = not is_push and bool(flags & frames.END_STREAM)
            self._begin_block(direction, stream, part[start:stop], ends=ends, is_push=is_push)
        if stream is not None and not stream.seen & DONE:
            if direction.is_request:
                stream.exchange.request_header_bytes += stop - start
            else:
                stream.exchange.response_header_bytes += stop - start
        self._damage_block(direction, label)
        if flags & frames.END_HEADERS:
            self._end_block(direction)

    def _bad_frame(self, direction: Half, data: bytes, at: int, reason: str, *, claimed: bool) -> bool:
        """What should be a frame header is none: the position is wrong, or the peer is. Looks for the next boundary."""
        if direction.credit >= COST_OF_DOUBT:
            direction.credit -= COST_OF_DOUBT
            direction.rest = data[at:]
        self._desync(direction, Completeness.GAP, reason, start=direction.rest is not None)
        self._futile = self._futile + 1 if self._last_request == self._futile_at else 0
        self._futile_at = self._last_request
        if self._futile > MAX_FUTILE and not self._proven:
            self._give_up()
        return claimed

    def _desync(self, direction: Half, label: Completeness, reason: str, *, start: int = 0) -> None:
        """This side's frame position and header table are lost; the other side goes on.

        Args:
            direction: the side.
            label: for what was open, and for what cannot be decoded from here on.
            reason: counted in `errors`; empty if this is no error of parsing.
            start: offset of the first of the next bytes where a frame may begin.
        """
        if reason:
            self._count(reason)
        self._allow_anything(self._response if direction.is_request else self._request)  # SETTINGS may have been lost
        direction.losses += 1
        if direction.block is not None:
            self._damage_block(direction, label)
        self._release(direction)
        direction.seek(label, start=start)
        self._uncertain = True
        if direction.is_request:
            self._requests_from = NEVER

    def _release(self, direction: Half) -> None:
        """Lets go of the calls this side keeps back."""
        self.loose += direction.pending
        direction.pending.clear()
        if direction.seeker is not None:
            self.loose += direction.seeker.dropped
            self.loose += [s.call for s in direction.seeker.segments if s.call is not None and not s.claimed]
            direction.seeker = None

    def _give_up(self) -> None:
        """This is not HTTP/2, or not any that can be followed: from here on the connection is TCP."""
        self._count("gave_up")
        for direction in self._directions:
            direction.losses += 1
            direction.label = Completeness.GAP
        self.close(0)
        self.protocol = ProtocolName.TCP
        for direction in self._directions:
            direction.slow = True

    def _count(self, reason: str) -> None:
        self.errors[reason] = self.errors.get(reason, 0) + 1
