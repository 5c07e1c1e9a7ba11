# SPDX-License-Identifier: Apache-2.0
"""How an HTTP/2 connection begins (RFC 9113 §3.4, §6.5): servers may speak first, and say what nobody has defined."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Call, Completeness, Direction, Operation, ProtocolName, Role
from rover_plugin.access_log.protocols.detect import Detector
from tests.support.http2_conversation import PREFACE, frame
from tests.support.http2_wire import MAX_FRAME_SIZE, SETTINGS_ACK, data, headers, settings

# What gRPC's C core (grpcio 1.7x, server) announces; 0xFE03 is its own ("allow true binary metadata").
CORE = settings((4, 4_194_304), (MAX_FRAME_SIZE, 4_194_304), (6, 16_384), (0xFE03, 1))
WINDOW_UPDATE = frame(8, 0, 0, b"\0\x3f\0\1")
REQUEST = b"\x83\x86\x44\x02/a\x41\x01t"  # POST http /a t, the last two put into the table
AGAIN = b"\x83\x86\xbf\xbe"  # the same by index
SIZE = 100_000


def _hold(
    role: Role, script: list[tuple[str, bytes]], piece: int = 1 << 30, limit: int = 1 << 30, *, client: bool = False
) -> Conversation:
    """What the watched process says and hears: `c` is the client, `s` the server; calls of at most `piece` bytes."""
    talk = Conversation(role)
    calls: list[Call] = []
    for speaker, written in script:
        direction = Direction.EGRESS if (speaker == "c") is client else Direction.INGRESS
        for start in range(0, len(written), piece):
            part = written[start : start + piece]
            operation = Operation.WRITE if direction is Direction.EGRESS else Operation.READ
            calls.append(Call(operation, 0, 10 * len(calls), 10 * len(calls) + 5, len(part)))
            talk.receive(direction, calls[-1], part[:limit], max(len(part) - limit, 0))
    talk.close(10**9)
    out = [id(call) for exchange in talk.exchanges for call in exchange.calls] + [id(call) for call in talk.loose]
    assert sorted(out) == sorted(map(id, calls))
    return talk


def _big_request(*opening: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    """A request whose DATA is one frame, larger than the default, and a small one that needs the table."""
    return [
        *opening,
        ("c", headers(1, REQUEST, end=False) + data(1, bytes(SIZE), end=True)),
        ("s", headers(1, b"\x88", end=False) + data(1, b"hello", end=True)),
        ("c", headers(3, AGAIN)),
        ("s", headers(3, b"\x88")),
    ]


OPENINGS = {
    "the server first": [("s", CORE), ("c", PREFACE + settings()), ("s", SETTINGS_ACK), ("c", SETTINGS_ACK)],
    "the server first, more than SETTINGS": [("s", CORE + WINDOW_UPDATE), ("c", PREFACE + settings())],
    "the server first, with a frame nobody knows": [("s", CORE + frame(0xB1, 0x7, 0, bytes(99))), ("c", PREFACE)],
    "the client first": [("c", PREFACE + settings((3, 0), (0xFE03, 1))), ("s", CORE), ("c", SETTINGS_ACK)],
    "the preface alone": [("s", CORE), ("c", PREFACE), ("c", settings())],
    "behind a PROXY line": [("c", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"), ("s", CORE), ("c", PREFACE)],
}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("opening", OPENINGS)
def test_settings_nobody_knows_hide_none_that_matter(opening: str, role: Role) -> None:
    script = _big_request(*OPENINGS[opening])
    talk = _hold(role, script, client=role is Role.CLIENT)
    assert [(e.method, e.path, e.status, e.request_body_bytes, e.completeness) for e in talk.exchanges] == [
        ("POST", "/a", 200, SIZE, Completeness.COMPLETE),
        ("POST", "/a", 200, 0, Completeness.COMPLETE),
    ]
    assert not talk.errors


@pytest.mark.parametrize("piece", [1, 2, 5, 9, 10, 23, 24, 25, 33])
def test_the_server_s_first_frames_in_pieces(piece: int) -> None:
    opening = [("s", settings((0xFE03, 1), (MAX_FRAME_SIZE, 1 << 20))), ("c", PREFACE)]
    talk = Conversation(Role.SERVER)
    calls = 0
    for speaker, written in _big_request(*opening):
        size = piece if written in {opening[0][1], opening[1][1]} else len(written)
        for start in range(0, len(written), size):
            part = written[start : start + size]
            direction = Direction.INGRESS if speaker == "c" else Direction.EGRESS
            call = Call(Operation.READ, 0, calls, calls + 1, len(part))
            talk.receive(direction, call, part, 0)
            calls += 1
    talk.close(10**9)
    assert [(e.path, e.request_body_bytes) for e in talk.exchanges] == [("/a", SIZE), ("/a", 0)]


@pytest.mark.parametrize(
    ("pairs", "proves"),
    [
        (((0xFE03, 1),), True),
        (((0xFFFF, 0xFFFFFFFF), (0x11, 7), (0, 0)), True),
        (((0x0A0A, 3),), True),
        (((2, 2),), False),  # ENABLE_PUSH
        (((4, 1 << 31),), False),  # INITIAL_WINDOW_SIZE
        (((5, 16_383),), False),  # MAX_FRAME_SIZE
        (((5, 1 << 24),), False),
    ],
)
def test_unknown_identifiers_are_ignored_and_impossible_values_are_not(
    pairs: tuple[tuple[int, int], ...], proves: bool
) -> None:
    detector = Detector()
    detector.feed(Direction.EGRESS, settings(*pairs))
    assert (detector.begun(Direction.EGRESS) == 1) is proves


def test_what_a_server_said_before_the_preface_is_kept_whatever_it_is() -> None:
    talk = _hold(Role.SERVER, [("s", b"\xff" * 30), ("c", PREFACE + settings() + headers(1, REQUEST))])
    assert talk.protocol is ProtocolName.HTTP2
    assert talk.errors == {"frame_size": 1}  # looked at, and no frame


def test_what_a_proxy_said_before_the_preface_is_not_the_server_s() -> None:
    socks = [("c", b"\5\1\0"), ("s", b"\5\0"), ("c", b"\5\1\0\1\x7f\0\0\1\0\x50"), ("s", b"\5" + bytes(9))]
    talk = _hold(Role.SERVER, _big_request(*socks, *OPENINGS["the server first"]))
    assert [(e.path, e.completeness) for e in talk.exchanges] == [("/a", Completeness.COMPLETE)] * 2
    assert not talk.errors


def test_a_large_frame_is_taken_even_if_the_settings_that_allow_it_are_seen_later() -> None:
    opening = [("c", PREFACE + settings()), ("s", settings())]
    late = _big_request(*opening)
    late.insert(3, ("s", settings((MAX_FRAME_SIZE, 1 << 20))))
    talk = _hold(Role.SERVER, late)
    assert [(e.path, e.request_body_bytes) for e in talk.exchanges] == [("/a", SIZE), ("/a", 0)]
    assert not talk.errors
