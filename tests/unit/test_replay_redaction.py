# SPDX-License-Identifier: Apache-2.0
"""What a redacted recording keeps, and what it hides."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.protocols.http2.hpack import HeaderDecoder
from rover_plugin.access_log.redaction import known
from rover_plugin.access_log.redaction.hpack import redact_block
from rover_plugin.access_log.redaction.http1 import redact_head

if TYPE_CHECKING:
    from collections.abc import Iterable

_VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)
_NAMES = st.sampled_from(["cookie", "authorization", "x-api-key", "user-agent", "x-trace", ":authority"])
NAMES = {name.decode() for name in known.NAMES}
_PATHS = _VALUES.map(lambda text: "/" + text)


def _redacted(blocks: Iterable[bytes]) -> list[bytes]:
    decoder = HeaderDecoder(lambda _: None, from_start=True)
    found = [redact_block(block, decoder) for block in blocks]
    assert None not in found
    return [block for block in found if block is not None]


def test_values_are_hidden_and_their_lengths_stay() -> None:
    head = (
        b"POST /api/users?token=s3cr3t HTTP/1.1\r\nHost: shop.example.com\r\nCookie: a=s3cr3t\r\n"
        b"Authorization: Bearer s3cr3t\r\nContent-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    redacted = redact_head(head)
    assert redacted == (
        b"POST /xxx/xxxxx?xxxxxxxxxxxx HTTP/1.1\r\nHost: xxxxxxxxxxxxxxxx\r\nCookie: xxxxxxxx\r\n"
        b"Authorization: xxxxxx xxxxxx\r\nContent-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://user:s3cr3t@host/s3cr3t#s3cr3t HTTP/1.1\r\nX:s3cr3t\r\n s3cr3t\r\n\r\n",
        b"s3cr3t /s3cr3t HTTP/1.1\r\ns3cr3t\r\nConnection: s3cr3t, close\r\nUpgrade: s3cr3t\r\n\r\n",
        b"HTTP/1.1 200 s3cr3t\r\nSet-Cookie: s3cr3t; Path=/s3cr3t\r\nContent-Length: s3cr3t\r\n\r\n",
        b"GET s3cr3t\r\nTransfer-Encoding: s3cr3t\r\n\r\n",
        b"S3CR3T /x HTTP/1.1\r\nX-s3cr3t: 1\r\nContent-Type: multipart/form-data; boundary=s3cr3t\r\n\r\n",
    ],
)
def test_nothing_odd_in_a_head_lets_a_value_through(head: bytes) -> None:
    redacted = redact_head(head)
    assert len(redacted) == len(head)
    assert b"s3cr3t" not in redacted.lower()


@settings(deadline=None)
@given(st.lists(st.tuples(_PATHS, st.lists(st.tuples(_NAMES, _VALUES), max_size=5)), min_size=1, max_size=6), st.data())
def test_header_blocks_keep_their_length_their_tables_and_the_form_of_paths(
    requests: list[tuple[str, list[tuple[str, str]]]], data: st.DataObject
) -> None:
    encoder = Encoder()
    huffman = data.draw(st.booleans())
    blocks = [
        encoder.encode([(":method", "GET"), (":path", path), *fields], huffman=huffman) for path, fields in requests
    ]
    plain, hidden = Decoder(), Decoder()
    for block, redacted in zip(blocks, _redacted(blocks), strict=True):
        assert len(redacted) == len(block)
        before, after = plain.decode(block), hidden.decode(redacted)
        assert [(len(name), len(value)) for name, value in after] == [(len(name), len(value)) for name, value in before]
        assert [name for name, _ in after if name in NAMES] == [name for name, _ in before if name in NAMES]
        for (name, value), (_, other) in zip(before, after, strict=True):
            if name == ":path":
                marks = [at for at, character in enumerate(value) if character in "/?"]
                assert [at for at, character in enumerate(other) if character in "/?"] == marks
    assert plain.header_table_size == hidden.header_table_size


def test_no_value_can_be_told_from_another_of_the_same_length_in_letters_and_digits() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    generator = random.Random(1)
    words = {"".join(generator.choices(letters, k=40)) for _ in range(50)}
    seen: dict[int, set[bytes]] = {}
    for word in words:
        encoder = Encoder()
        block = encoder.encode([("cookie", word)], huffman=True)
        (redacted,) = _redacted([block])
        seen.setdefault(len(block), set()).add(redacted)
    assert all(len(variants) == 1 for variants in seen.values())


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize(
    ("name", "shown", "hidden"),
    [
        (":method", "PROPFIND", "S3CR3T"),
        (":scheme", "https", "s3cr3t"),
        (":status", "204", "s3cr3t"),
        (":protocol", "websocket", "s3cr3t"),
        ("content-type", "application/grpc+proto", "text/x; boundary=s3cr3t"),
        ("grpc-status", "13", "s3cr3t"),
        ("x-s3cr3t", "", "1"),
    ],
)
def test_only_everybodys_values_and_names_are_shown(name: str, shown: str, hidden: str, huffman: bool) -> None:
    for value in (shown, hidden):
        block = Encoder().encode([(name, value)], huffman=huffman)
        ((after, seen),) = Decoder().decode(_redacted([block])[0])
        assert (seen == value) is (value == shown)
        assert "s3cr3t" not in f"{after}{seen}".lower()
