# SPDX-License-Identifier: Apache-2.0
"""Made-up HTTP/2 connections with the truth about each stream, moved in calls of any size and copied in any way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import hpack

from rover_plugin.access_log.model import Side
from rover_plugin.access_log.protocols.analyzer import Part
from tests.support.http2_conversation import PREFACE, Feeder, frame, get, post
from tests.support.http2_wire import MAX_FRAME_SIZE, SETTINGS_ACK, data, headers, reset, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from rover_plugin.access_log.model import EndedBy

Pieces = list[tuple[bytes, int]]
"""What is copied of a call: bytes, then how many are not, again and again."""


@dataclass
class Truth:
    """What is so about one stream.

    Attributes:
        request_ends, response_begins, response_ends: whether it came to that before a reset or the connection's end.
        short: a side ended its message before the content it had announced.
    """

    method: str
    path: str
    status: int | None = None
    grpc_status: int | None = None
    request_header_bytes: int = 0
    request_body_bytes: int = 0
    response_header_bytes: int = 0
    response_body_bytes: int = 0
    request_ends: bool = False
    response_ends: bool = False
    reset_by: Side | None = None
    short: bool = False

    @property
    def whole(self) -> bool:
        """Whether it ended as it should."""
        return self.request_ends and self.response_ends and not self.short


@dataclass
class Story:
    """A connection: frames of both sides in the order they were sent, and what they say.

    Attributes:
        frames: (side, frame).
        truths: by stream.
    """

    frames: list[tuple[Side, bytes]] = field(default_factory=list)
    truths: dict[int, Truth] = field(default_factory=dict)


def tell(source: Random) -> Story:
    """A connection of up to eight streams, parallel as it comes."""
    story = Story()
    largest = source.choice((16_384, 16_384, 100_000, 1 << 20))
    story.frames.append((Side.REQUEST, PREFACE + settings((MAX_FRAME_SIZE, largest))))
    story.frames.append((Side.RESPONSE, settings((MAX_FRAME_SIZE, largest), (0xFE03, 1))))
    story.frames += [(Side.RESPONSE, SETTINGS_ACK), (Side.REQUEST, SETTINGS_ACK)]
    coders = hpack.Encoder(), hpack.Encoder()
    waiting = [2 * number + 1 for number in range(source.randint(1, 8))]
    running: list[Iterator[None]] = []
    while waiting or running:
        if waiting and (not running or source.random() < 0.5):
            running.append(_stream(story, source, waiting.pop(0), coders, largest))
            next(running[-1])  # a client opens streams in order (RFC 9113 §5.1.1)
        one = source.choice(running)
        if next(one, True):
            running.remove(one)
        if source.random() < 0.1:
            noise = frame(6, 0, 0, bytes(8)), frame(8, 0, 0, b"\0\0\1\0"), settings((0xFE03, 2))
            story.frames.append((source.choice(list(Side)), source.choice(noise)))
    return story


def _body(source: Random, stream_id: int, size: int, largest: int, *, end: bool) -> Iterator[tuple[bytes, int]]:
    """DATA frames of a body, with the size of each one's content."""
    content = source.choice((b"x", b"\0", b"\xff", source.randbytes(97)))
    left = size
    while left or end:
        part = min(left, source.choice((1, 100, 8192, largest - 256)))
        left -= part
        last = end and not left
        pad = source.choice((None, None, None, 0, 7, 255))
        yield data(stream_id, (content * (part // len(content) + 1))[:part], end=last, pad=pad), part
        if not left:
            return


def _stream(
    story: Story, source: Random, stream_id: int, coders: tuple[hpack.Encoder, hpack.Encoder], largest: int
) -> Iterator[None]:
    """Sends one stream's frames, one at a time."""
    path = source.choice(("/", "/shared", f"/own/{stream_id}", "/long/" + "p" * 3000))
    grpc = source.random() < 0.3
    truth = story.truths[stream_id] = Truth("POST" if grpc else source.choice(("GET", "POST", "PATCH")), path)
    sizes = [source.choice((0, 0, 5, 3000, 20_000, 100_000, 300_000)) for _ in Side]
    announced = [source.random() < 0.4 for _ in Side]
    short = [announced[side] and bool(sizes[side]) and source.random() < 0.1 for side in Side]
    stop = source.choice((-1, -1, -1, -1, source.randrange(12)))
    steps = 0

    def sent(side: Side, written: bytes) -> None:
        story.frames.append((side, written))

    def head(side: Side, fields: list[tuple[str, str]], *, end: bool) -> None:
        block = coders[side].encode(fields)
        cuts = tuple(sorted(source.sample(range(len(block)), min(len(block), source.choice((0, 0, 0, 1, 2))))))
        sent(side, headers(stream_id, block, end=end, cuts=cuts))
        if side is Side.REQUEST:
            truth.request_header_bytes += len(block)
        else:
            truth.response_header_bytes += len(block)

    def message(side: Side) -> Iterator[None]:
        size = sizes[side]
        trailers = side is Side.RESPONSE and grpc
        if side is Side.REQUEST:
            fields = [(":method", truth.method), *(get(path) if size == 0 else post(path))[1:]]
        else:
            status = source.choice((200, 200, 404, 503))
            fields = [(":status", str(status)), ("server", "story")]
        if announced[side]:
            fields.append(("content-length", str(size + short[side])))
        ends = not size and not trailers
        head(side, fields, end=ends)
        if side is Side.RESPONSE:
            truth.status = status
        if not ends:
            yield
            for written, content in _body(source, stream_id, size, largest, end=not trailers):
                sent(side, written)
                if side is Side.REQUEST:
                    truth.request_body_bytes += content
                else:
                    truth.response_body_bytes += content
                if size and written[4] & 1 == 0:
                    yield
            if trailers:
                head(side, [("grpc-status", "5"), ("grpc-message", "no")], end=True)
                truth.grpc_status = 5
        if side is Side.REQUEST:
            truth.request_ends = True
        else:
            truth.response_ends = True
        truth.short = truth.short or short[side]
        yield

    early = source.random() < 0.1
    request, response = message(Side.REQUEST), message(Side.RESPONSE)
    next(request)
    yield
    while not (truth.request_ends and truth.response_ends):
        if steps == stop:
            side = source.choice(list(Side))
            sent(side, reset(stream_id))
            truth.reset_by = side
            return
        steps += 1
        yield
        next(request if not truth.request_ends and not (early and source.random() < 0.5) else response, None)


def calls(story: Story, source: Random) -> list[tuple[Side, bytes]]:
    """The connection's bytes as they move: each side's in order, in calls of any size."""
    largest = source.choice((1 << 30, 1 << 30, 200_000, 40_000, 4096, 300))
    moved: list[tuple[Side, bytes]] = []
    batch = source.random()
    gathered: list[tuple[Side, bytearray]] = []
    for side, written in story.frames:
        if gathered and gathered[-1][0] is side and source.random() < batch:
            gathered[-1][1].extend(written)
        else:
            gathered.append((side, bytearray(written)))
    for side, buffer in gathered:
        at = 0
        while at < len(buffer):
            size = min(source.choice((largest, source.randint(1, largest))), len(buffer) - at)
            moved.append((side, bytes(buffer[at : at + size])))
            at += size
    return moved


class Framing:
    """Copies frame headers, header blocks and what else a frame needs, wherever calls cut them: as the kernel does."""

    def __init__(self) -> None:
        self._left = dict.fromkeys(Side, 0)  # of a payload
        self._keep = dict.fromkeys(Side, False)
        self._header = dict.fromkeys(Side, b"")
        self._preface = {Side.REQUEST: len(PREFACE), Side.RESPONSE: 0}

    def __call__(self, side: Side, written: bytes) -> Pieces:
        """What is copied of a call."""
        pieces: Pieces = []
        at = 0

        def put(size: int, *, copied: bool) -> None:
            nonlocal at
            part = written[at : at + size]
            at += size
            if not copied:
                before, unseen = pieces.pop() if pieces else (b"", 0)
                pieces.append((before, unseen + len(part)))
            elif pieces and not pieces[-1][1]:
                pieces[-1] = (pieces[-1][0] + part, 0)
            else:
                pieces.append((part, 0))

        while at < len(written):
            if self._preface[side]:
                size = min(self._preface[side], len(written) - at)
                self._preface[side] -= size
                put(size, copied=True)
            elif self._left[side]:
                size = min(self._left[side], len(written) - at)
                self._left[side] -= size
                put(size, copied=self._keep[side])
            else:
                size = min(9 - len(self._header[side]), len(written) - at)
                self._header[side] += written[at : at + size]
                put(size, copied=True)
                if len(self._header[side]) == 9:
                    header, self._header[side] = self._header[side], b""
                    self._left[side] = int.from_bytes(header[:3])
                    padded = header[3] == 0 and header[4] & 8
                    self._keep[side] = header[3] in {1, 3, 4, 5, 7, 9} or bool(padded)
        return pieces


def feed(
    feeder: Feeder,
    moved: list[tuple[Side, bytes]],
    copy: Callable[[Side, bytes], Pieces],
    lose: Callable[[], bool] = lambda: False,
) -> bool:
    """Gives every call to the analyser; returns whether anything was lost.

    Args:
        feeder: its analyser is fed.
        moved: calls.
        copy: what is copied of each.
        lose: asked for each call whether its record is lost.
    """
    lost = False
    for side, written in moved:
        if lose():
            feeder.analyzer.gap(side, len(written))
            lost = True
            continue
        call = feeder.call(side, len(written))
        (first, unseen), *rest = copy(side, written) or [(b"", len(written))]
        feeder.analyzer.receive(side, call, first, unseen, [Part(*piece) for piece in rest])
    return lost


def reset_by(truth: Truth, ends: tuple[EndedBy, EndedBy]) -> EndedBy | None:
    """Who reset the stream, where `ends` says who is whom."""
    return None if truth.reset_by is None else ends[truth.reset_by]
