# SPDX-License-Identifier: Apache-2.0

"""The header decoder from a connection's start: exact against RFC 7541 appendix C and against `hpack`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import hpack
import pytest
from hpack.exceptions import HPACKError
from hpack.hpack import encode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.access_log.protocols.http2.hpack import STATIC, HeaderDecoder
from tests.support.hpack_stories import as_kept, as_read
from tests.support.http2_conversation import seeded, traceparent

if TYPE_CHECKING:
    import random

HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
NAMES = ["a", "x-long-name", "cookie", "date", "content-length", ":path", ":authority", ":status", "host", "b3"]


def table(decoder: HeaderDecoder[dict[bytes, str]]) -> list[tuple[bytes | None, str]]:
    """The dynamic table, newest first, as `hpack` keeps it."""
    return [(name, text) for _, name, text, _ in reversed(decoder.entries)]


def from_start() -> HeaderDecoder[dict[bytes, str]]:
    return HeaderDecoder(dict, from_start=True)


def assert_same(decoder: HeaderDecoder[dict[bytes, str]], reference: hpack.Decoder, block: bytes) -> bool:
    """Decodes one block with both; returns whether both accept it."""
    try:
        expected = reference.decode(block, raw=True)
    except HPACKError:
        expected = None
    _, fields, unknown, error = decoder.decode(block)
    if expected is None:
        return False
    assert not error
    assert not unknown
    assert fields == as_read(expected)
    assert table(decoder) == [(name, as_kept(name, value)) for name, value in reference.header_table.dynamic_entries]
    assert decoder.size == reference.header_table._current_size
    return True


RFC_7541_C = {
    "C.3 requests": (4096, """
        828684410f7777772e6578616d706c652e636f6d
        828684be58086e6f2d6361636865
        828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565
    """),
    "C.4 requests, Huffman": (4096, """
        828684418cf1e3c2e5f23a6ba0ab90f4ff
        828684be5886a8eb10649cbf
        828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf
    """),
    "C.5 responses with eviction": (256, """
        4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e17\
68747470733a2f2f7777772e6578616d706c652e636f6d
        4803333037c1c0bf
        88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d41\
53444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31
    """),
}  # fmt: skip


@pytest.mark.parametrize("name", RFC_7541_C)
def test_examples_of_the_rfc(name: str) -> None:
    size, blocks = RFC_7541_C[name]
    decoder, reference = from_start(), hpack.Decoder()
    decoder.limit = decoder.room = size
    reference.header_table_size = size
    for block in blocks.split():
        assert assert_same(decoder, reference, bytes.fromhex(block))


def test_static_table_is_the_rfcs() -> None:
    expected = [(name, as_kept(name, value)) for name, value in HeaderTable.STATIC_TABLE]
    assert [(name, text) for _, name, text, _ in STATIC[1:]] == expected


def literal(source: random.Random, text: bytes) -> bytes:
    coded = HUFFMAN.encode(text)
    if source.random() < 0.5:
        return bytes(encode_integer(len(text), 7)) + text
    length = encode_integer(len(coded), 7)
    length[0] |= 0x80
    return bytes(length) + coded


def integer(value: int, prefix: int, pattern: int) -> bytes:
    encoded = encode_integer(value, prefix)
    encoded[0] |= pattern
    return bytes(encoded)


def random_block(source: random.Random, entries: int) -> bytes:
    """Any representations, size updates first, references mostly inside the table."""
    out = b""
    while source.random() < 0.05:
        out += integer(source.choice((0, 60, 200, 1000, 4096)), 5, 0x20)
    for _ in range(source.randrange(8)):
        index = source.randint(1, 61 + entries)
        kind = source.random()
        if kind < 0.45:
            out += integer(index, 7, 0x80)
            continue
        prefix, pattern = ((6, 0x40), (4, 0x00), (4, 0x10))[source.choice((0, 0, 1, 2))]
        if source.random() < 0.5:
            out += integer(index, prefix, pattern)
        else:
            out += bytes((pattern,)) + literal(source, source.choice(NAMES).encode())
        value = source.randbytes(source.choice((0, 3, 30))) if source.random() < 0.5 else traceparent(source).encode()
        out += literal(source, value if source.random() < 0.98 else value * 200)
    return out


def valid_block(source: random.Random, reference: hpack.Decoder) -> bytes:
    """A random block that a copy of the reference accepts: evictions inside a block can make its references invalid."""
    while True:
        block = random_block(source, len(reference.header_table.dynamic_entries))
        try:
            copy.deepcopy(reference).decode(block, raw=True)
        except HPACKError:
            continue
        return block


def test_6000_random_blocks_agree_with_the_reference() -> None:
    source = seeded(7541)
    accepted = 0
    for _ in range(60):
        decoder, reference = from_start(), hpack.Decoder()
        for _ in range(100):
            accepted += assert_same(decoder, reference, valid_block(source, reference))
    assert accepted == 6000


@given(st.binary(max_size=60))
def test_whatever_the_reference_accepts_any_bytes_decode_alike(block: bytes) -> None:
    assert_same(from_start(), hpack.Decoder(), block)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_give_fields_or_an_error_and_never_more(blocks: list[bytes]) -> None:
    decoder = from_start()
    for block in blocks:
        _, _, unknown, error = decoder.decode(block)
        assert not error or unknown


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("80", "hpack_index"),
        ("bf", "hpack_index"),
        ("7f0000", "hpack_index"),
        ("ffffffffffff", "hpack_integer"),
        ("4105", "hpack_truncated"),
        ("41", "hpack_truncated"),
        ("4181ff", "hpack_huffman"),
        ("4000", "hpack_truncated"),
        ("3fe2ff03", "hpack_table_size"),
        ("8220", "hpack_table_size"),
        ("8f20", "hpack_table_size"),
    ],
)
def test_errors_are_named_and_the_table_is_forgotten(block: str, error: str) -> None:
    decoder = from_start()
    decoder.decode(bytes.fromhex("4001610162"))
    assert decoder.decode(bytes.fromhex(block))[3] == error
    assert not decoder.entries
    assert not decoder.complete


def test_fields_before_an_error_are_kept() -> None:
    _, fields, unknown, error = from_start().decode(bytes.fromhex("8284ff"))
    assert fields == {b":method": "GET", b":path": "/"}
    assert (unknown, error) == (1, "hpack_truncated")


def test_a_repeated_indexed_block_is_interpreted_once_until_the_table_changes() -> None:
    interpreted: list[dict[bytes, str]] = []
    decoder = HeaderDecoder(interpreted.append, from_start=True)
    insert = bytes.fromhex("4104") + b"host"
    decoder.decode(insert)
    for _ in range(3):
        assert decoder.decode(b"\x82\xbe")[1] == {b":method": "GET", b":authority": "host"}
    assert len(interpreted) == 2
    decoder.decode(bytes.fromhex("4105") + b"other")
    assert decoder.decode(b"\x82\xbe")[1][b":authority"] == "other"


def test_a_limit_above_a_megabyte_is_kept_to_a_megabyte_and_the_rest_is_unknown() -> None:
    decoder = from_start()
    decoder.allowed = None
    decoder.decode(integer(4 << 20, 5, 0x20))
    big = b"v" * 30_000
    for _ in range(40):
        decoder.decode(b"\x40\x01a" + integer(len(big), 7, 0) + big)
    assert decoder.size <= 1 << 20
    assert decoder.decode(integer(61 + 40, 7, 0x80))[1:] == ({}, 1, "")
