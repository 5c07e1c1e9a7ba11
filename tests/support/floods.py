# SPDX-License-Identifier: Apache-2.0
"""Peers that send as fast as they can what is expensive to follow, and a server that takes it all.

python -m tests.support.floods KIND PORT    floods until it is ended
python -m tests.support.floods sink         serves; prints its port
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING

from tests.support.http2_conversation import PREFACE, frame, seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BEGIN = PREFACE + frame(4, 0, 0)
_RESET = struct.pack(">I", 8)
_BACKLOG = 1024
# Streams a connection opens at most, and requests it makes, before the next one follows.
_STREAMS = 100_000
# Calls of a peer that sends a byte at a time, and connections it does so on.
_DRIPPING = 50


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field that is indexed from now on (RFC 7541 §6.2.1), of less than 2^14 bytes."""
    length = len(value) - 127
    return b"\x40" + bytes([len(name)]) + name + bytes([127, length & 0x7F | 0x80, length >> 7]) + value


def _resets(first: bytes, block: bytes) -> Iterator[bytes]:
    """Requests that are given up as soon as they are made; the first has a header section of its own."""
    yield _BEGIN + frame(1, 5, 1, first)
    for start in range(3, 2 * _STREAMS, 400):
        yield b"".join(
            frame(1, 5, stream, block) + frame(3, 0, stream, _RESET) for stream in range(start, start + 400, 2)
        )


def _repeated(first: bytes, again: bytes) -> Iterator[bytes]:
    yield first
    yield from itertools.repeat(again, 1000)


def _paths() -> Iterator[bytes]:
    for start in range(0, _STREAMS, 400):
        yield b"".join(b"GET /p/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(start, start + 400))


def _noise() -> Iterator[bytes]:
    generator = seeded(1)
    for _ in range(1000):
        yield generator.randbytes(1 << 16)


_REQUEST = b"\x82\x86\x84\x41\x01h"
_CONTROL_PATH = _literal(b":path", b"/" + b"\x01" * 3880)

# What each connection sends, after which the next one follows.
FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    "paths": _paths,
    "resets": lambda: _resets(_REQUEST, b"\x82\x86\x84\x01\x01h"),
    "resets with long paths": lambda: _resets(b"\x83\x86" + _CONTROL_PATH + b"\x01\x01h", b"\x83\x86\xbe\x01\x01h"),
    "open streams with long paths": lambda: iter(
        [_BEGIN + frame(1, 4, 1, b"\x83\x86" + _CONTROL_PATH + b"\x01\x01h")]
        + [frame(1, 4, stream, b"\x83\x86\xbe\x01\x01h") for stream in range(3, 10_000, 2)]
    ),
    "settings": lambda: _repeated(_BEGIN, frame(4, 0, 0, struct.pack(">HI", 1, 4096)) * 3000),
    "pings": lambda: _repeated(_BEGIN, frame(6, 0, 0, bytes(8)) * 3000),
    "empty data": lambda: _repeated(_BEGIN + frame(1, 4, 1, _REQUEST), frame(0, 0, 1) * 6000),
    "continuations": lambda: _repeated(_BEGIN + frame(1, 0, 1, b"\x82"), frame(9, 0, 1) * 6000),
    "inserts": lambda: _repeated(_BEGIN, b"".join(frame(1, 5, n, b"\x40\0\0" * 5400) for n in range(1, 7, 2))),
    "noise": _noise,
    "zeros": lambda: _repeated(_BEGIN, bytes(1 << 16)),
    "folded fields": lambda: _repeated(
        b"", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\n" + b" \n" * 30_000 + b"\r\n"
    ),
    "heads without end": lambda: iter([b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000]),
    "short connections": lambda: iter([b"GET /short HTTP/1.1\r\nHost: a\r\n\r\n"]),
}
# Bytes one by one, on connections that stay.
DRIP = "byte by byte"
KINDS = (*FLOODS, DRIP)


def flood(kind: str, port: int) -> None:
    """Sends until somebody ends it."""
    while True:
        with socket.create_connection(("127.0.0.1", port)) as connection, contextlib.suppress(OSError):
            for part in FLOODS[kind]():
                connection.sendall(part)


def drip(port: int) -> None:
    """Heads that grow by a byte a call."""
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(_DRIPPING)]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.send(b"GET /slow HTTP/1.1\r\nX: ")
    while True:
        for connection in connections:
            connection.send(b"a")


def sink() -> None:
    """Takes whatever comes and never answers."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener, select.epoll() as poll:
        print(listener.getsockname()[1], flush=True)
        peers: dict[int, socket.socket] = {}
        poll.register(listener, select.EPOLLIN)
        while True:
            for number, _ in poll.poll():
                if number == listener.fileno():
                    peer, _ = listener.accept()
                    peers[peer.fileno()] = peer
                    poll.register(peer, select.EPOLLIN)
                    continue
                try:
                    data = peers[number].recv(1 << 16)
                except OSError:
                    data = b""
                if not data:
                    peers.pop(number).close()


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        sink()
    elif sys.argv[1] == DRIP:
        drip(int(sys.argv[2]))
    else:
        flood(sys.argv[1], int(sys.argv[2]))
