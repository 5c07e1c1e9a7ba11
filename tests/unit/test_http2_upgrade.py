# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 by prior knowledge and by upgrade from HTTP/1.1 (RFC 7540 §3.2), as one connection's conversation sees it."""

from __future__ import annotations

import itertools

import hpack
import pytest

from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Call, Completeness, Direction, Exchange, Operation, ProtocolName, Role
from tests.support.http2_conversation import PREFACE, get
from tests.support.http2_wire import HEADER_TABLE_SIZE, SETTINGS_ACK, data, headers, settings

UP, DOWN = Direction.INGRESS, Direction.EGRESS  # the watched process is the server
UPGRADE = (
    b"POST /first?q HTTP/1.1\r\nHost: h.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAABAAAAMAAABk\r\nContent-Length: 4\r\n\r\nbody"
)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


def _run(script: list[tuple[Direction, bytes]], role: Role) -> tuple[Conversation, list[Call]]:
    talk = Conversation(role)
    calls = []
    positions = [1000, 2000]
    for number, (direction, written) in enumerate(script):
        operation = Operation.READ if direction is Direction.INGRESS else Operation.WRITE
        position, opposite = positions[direction], positions[1 - direction]
        positions[direction] += len(written)
        calls.append(
            Call(operation, 0, 10 * number, 10 * number + 5, len(written), position=position, opposite=opposite)
        )
        talk.receive(direction, calls[-1], written, 0)
    talk.close(10**6)
    out = [id(call) for exchange in talk.exchanges for call in exchange.calls] + [id(call) for call in talk.loose]
    out += [id(call) for _, earlier in talk.earlier for call in earlier]
    assert sorted(out) == sorted(map(id, calls))
    return talk, calls


def _cuts(script: list[tuple[Direction, bytes]]) -> list[list[tuple[Direction, bytes]]]:
    return [script] + [
        [*script[:index], (direction, written[:at]), (direction, written[at:]), *script[index + 1 :]]
        for index, (direction, written) in enumerate(script)
        for at in range(1, len(written))
    ]


def _upgraded_script() -> list[tuple[Direction, bytes]]:
    up, down = hpack.Encoder(), hpack.Encoder()
    return [
        (UP, UPGRADE),
        (DOWN, SWITCHING + settings((HEADER_TABLE_SIZE, 4096))),
        (DOWN, headers(1, down.encode([(":status", "200")]), end=False) + data(1, b"hello", end=True)),
        (UP, PREFACE + settings() + SETTINGS_ACK),
        (UP, headers(3, up.encode(get("/second", "h.test")))),
        (DOWN, headers(3, down.encode([(":status", "404")]))),
    ]


def _check(exchanges: list[Exchange]) -> None:
    first, second = exchanges
    assert (first.version, first.stream_id, first.method, first.path, first.host) == (2, 1, "POST", "/first", "h.test")
    assert (first.status, first.request_body_bytes, first.response_body_bytes) == (200, 4, 5)
    assert (second.stream_id, second.method, second.path, second.status) == (3, "GET", "/second", 404)
    assert first.completeness is second.completeness is Completeness.COMPLETE


def test_an_upgrade_makes_the_request_stream_1_wherever_calls_cut() -> None:
    for script in _cuts(_upgraded_script()):
        talk, calls = _run(script, Role.SERVER)
        _check(talk.exchanges)
        assert talk.protocol is ProtocolName.HTTP2
        assert not talk.errors
        assert talk.exchanges[0].start_ns == calls[0].exit_ns


def test_the_answer_to_an_upgrade_in_one_call_with_the_101() -> None:
    script = _upgraded_script()
    script[1:3] = [(DOWN, script[1][1] + script[2][1])]
    talk, _ = _run(script, Role.SERVER)
    _check(talk.exchanges)


def test_an_upgrade_that_the_server_declines_stays_http_1() -> None:
    talk, _ = _run([(UP, UPGRADE), (DOWN, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")], Role.SERVER)
    assert [(exchange.version, exchange.status) for exchange in talk.exchanges] == [(1, 200)]
    assert talk.protocol is ProtocolName.HTTP1


@pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT, Role.UNKNOWN])
def test_prior_knowledge_wherever_calls_cut(role: Role) -> None:
    up, down = hpack.Encoder(), hpack.Encoder()
    requests = Direction.EGRESS if role is Role.CLIENT else Direction.INGRESS
    responses = Direction.INGRESS if role is Role.CLIENT else Direction.EGRESS
    script = [
        (responses, settings()),  # a server may speak first
        (requests, PREFACE + settings() + headers(1, up.encode(get("/one")))),
        (responses, SETTINGS_ACK + headers(1, down.encode([(":status", "200")]))),
        (requests, SETTINGS_ACK + headers(3, up.encode(get("/two")))),
        (responses, headers(3, down.encode([(":status", "204")]))),
    ]
    for order in ([0, 1, 2, 3, 4], [1, 0, 2, 3, 4]):
        for variant in itertools.islice(_cuts([script[index] for index in order]), 400):
            talk, _ = _run(variant, role)
            assert [(e.path, e.status) for e in talk.exchanges] == [("/one", 200), ("/two", 204)]
            assert talk.role is (Role.SERVER if role is Role.UNKNOWN else role)
            if role is not Role.UNKNOWN:
                assert all(e.completeness is Completeness.COMPLETE for e in talk.exchanges)


@pytest.mark.parametrize("role", [Role.SERVER, Role.UNKNOWN])
def test_a_head_request_upgrades_as_any_other(role: Role) -> None:
    """Java's HttpClient and `curl -I --http2` ask so."""
    up, down = hpack.Encoder(), hpack.Encoder()
    script = [
        (
            UP,
            UPGRADE.replace(b"POST /first?q", b"HEAD /h").replace(b"Content-Length: 4\r\n\r\nbody", b"\r\n"),
        ),
        (DOWN, SWITCHING + settings()),
        (UP, PREFACE + settings() + SETTINGS_ACK),
        (DOWN, headers(1, down.encode([(":status", "200"), ("content-length", "1000")]))),
        (UP, headers(3, up.encode(get("/second", "h.test")))),
        (DOWN, headers(3, down.encode([(":status", "404")]))),
    ]
    for cut in _cuts(script):
        if role is Role.UNKNOWN and cut[0] != script[0]:
            continue  # who comes in the middle of a start line has missed it
        talk, _ = _run(cut, role)
        assert [(e.method, e.path, e.status, e.response_body_bytes, e.completeness) for e in talk.exchanges] == [
            ("HEAD", "/h", 200, 0, Completeness.COMPLETE),
            ("GET", "/second", 404, 0, Completeness.COMPLETE),
        ]
