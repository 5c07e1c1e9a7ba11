# SPDX-License-Identifier: Apache-2.0
"""SETTINGS bound the other side's encoder from when they are sent, for certain from when they are acknowledged."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Completeness, Exchange, Side
from tests.support.http2_conversation import get
from tests.support.http2_wire import HEADER_TABLE_SIZE, SETTINGS_ACK, Wire, headers, one, settings

REPEATED = get("/a-path-that-is-indexed", "a-host-that-is-indexed.test", x_custom="value")


def _pairs(wire: Wire, *streams: int) -> None:
    for stream_id in streams:
        wire.up(wire.request(stream_id, REPEATED))
        wire.down(wire.response(stream_id, 200, [("server", "test"), ("x-number", "1")]))


def _all_right(exchanges: list[Exchange], count: int) -> None:
    assert len(exchanges) == count
    for exchange in exchanges:
        assert (exchange.path, exchange.host, exchange.status) == (
            "/a-path-that-is-indexed",
            "a-host-that-is-indexed.test",
            200,
        )
        assert exchange.completeness is Completeness.COMPLETE


@pytest.mark.parametrize("size", [0, 60, 1000, 65_536])
def test_the_server_s_table_size_bounds_the_client_s_encoder(size: int) -> None:
    wire = Wire()
    _pairs(wire, 1)
    wire.down(settings((HEADER_TABLE_SIZE, size)))
    wire.up(SETTINGS_ACK)
    wire.encoders[Side.REQUEST].header_table_size = size
    _pairs(wire, 3, 5)
    _all_right(wire.finish(), 3)
    assert not wire.errors


@pytest.mark.parametrize("size", [0, 60, 1000, 65_536])
def test_the_client_s_table_size_bounds_the_server_s_encoder(size: int) -> None:
    wire = Wire()
    _pairs(wire, 1)
    wire.up(settings((HEADER_TABLE_SIZE, size)))
    wire.down(SETTINGS_ACK)
    wire.encoders[Side.RESPONSE].header_table_size = size
    _pairs(wire, 3, 5)
    _all_right(wire.finish(), 3)
    assert not wire.errors


def test_the_two_directions_have_tables_of_their_own() -> None:
    wire = Wire()
    shared = [("x-same", "same-value")]
    for stream_id in (1, 3, 5):
        wire.up(wire.request(stream_id, get(f"/{stream_id}", "h.test") + shared))
        wire.down(wire.response(stream_id, 200 + stream_id, shared))
    assert [(e.path, e.host, e.status) for e in wire.finish()] == [
        ("/1", "h.test", 201),
        ("/3", "h.test", 203),
        ("/5", "h.test", 205),
    ]


def test_a_larger_table_may_be_used_before_it_is_acknowledged() -> None:
    wire = Wire()
    wire.down(settings((HEADER_TABLE_SIZE, 10_000)))
    wire.encoders[Side.REQUEST].header_table_size = 10_000
    _pairs(wire, 1)  # on its way before the client's ACK
    wire.up(SETTINGS_ACK)
    _pairs(wire, 3)
    _all_right(wire.finish(), 2)
    assert not wire.errors


def test_a_smaller_table_binds_from_the_acknowledgement_on() -> None:
    wire = Wire()
    wire.up(SETTINGS_ACK)  # of the one at the connection's beginning
    wire.down(settings((HEADER_TABLE_SIZE, 100)))
    _pairs(wire, 1)
    wire.up(headers(3, b"\x3f\xe1\x1f" + wire.block(Side.REQUEST, REPEATED)))  # still says 4096
    wire.down(wire.response(3))
    wire.up(SETTINGS_ACK)
    wire.up(headers(5, b"\x3f\xe1\x1f" + wire.block(Side.REQUEST, REPEATED)))
    wire.down(wire.response(5))
    exchanges = wire.finish()
    _all_right(exchanges[:2], 2)
    assert exchanges[2].completeness is not Completeness.COMPLETE
    assert wire.errors == {"hpack_table_size": 1}


def test_of_several_settings_on_their_way_each_is_acknowledged_by_itself() -> None:
    wire = Wire()
    wire.down(settings((HEADER_TABLE_SIZE, 100)), settings((3, 100)), settings((HEADER_TABLE_SIZE, 8000)))
    wire.up(SETTINGS_ACK)  # of the one at the connection's beginning
    wire.up(SETTINGS_ACK)  # 100: but 8000 is on its way
    wire.encoders[Side.REQUEST].header_table_size = 8000
    _pairs(wire, 1)
    wire.up(SETTINGS_ACK, SETTINGS_ACK)
    _pairs(wire, 3)
    _all_right(wire.finish(), 2)
    assert not wire.errors


def test_the_last_of_a_repeated_setting_counts() -> None:
    wire = Wire()
    wire.down(settings((HEADER_TABLE_SIZE, 1), (HEADER_TABLE_SIZE, 9000)))
    wire.up(SETTINGS_ACK, SETTINGS_ACK)
    wire.encoders[Side.REQUEST].header_table_size = 9000
    _pairs(wire, 1)
    _all_right(wire.finish(), 1)


def test_more_acknowledgements_than_settings_change_nothing() -> None:
    wire = Wire()
    wire.up(*[SETTINGS_ACK] * 5)
    wire.down(*[SETTINGS_ACK] * 5)
    _pairs(wire, 1)
    assert one(wire.finish()).completeness is Completeness.COMPLETE


def test_settings_that_nobody_acknowledges_take_no_room_for_ever() -> None:
    wire = Wire()
    many = b"".join(settings((HEADER_TABLE_SIZE, 4096 + number)) for number in range(200))
    wire.then(lambda feeder: feeder.feed(Side.RESPONSE, many))
    wire.then(lambda feeder: _bounded(len(feeder.analyzer._response.settings_sent)))
    _pairs(wire, 1)
    assert one(wire.finish()).completeness is Completeness.COMPLETE


def _bounded(count: int) -> None:
    assert count <= 64
