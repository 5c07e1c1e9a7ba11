# SPDX-License-Identifier: Apache-2.0
"""What bytes made to be expensive cost: no more lines of Python than ordinary requests, and no memory by reference.

Lines are counted, not timed; `tests/bench/hostile_bytes.py` has the milliseconds.
"""

from __future__ import annotations

import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from rover_plugin.access_log.model import Side
from rover_plugin.access_log.protocols import texts
from rover_plugin.access_log.protocols.http2 import Http2Analyzer, hpack
from tests.bench import hostile_bytes
from tests.support.http2_conversation import PREFACE, Feeder, frame
from tests.support.http2_wire import HEADERS, settings

if TYPE_CHECKING:
    from types import FrameType

FLOOD = 16_384  # bytes of each case that are counted


def _lines(case: hostile_bytes.Case) -> float:
    """Lines executed per byte."""
    feeder = case.prepare()
    count = 0

    def trace(_frame: FrameType, _event: str, _argument: object) -> object:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        feeder.feed(case.side, case.flood[:FLOOD])
    finally:
        sys.settrace(before)
    return count / min(len(case.flood), FLOOD)


@pytest.fixture(scope="module")
def ordinary() -> float:
    return _lines(hostile_bytes.HTTP2["ordinary requests"])


@pytest.mark.parametrize("name", hostile_bytes.HTTP2)
def test_a_flood_costs_at_most_three_times_as_much_as_ordinary_requests(name: str, ordinary: float) -> None:
    assert _lines(hostile_bytes.HTTP2[name]) <= 3 * ordinary


def _kept(feeder: Feeder, side: Side, written: bytes) -> int:
    """Bytes that are still there when all these have been taken."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    feeder.analyzer.receive(side, feeder.call(side, len(written)), written, 0)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return kept


@pytest.mark.parametrize("path", [b"/" + b"p" * 3900, b"/\xf0\x9f\x98\x80" + b"p" * 3880, b"\xff" * 3900])
def test_streams_that_name_one_long_path_by_reference_share_it(path: bytes) -> None:
    feeder = hostile_bytes.begun()
    first = b"\x82\x86\x44" + hostile_bytes.string(path) + b"\x01\x01h"
    feeder.feed(Side.REQUEST, frame(HEADERS, 0x4, 1, first))
    more = b"".join(frame(HEADERS, 0x4, stream_id, b"\x82\x86\xbe\x01\x01h") for stream_id in range(3, 4003, 2))
    assert _kept(feeder, Side.REQUEST, more) < 2000 * 1200
    found = {id(stream.exchange.path) for stream in feeder.analyzer._streams.values()}
    assert len(found) == 1


def test_blocks_made_of_references_are_remembered_only_if_they_are_short() -> None:
    feeder = hostile_bytes.begun()
    blocks = [b"\x8f" * 16_000 + bytes((0x82 + (n & 15), 0x82 + (n >> 4))) for n in range(64)]
    written = b"".join(frame(HEADERS, 0x5, 2 * n + 1, block) for n, block in enumerate(blocks))
    kept = _kept(feeder, Side.REQUEST, written)
    assert kept < 64 * 2000


def test_texts_are_cut_where_they_are_decoded() -> None:
    decoder = hpack.HeaderDecoder(dict, from_start=True)
    long = b"/" + b"\xe2\x82\xac" * 5000
    _, fields, _, error = decoder.decode(
        b"\x04" + hostile_bytes.string(long) + b"\x01" + hostile_bytes.string(long) + b"\x00"
        + hostile_bytes.string(b"grpc-message") + hostile_bytes.string(long)
    )  # fmt: skip
    assert not error
    sizes = {b":path": texts.MAX_PATH, b":authority": texts.MAX_HOST, b"grpc-message": texts.MAX_MESSAGE}
    for name, most in sizes.items():
        kept = fields[name].encode()
        assert most - 3 < len(kept) <= most
        assert long.startswith(kept)


def test_a_method_that_is_no_token_is_unknown() -> None:
    feeder = Feeder(Http2Analyzer(joined=False))
    feeder.feed(Side.REQUEST, PREFACE + settings())
    for number, method in enumerate((b"", b"GET\x1b[2J", b"G" * 65, "GÉT".encode(), b"M-SEARCH")):
        block = b"\x02" + hostile_bytes.string(method) + b"\x84\x86\x01\x01h"
        feeder.feed(Side.REQUEST, frame(HEADERS, 0x5, 2 * number + 1, block))
    assert [exchange.method for exchange in feeder.finish()] == [None, None, None, None, "M-SEARCH"]
