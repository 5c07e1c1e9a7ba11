# SPDX-License-Identifier: Apache-2.0
"""Header blocks of eight foreign encoders (tests/data/hpack): decoded exactly, and wherever CONTINUATION cuts them."""

from __future__ import annotations

import hpack
import pytest

from rover_plugin.access_log.model import Completeness, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from rover_plugin.access_log.protocols.http2.hpack import HeaderDecoder
from tests.support.hpack_stories import ENCODERS, Case, as_kept, as_read, stories
from tests.support.http2_conversation import PREFACE, Feeder, frame


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_block_is_decoded_and_the_table_is_the_reference_s(encoder: str) -> None:
    blocks = 0
    for cases in stories(encoder).values():
        decoder, reference = HeaderDecoder(dict, from_start=True), hpack.Decoder()
        for case in cases:
            if case.table_size is not None:
                decoder.allowed = reference.max_allowed_table_size = case.table_size
            expected = [(name.encode(), value.encode()) for name, value in case.headers]
            assert list(reference.decode(case.block, raw=True)) == expected
            _, fields, unknown, error = decoder.decode(case.block)
            assert (fields, unknown, error) == (as_read(expected), 0, "")
            table = [(name, text) for _, name, text, _ in reversed(decoder.entries)]
            assert table == [(name, as_kept(name, value)) for name, value in reference.header_table.dynamic_entries]
            blocks += 1
    assert blocks >= 35


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_decoder_that_joins_at_any_block_says_nothing_wrong(encoder: str) -> None:
    known = 0
    for cases in stories(encoder).values():
        for start in range(1, len(cases)):
            decoder = HeaderDecoder(dict, from_start=False)
            for case in cases[start:]:
                _, fields, unknown, error = decoder.decode(case.block)
                expected = as_read((name.encode(), value.encode()) for name, value in case.headers)
                assert not error
                for name, value in fields.items():
                    if name in expected or not name.endswith(b"by shape"):
                        assert expected[name] == value
                assert unknown or fields == expected
                known += len(fields)
    assert known


def _cut_at(case: Case, at: int, stream_id: int) -> bytes:
    """HEADERS with the block's first `at` bytes, CONTINUATION with the rest."""
    return frame(1, 0x1, stream_id, case.block[:at]) + frame(9, 0x4, stream_id, case.block[at:])


def _settings(case: Case, feeder: Feeder, side: Side) -> None:
    if case.table_size is not None:
        other = Side.RESPONSE if side is Side.REQUEST else Side.REQUEST
        feeder.feed(other, frame(4, 0, 0, b"\0\x01" + case.table_size.to_bytes(4)))
        feeder.feed(side, frame(4, 1, 0))


_REQUEST = bytes.fromhex("82864184") + b"host" + bytes.fromhex("84")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_block_cut_at_every_byte_as_continuation(encoder: str) -> None:
    for story in stories(encoder).values():
        cases = story if sum(len(case.block) for case in story) < 1500 else story[:3]
        side = Side.REQUEST if cases[0].is_request else Side.RESPONSE
        for cut in range(max(len(case.block) for case in cases) + 1):
            feeder = Feeder(Http2Analyzer(joined=False))
            feeder.feed(Side.REQUEST, PREFACE + frame(4, 0, 0))
            feeder.feed(Side.RESPONSE, frame(4, 0, 0))
            for number, case in enumerate(cases):
                _settings(case, feeder, side)
                stream_id = 2 * number + 1
                at = min(cut, len(case.block))
                if side is Side.REQUEST:
                    feeder.feed(side, _cut_at(case, at, stream_id))
                    feeder.feed(Side.RESPONSE, frame(1, 0x5, stream_id, b"\x88"))
                else:
                    feeder.feed(Side.REQUEST, frame(1, 0x5, stream_id, _REQUEST))
                    feeder.feed(side, _cut_at(case, at, stream_id))
            exchanges = feeder.finish()
            assert not feeder.analyzer.errors
            assert len(exchanges) == len(cases)
            for case, exchange in zip(cases, exchanges, strict=True):
                assert exchange.completeness is Completeness.COMPLETE
                if side is Side.REQUEST:
                    assert exchange.method == case.first(":method")
                    assert exchange.host == (case.first(":authority") or case.first("host"))
                    assert exchange.path == (case.first(":path") or "").partition("?")[0].partition("#")[0]
                    assert exchange.request_header_bytes == len(case.block)
                else:
                    assert exchange.status == int(case.first(":status") or 0)
                    assert exchange.response_header_bytes == len(case.block)
