# SPDX-License-Identifier: Apache-2.0
"""Our Huffman tables against the code list and decoder of `hpack`."""

from __future__ import annotations

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.access_log.protocols.http2 import huffman

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def test_code_lengths_give_the_code_of_rfc_7541() -> None:
    assert huffman.code_table() == list(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True))


@given(st.binary(max_size=200))
def test_decodes_what_the_reference_encodes(text: bytes) -> None:
    assert huffman.decode(ENCODER.encode(text)) == text


@given(st.binary(max_size=40))
def test_accepts_and_rejects_any_bytes_as_the_reference_does(coded: bytes) -> None:
    try:
        expected = decode_huffman(coded)
    except HPACKDecodingError:
        expected = None
    assert huffman.decode(coded) == expected


@pytest.mark.parametrize(
    "coded",
    [
        pytest.param(b"\xff\xff\xff\xff", id="EOS"),
        pytest.param(ENCODER.encode(b"aa") + b"\xff", id="eight bits of padding"),
        pytest.param(b"\x18", id="padding of zeros"),
    ],
)
def test_rejects_what_section_5_2_calls_an_error(coded: bytes) -> None:
    assert huffman.decode(coded) is None


def test_the_empty_string_is_empty() -> None:
    assert huffman.decode(b"") == b""
