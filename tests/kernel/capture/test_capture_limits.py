# SPDX-License-Identifier: Apache-2.0
"""How much of a large call is copied: heads whole, less of what goes on, all of HTTP/2, nothing that is not needed."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture.bpf import Map
from rover_plugin.capture.session import CaptureOptions
from tests.support.actor import Actor
from tests.support.capture import Recorder, needs_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.capture import CallRecord

pytestmark = [pytest.mark.root, needs_capture]

LARGE = 60_000
WHOLE = 1 << 16
CONTINUED = 1 << 14
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def wide() -> Iterator[Recorder]:
    with Recorder(CaptureOptions(ring_bytes=64 << 20, capture_limit=WHOLE)) as recorder:
        yield recorder


@pytest.fixture
def writer(wide: Recorder) -> Iterator[Callable[..., CallRecord]]:
    """Writes on a connection of its own; the record of that call. `before` reads what the peer has said."""
    with Actor() as actor, talking(actor) as (port, peer_says):
        wide.listen_to(actor.pid)

        def write(data: bytes, *, before: bytes = b"") -> CallRecord:
            if before:
                peer_says(before)
                actor.do("s.recv(100)")
            written = len(wide.connection(port).moved(1))
            actor.do(f"s.sendall({data!r})" if len(data) < 1000 else f"s.sendall({data[:1]!r} * {len(data)})")
            wide.until(lambda: len(wide.connection(port).moved(1)) > written, "the write")
            return wide.connection(port).moved(1)[written]

        write.port = port  # type: ignore[attr-defined]
        yield write


@contextmanager
def talking(actor: Actor) -> Iterator[tuple[int, Callable[[bytes], object]]]:
    """A connection `s` of the actor to a peer that takes everything: its port, and what makes the peer speak."""
    actor.do(
        "import threading; server = socket.create_server(('127.0.0.1', 0));"
        " s = socket.create_connection(server.getsockname()); peer, _ = server.accept();"
        " s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)"
    )
    actor.do(
        "threading.Thread(target=lambda: [None for _ in iter(lambda: peer.recv(1 << 16), b'')], daemon=True).start()"
    )
    port = actor.do("_ = s.getsockname()[1]")
    assert isinstance(port, int)
    yield port, lambda data: actor.do(f"peer.sendall({data!r})")


def test_a_call_after_the_other_side_has_spoken_is_copied_whole(writer: Callable[..., CallRecord]) -> None:
    assert writer(b"x" * LARGE).captured == LARGE
    assert writer(b"x" * LARGE, before=b"and?").captured == LARGE


def test_a_call_that_goes_on_is_copied_to_its_first_part(writer: Callable[..., CallRecord]) -> None:
    writer(b"head")
    for _ in range(3):
        assert writer(b"x" * LARGE).captured == CONTINUED


def test_http2_is_copied_whole_from_its_preface_on(writer: Callable[..., CallRecord]) -> None:
    writer(PREFACE)
    for _ in range(3):
        assert writer(b"x" * LARGE).captured == LARGE


def test_http2_that_user_space_has_found_is_copied_whole(wide: Recorder, writer: Callable[..., CallRecord]) -> None:
    first = writer(b"head")
    policies = Map(wide.capture.policies_descriptor)
    policies.set(struct.pack("=Q", first.connection), struct.pack("=IIBBBBB3x", 0, 0, 0, 0, 1, 0, 1))
    assert writer(b"x" * LARGE).captured == LARGE


def test_bytes_that_are_not_needed_are_left_out(wide: Recorder, writer: Callable[..., CallRecord]) -> None:
    first = writer(b"head")
    until = (first.position + first.size + LARGE + 1000) & 0xFFFFFFFF
    policies = Map(wide.capture.policies_descriptor)
    policies.set(struct.pack("=Q", first.connection), struct.pack("=IIBBBBB3x", 0, until, 0, 1, 0, 0, 1))
    assert writer(b"x" * LARGE).captured == 0
    second = writer(b"x" * LARGE)
    assert (second.offset, second.captured) == (1000, CONTINUED)
