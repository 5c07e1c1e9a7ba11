# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for whole conversations in HTTP/1 and HTTP/2: who writes what, and what is to come of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import hpack
from hypothesis import strategies as st

from rover_plugin.access_log.model import Side
from tests.support import http2_wire as wire
from tests.support.http2_conversation import PREFACE, frame, get, post

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import DrawFn

# Bodies are not random: they hold what must not be taken for framing.
_FILLER = b"HTTP/1.1 200 OK\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n" + bytes(range(256))
SIZES = st.one_of(
    st.sampled_from((0, 1, 2, 15, 16, 17, 1023, 1024, 1025, 4095, 4096, 4097, 16384, 65536)),
    st.integers(0, 3000),
    st.integers(0, 120_000),
)


@dataclass(slots=True)
class Said:
    """One exchange: method, path, status and the sizes of both bodies."""

    method: str
    path: str
    status: int
    request_body: int
    response_body: int


@dataclass(slots=True)
class Talk:
    """A conversation: each turn is one side's bytes; what is to come of it."""

    turns: list[tuple[Side, bytes]] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)

    def __repr__(self) -> str:
        turns = [
            (side.name, data if len(data) < 200 else f"{data[:60]!r} ... {len(data)}") for side, data in self.turns
        ]
        return f"Talk({turns}, {self.said})"


def body(size: int) -> bytes:
    """Content of this size."""
    return (_FILLER * (size // len(_FILLER) + 1))[:size]


def _chunked(draw: DrawFn, content: bytes) -> bytes:
    parts = []
    at = 0
    while at < len(content):
        size = draw(st.one_of(st.integers(1, 40), st.sampled_from((2048, 4096, 32768)), st.integers(1, 60_000)))
        # Few pieces of content of any size.
        size = max(size, len(content) // 60)
        chunk = content[at : at + size]
        at += size
        extension = draw(st.sampled_from((b"", b"", b"", b";a=b", b'  ; name="long ' + b"x" * 40 + b'"')))
        digits = draw(st.sampled_from((b"%x", b"%X", b"%04x"))) % len(chunk)
        parts.append(digits + extension + b"\r\n" + chunk + b"\r\n")
    trailers = draw(st.sampled_from((b"", b"", b"Digest: sha-256=abc\r\nExpires: now\r\n")))
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


def _message(draw: DrawFn, start: bytes, content: bytes, *, bare: bool = False) -> bytes:
    fields = draw(st.sampled_from((b"", b"Server: x\r\nX-Content-Length: 5\r\n", b"X-Long: " + b"y" * 700 + b"\r\n")))
    if bare:
        return start + fields + b"\r\n"
    if draw(st.booleans()):
        name = draw(st.sampled_from((b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked")))
        return start + name + b"\r\n" + fields + b"\r\n" + _chunked(draw, content)
    name = draw(st.sampled_from((b"Content-Length: %d", b"content-length:%d", b"CONTENT-LENGTH:   %d"))) % len(content)
    return start + fields + name + b"\r\n\r\n" + content


@st.composite
def http1(draw: DrawFn, *, most: int = 4, plain: bool = False) -> Talk:
    """HTTP/1.1 keep-alive: each request is answered before the next, or, unless `plain`, all are pipelined."""
    talk = Talk()
    asked: list[bytes] = []
    answered: list[bytes] = []
    for number in range(draw(st.integers(1, most))):
        path = f"/{number}"
        method = draw(st.sampled_from(("GET", "GET", "POST", "HEAD", "PUT")))
        sent = body(draw(SIZES)) if method in {"POST", "PUT"} else b""
        start = f"{method} {path} HTTP/1.1\r\nHost: a\r\n".encode()
        asked.append(_message(draw, start, sent, bare=method in {"GET", "HEAD"}))
        status = draw(st.sampled_from((200, 200, 200, 204, 304, 404)))
        received = body(draw(SIZES))
        line = f"HTTP/1.1 {status} Whatever\r\n".encode()
        if status in {204, 304}:
            received = b""
            answer = line + b"\r\n"
        elif method == "HEAD":
            answer = line + b"Content-Length: %d\r\n\r\n" % len(received)
            received = b""
        else:
            answer = _message(draw, line, received)
        if not plain and draw(st.integers(0, 9)) == 0:
            answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer
        answered.append(answer)
        talk.said.append(Said(method, path, status, len(sent), len(received)))
    if not plain and draw(st.integers(0, 3)) == 0:
        talk.turns = [(Side.REQUEST, b"".join(asked)), (Side.RESPONSE, b"".join(answered))]
    else:
        for request, answer in zip(asked, answered, strict=True):
            talk.turns += ((Side.REQUEST, request), (Side.RESPONSE, answer))
    return talk


def _data_frames(draw: DrawFn, stream_id: int, content: bytes) -> list[bytes]:
    frames = []
    size = draw(st.sampled_from((100, 4096, 8192, 16384)))
    size = max(size, len(content) // 60)
    for at in range(0, len(content), size):
        part = content[at : at + size]
        pad = draw(st.sampled_from((None, None, None, 0, 9, 40)))
        limit = 16384 - (0 if pad is None else pad + 1)
        frames += [wire.data(stream_id, part[:limit], pad=pad)]
        if part[limit:]:
            frames.append(wire.data(stream_id, part[limit:]))
    frames.append(wire.data(stream_id, end=True))
    return frames


@st.composite
def http2(draw: DrawFn, *, most: int = 4) -> Talk:
    """HTTP/2 with prior knowledge; the streams' frames are mixed."""
    talk = Talk()
    encoders = (hpack.Encoder(), hpack.Encoder())
    count = draw(st.integers(1, most))
    up: list[list[bytes]] = []
    down: list[list[bytes]] = []
    blocks: list[Callable[[], bytes]] = []
    for number in range(count):
        stream_id = 1 + 2 * number
        path = f"/{number}"
        cookie = "c" * draw(st.sampled_from((0, 5, 300, 20_000)))
        sent, received = draw(SIZES), draw(SIZES)
        headers = [*(post(path) if sent else get(path)), ("cookie", cookie)]
        cuts = draw(st.sampled_from(((), (10,), (3, 40))))

        def request(
            headers: list[tuple[str, str]] = headers,
            sent: int = sent,
            stream_id: int = stream_id,
            cuts: tuple[int, ...] = cuts,
        ) -> bytes:
            return _block(encoders[0], headers, stream_id, end=not sent, cuts=cuts)

        def response(stream_id: int = stream_id, cuts: tuple[int, ...] = cuts) -> bytes:
            answer = [(":status", "200"), ("server", "x"), ("x", f"{stream_id}" * 7)]
            return _block(encoders[1], answer, stream_id, end=False, cuts=cuts)

        blocks += (request, response)
        up.append(_data_frames(draw, stream_id, body(sent)) if sent else [])
        down.append(_data_frames(draw, stream_id, body(received)))
        talk.said.append(Said("POST" if sent else "GET", path, 200, sent, received))
    # Encoders change with each block: heads are written in order, bodies are mixed.
    heads_up = [blocks[2 * number]() for number in range(count)]
    heads_down = [blocks[2 * number + 1]() for number in range(count)]
    control = draw(
        st.sampled_from(
            (
                b"",
                frame(wire.PING, 0, 0, bytes(8)),
                frame(wire.WINDOW_UPDATE, 0, 0, b"\0\0\xff\xff"),
                frame(0x10, 0, 0, bytes(30)),
            )
        )
    )
    talk.turns.append((Side.REQUEST, PREFACE + wire.settings((3, 100)) + b"".join(heads_up)))
    talk.turns.append((Side.RESPONSE, wire.settings((3, 100)) + wire.SETTINGS_ACK))
    talk.turns.append((Side.REQUEST, control + _mixed(draw, up)))
    talk.turns.append((Side.RESPONSE, b"".join(heads_down) + control + _mixed(draw, down)))
    talk.turns = [(side, data) for side, data in talk.turns if data]
    return talk


def _block(
    encoder: hpack.Encoder, headers: list[tuple[str, str]], stream_id: int, *, end: bool, cuts: tuple[int, ...]
) -> bytes:
    block = encoder.encode(headers)
    if len(block) > 16_000:
        cuts = (16_000,)
    return wire.headers(stream_id, block, end=end, cuts=tuple(cut for cut in cuts if cut < len(block)))


def _mixed(draw: DrawFn, queues: list[list[bytes]]) -> bytes:
    queues = [list(queue) for queue in queues if queue]
    out = []
    rounds = draw(st.integers(1, 5))
    while queues:
        for queue in list(queues):
            out += queue[:rounds]
            del queue[:rounds]
        queues = [queue for queue in queues if queue]
    return b"".join(out)


CUTS = st.lists(
    st.one_of(
        st.integers(1, 30), st.integers(1, 1100), st.sampled_from((1024, 1025, 4096, 16384)), st.integers(1, 200_000)
    ),
    min_size=1,
    max_size=12,
)
"""Sizes of calls, to be taken in turns."""


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Bytes in calls of these sizes, taken in turns."""
    calls = []
    at = number = 0
    # Not more calls than a test has time for.
    least = len(data) // 150 + 1
    while at < len(data):
        size = max(sizes[number % len(sizes)], least if number > 150 else 1)
        calls.append(data[at : at + size])
        at += size
        number += 1
    return calls
