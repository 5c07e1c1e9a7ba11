# SPDX-License-Identifier: Apache-2.0
"""Our Huffman tables against the code list and decoder of `hpack`."""

from __future__ import annotations

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given, settings
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


ENDS_OF_TERMINATED = b"ab'HV#w@&X9,!"
PIECES = st.one_of(
    st.binary(max_size=40).map(ENCODER.encode),
    st.text("0123456789abcdef-", max_size=60).map(lambda text: ENCODER.encode(text.encode())),
    st.lists(st.sampled_from(ENDS_OF_TERMINATED), max_size=40).map(lambda text: ENCODER.encode(bytes(text))),
    st.sampled_from([b"\xff", b"\xff\xff\xff", b"\x1f\xfa", b"\x00", b"\xfe"]),
    st.binary(max_size=20),
)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(PIECES, min_size=1, max_size=3), flipped=st.integers(0, 7), flip=st.booleans())
def test_zlib_and_the_bytewise_way_agree(pieces: list[bytes], flipped: int, flip: bool) -> None:
    coded = b"".join(pieces).ljust(huffman.WORTH_ZLIB, b"\x1f")
    if flip:
        coded = coded[:-1] + bytes((coded[-1] ^ 1 << flipped,))
    assert huffman.decode(coded) == huffman.decode_bytewise(coded)


def test_zlib_decodes_what_header_fields_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huffman, "decode_bytewise", lambda _: None)
    text = bytes(range(0x20, 0x7F)).replace(b"\\", b"")  # the others have up to 15 bits
    for size in range(20, len(text)):
        assert huffman.decode(ENCODER.encode(text[:size])) == text[:size]
