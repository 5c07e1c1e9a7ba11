# SPDX-License-Identifier: Apache-2.0
"""Whatever a backend says or does: a call ends with its error, in its time, and nothing grows."""

from __future__ import annotations

import socket
import struct
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.backend.caller import Patience
from rover_plugin.backend.grpc_over_h2 import ClientConnection, frame_message
from rover_plugin.errors import CallError
from tests.support.backend import ACCESS_LOG_COLLECT, started_core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS, HEADERS, DATA, RST, PING, GOAWAY, WINDOW, CONTINUATION = 4, 1, 0, 3, 6, 7, 8, 9
BODY = [frame_message(b"a" * 200) * 4000] * 3


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A literal field without indexing (RFC 7541 §6.2.2); a value below 127 bytes."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


def refusal(status: bytes, message: bytes) -> bytes:
    kind = literal(b"content-type", b"application/grpc")
    fields = b"\x88" + kind + literal(b"grpc-status", status) + literal(b"grpc-message", message)
    return frame(HEADERS, 5, 1, fields)


HELLO = frame(SETTINGS, 0, 0)
ONCE = {
    "nothing": b"",
    "http/1": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "tls_alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "huge_frame": b"\xff\xff\xff\x04\0\0\0\0\0" + bytes(100_000),
    "no_streams": frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 0)),
    "frames_of_one_byte": frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1)),
    "window_of_one_byte": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1)),
    "window_too_large": HELLO + frame(WINDOW, 0, 0, struct.pack(">I", 0x7FFFFFFF)) * 2,
    "window_of_zero": HELLO + frame(WINDOW, 0, 0, bytes(4)),
    "push": HELLO + frame(5, 4, 1, b"\0\0\0\2\x82"),
    "goaway": HELLO + frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0) + b"\x1b[2JFAKE\n" * 20),
    "status_of_letters": HELLO + frame(HEADERS, 4, 1, literal(b":status", b"xyz")),
    "status_no_utf8": HELLO + frame(HEADERS, 4, 1, literal(b":status", b"\xff\xfeabc")),
    "status_of_other_digits": HELLO + frame(HEADERS, 5, 1, literal(b":status", "٣٠٠".encode())),
    "grpc_status_of_4000_digits": HELLO + refusal(b"9" * 100, b"x"),
    "message": HELLO + refusal(b"13", b"%1b[2J%0aFAKE" + b"z" * 90),
    "continuations": HELLO + frame(HEADERS, 0, 1, b"\x88") + frame(CONTINUATION, 0, 1) * 5000,
    "resets": HELLO + b"".join(frame(RST, 0, 1 + 2 * (i % 50), struct.pack(">I", i % 14)) for i in range(2000)),
}
FLOODS = {
    "ping": frame(PING, 0, 0, b"12345678") * 1000,
    "settings": frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 4096)) * 1000,
    "interim": frame(HEADERS, 4, 1, literal(b":status", b"103")) * 500,
    "reply": frame(HEADERS, 4, 1, b"\x88") + frame(DATA, 0, 1, b"\0\x7f\xff\xff\xff" + b"z" * 16000) * 8,
    "unknown_frames": frame(0x77, 0, 0, bytes(20)) * 1000,
}


@contextmanager
def backend(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats each peer with `serve`, and ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    peers: list[socket.socket] = []

    def treat(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            serve(peer)

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            peer.settimeout(20)
            peers.append(peer)
            threading.Thread(target=treat, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for peer in peers:
            peer.close()


def saying(once: bytes, flood: bytes = b"", *, hang_up: bool = False) -> Callable[[socket.socket], None]:
    def serve(peer: socket.socket) -> None:
        peer.sendall(once)
        while flood:
            peer.sendall(flood)
        while not hang_up and peer.recv(65536):
            pass

    return serve


def failing_call(address: str, **settings: object) -> CallError:
    patience = Patience(quiet=0.2, total=0.4)
    with started_core(address, **settings) as core:
        caller = core.open_caller("access_log")
        caller.not_after = time.monotonic() + 0.6
        with pytest.raises(CallError) as caught:
            caller.stream(ACCESS_LOG_COLLECT, BODY, patience)
        return caught.value


@pytest.mark.parametrize("hang_up", [False, True])
@pytest.mark.parametrize("words", ONCE.values(), ids=ONCE)
def test_odd_words_end_the_call_with_an_error(words: bytes, hang_up: bool) -> None:
    with backend(saying(words, hang_up=hang_up)) as address:
        error = failing_call(address)
        assert address in error.message
        assert error.address == address
        assert len(error.message) < 500


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_floods_do_not_hold_a_call_beyond_its_time_nor_grow(flood: bytes) -> None:
    with backend(saying(HELLO, flood)) as address:
        tracemalloc.start()
        failing_call(address)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 << 20


@pytest.mark.parametrize(
    "words",
    [
        HELLO + frame(PING, 0, 0, b"12345678") * 3500,
        HELLO + frame(GOAWAY, 0, 0, bytes(8)),
        HELLO + frame(WINDOW, 0, 0, bytes(4)),
    ],
    ids=["flood", "goaway", "breach"],
)
def test_a_connection_that_is_spoilt_before_the_first_call_carries_none(words: bytes) -> None:
    with backend(saying(words)) as address:
        error = failing_call(address)
    assert error.status == "UNAVAILABLE"
    assert error.body_bytes_sent == 0
    assert "in time" not in error.message


def test_a_call_refused_by_every_goaway_grows_nothing() -> None:
    with backend(saying(ONCE["goaway"], hang_up=True)) as address, started_core(address) as core:
        caller = core.open_caller("reports")

        def call() -> None:
            with pytest.raises(CallError):
                caller.unary("/a/b", b"x", 1.0)

        for _ in range(20):
            call()
        tracemalloc.start()
        for _ in range(100):
            call()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 1 << 20


@pytest.mark.parametrize("reply", [b"", b"\1\0\0\0\1x", b"\0\0\0\0\x09x"], ids=["none", "compressed", "cut"])
def test_a_unary_reply_that_is_no_message_is_an_error(reply: bytes) -> None:
    trailers = frame(HEADERS, 5, 1, literal(b"grpc-status", b"0"))
    answer = frame(HEADERS, 4, 1, b"\x88") + frame(DATA, 0, 1, reply) + trailers

    def serve(peer: socket.socket) -> None:
        peer.sendall(HELLO)
        while frame_message(b"x") not in peer.recv(65536):
            pass
        peer.sendall(answer)
        peer.recv(65536)

    with backend(serve) as address, started_core(address) as core, pytest.raises(CallError) as caught:
        core.open_caller("reports").unary("/a/b", b"x", 5.0)
    assert caught.value.status == "INTERNAL"


def test_a_tls_port_met_in_plaintext_says_which_setting() -> None:
    with backend(saying(ONCE["tls_alert"])) as address:
        assert "core.backend.enable_TLS" in failing_call(address).hint


def test_a_plaintext_port_met_with_tls_says_which_setting() -> None:
    with backend(saying(ONCE["http/1"])) as address:
        assert "core.backend.enable_TLS to false" in failing_call(address, core__backend__enable_TLS="true").hint


def test_no_proxy_is_used_whatever_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with backend(saying(ONCE["http/1"])) as address:
        assert "HTTP/2" in failing_call(address).message


@given(st.lists(st.binary(max_size=200) | st.sampled_from(list(ONCE.values())), max_size=6), st.booleans())
def test_any_bytes_leave_the_connection_in_order(pieces: list[bytes], calling: bool) -> None:
    protocol = ClientConnection("a:1", "http")
    protocol.take_outgoing()
    if calling:
        protocol.open("/a/b", 1.0)
        protocol.send(memoryview(b"abc"))
    for piece in pieces:
        protocol.receive(piece)
        protocol.room()
        protocol.take_outgoing()
    protocol.finish()
    protocol.abandon("CANCELLED", "")
    assert protocol.end is not None
