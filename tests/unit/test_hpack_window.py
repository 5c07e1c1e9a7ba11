# SPDX-License-Identifier: Apache-2.0
"""The header decoder that joins late: what it says is right, what it cannot know it counts as unknown."""

from __future__ import annotations

import hpack
import pytest

from rover_plugin.access_log.protocols.http2.hpack import (
    SW8_BY_SHAPE,
    TRACEPARENT_BY_SHAPE,
    UNKNOWN_LIMIT_WINDOW,
    HeaderDecoder,
)
from tests.support.hpack_stories import as_read
from tests.support.http2_conversation import seeded, traceparent

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def late() -> HeaderDecoder[dict[bytes, str]]:
    decoder = HeaderDecoder(dict, from_start=True)
    decoder.restart()
    return decoder


@pytest.mark.parametrize("table_size", [128, 4096, 20_000])
def test_late_decoders_never_say_what_the_reference_does_not(table_size: int) -> None:
    source = seeded(table_size)
    encoder, reference = hpack.Encoder(), hpack.Decoder()
    encoder.header_table_size = table_size
    reference.max_allowed_table_size = table_size
    pool = [(f"x-{n}", "v" * source.randrange(60)) for n in range(30)]
    joined: list[HeaderDecoder[dict[bytes, str]]] = []
    right = unknown = 0
    for number in range(300):
        headers = [(":method", source.choice(("GET", "PUT"))), (":path", f"/{source.randrange(20)}")]
        headers += [(":authority", f"h{source.randrange(4)}"), *source.sample(pool, 5)]
        if source.random() < 0.5:
            headers.append(("traceparent", traceparent(source)))
        block = encoder.encode(headers)
        expected = as_read(reference.decode(block, raw=True))
        if number % 3 == 0:
            joined.append(late())
        for decoder in joined:
            _, fields, missing, error = decoder.decode(block)
            assert not error
            for name, value in fields.items():
                if name == TRACEPARENT_BY_SHAPE:
                    assert value == expected[b"traceparent"]
                else:
                    assert value == expected[name]
            assert missing or fields == expected
            right += len(fields)
            unknown += missing
    assert right  # the encoder never inserts again what a large table keeps, so `unknown` may well be more


def test_a_reference_beyond_the_window_is_unknown_and_one_inside_is_exact() -> None:
    decoder = late()
    decoder.decode(bytes.fromhex("4101") + b"a")  # :authority a
    _, fields, unknown, error = decoder.decode(bytes.fromhex("bebfff10"))
    assert (fields, unknown, error) == ({b":authority": "a"}, 2, "")


def test_a_value_under_an_unknown_name_is_never_given_a_name() -> None:
    decoder = late()
    _, fields, unknown, _ = decoder.decode(bytes.fromhex("7f0103") + b"/ab")
    assert (fields, unknown) == ({}, 1)
    _, fields, unknown, _ = decoder.decode(b"\xbe")  # the same entry again, now inside the window
    assert (fields, unknown) == ({}, 1)
    _, fields, unknown, _ = decoder.decode(b"\x7e\x01x")  # its name for another value
    assert (fields, unknown) == ({}, 1)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (TRACE, TRACEPARENT_BY_SHAPE),
        (b"1-dHJhY2U=-c2VnbWVudA==-3-c2hvcA==-c2hvcC0x-L2NhcnQ=-MTAuMC4wLjE6ODA=", SW8_BY_SHAPE),
        (TRACE.replace(b"00-", b"ff-", 1), None),
        (b"00-" + b"0" * 32 + TRACE[35:], None),
    ],
)
def test_only_the_shape_of_a_trace_header_stands_for_its_name(value: bytes, key: bytes | None) -> None:
    _, fields, unknown, _ = late().decode(bytes.fromhex("7f20") + bytes((len(value),)) + value)
    assert fields == ({} if key is None else {key: value})
    assert unknown == 1


def test_a_limit_of_zero_empties_the_table_so_nothing_is_unknown_any_more() -> None:
    decoder = late()
    decoder.decode(b"\x20")
    assert decoder.complete
    assert decoder.decode(b"\xbe")[3] == "hpack_index"


def test_a_window_that_fills_the_announced_limit_is_the_whole_table() -> None:
    decoder = late()
    decoder.decode(bytes.fromhex("3f45"))  # limit 100
    assert not decoder.complete
    for letter in b"abc":
        decoder.decode(b"\x40\x01" + bytes((letter,)) + b"\x05value")  # 38 bytes each
    assert decoder.complete
    assert [name for _, name, _, _ in decoder.entries] == [b"b", b"c"]


def test_a_window_of_unknown_limit_is_bounded() -> None:
    decoder = late()
    for _ in range(1000):
        decoder.decode(b"\x40\x01a\x7f\x81\x01" + b"v" * 256)
    assert decoder.size <= UNKNOWN_LIMIT_WINDOW
    assert not decoder.complete
