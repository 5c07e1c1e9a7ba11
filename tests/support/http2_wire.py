# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 written by hand: frames of both sides, run through the analyser as written and cut at every byte."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import hpack

from rover_plugin.access_log.model import Exchange, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from tests.support.http2_conversation import PREFACE, Feeder, frame, get

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.access_log.model import Call
    from tests.support.http2_conversation import Headers

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

HEADER_TABLE_SIZE, MAX_FRAME_SIZE = 1, 5


def data(stream_id: int, body: bytes = b"", *, end: bool = False, pad: int | None = None) -> bytes:
    """DATA."""
    if pad is None:
        return frame(DATA, END_STREAM * end, stream_id, body)
    return frame(DATA, END_STREAM * end | PADDED, stream_id, bytes((pad,)) + body + bytes(pad))


def settings(*pairs: tuple[int, int]) -> bytes:
    """SETTINGS."""
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in pairs))


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def reset(stream_id: int, code: int = 8) -> bytes:
    """RST_STREAM; 8 is CANCEL."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4))


def goaway(last_stream_id: int) -> bytes:
    """GOAWAY."""
    return frame(GOAWAY, 0, 0, last_stream_id.to_bytes(4) + bytes(4) + b"debug data")


@dataclass
class Wire:
    """One connection.

    Attributes:
        joined, upgraded: as the analyser takes them.
        begins: whether the preface and both SETTINGS are written first.
    """

    joined: bool = False
    upgraded: Callable[[], Exchange] | None = None
    begins: bool = True
    steps: list[tuple[Side, bytes] | Callable[[Feeder], None]] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    loose: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.encoders = {Side.REQUEST: hpack.Encoder(), Side.RESPONSE: hpack.Encoder()}
        if self.begins:
            self.up(PREFACE, settings())
            self.down(settings())

    def up(self, *frames: bytes) -> None:
        """One call's bytes of the client."""
        self.steps.append((Side.REQUEST, b"".join(frames)))

    def down(self, *frames: bytes) -> None:
        """One call's bytes of the server."""
        self.steps.append((Side.RESPONSE, b"".join(frames)))

    def then(self, action: Callable[[Feeder], None]) -> None:
        """Anything else that happens: a loss, a time-out."""
        self.steps.append(action)

    def block(self, side: Side, fields: Headers) -> bytes:
        """A header block by this side's encoder."""
        encoded: bytes = self.encoders[side].encode(fields)
        return encoded

    def request(
        self, stream_id: int, fields: Headers | None = None, *, end: bool = True, cuts: tuple[int, ...] = ()
    ) -> bytes:
        """A request's header block in HEADERS and, where it is cut, CONTINUATION."""
        return headers(stream_id, self.block(Side.REQUEST, fields or get()), end=end, cuts=cuts)

    def response(
        self,
        stream_id: int,
        status: int | None = 200,
        fields: Headers | None = None,
        *,
        end: bool = True,
        cuts: tuple[int, ...] = (),
    ) -> bytes:
        """A response's header block; without a status: trailers."""
        status_field = [] if status is None else [(":status", str(status))]
        return headers(stream_id, self.block(Side.RESPONSE, status_field + (fields or [])), end=end, cuts=cuts)

    def finish(self) -> list[Exchange]:
        """The exchanges, in the order they finished; that they are the same wherever calls cut the bytes."""
        feeder = self._run(0, 0)
        self.errors, self.loose = feeder.analyzer.errors, feeder.analyzer.loose
        exchanges = feeder.analyzer.exchanges
        for index, step in enumerate(self.steps):
            if isinstance(step, tuple) and not self.joined:
                for at in range(1, len(step[1])):
                    again = self._run(index, at).analyzer
                    assert [said(exchange) for exchange in again.exchanges] == [said(item) for item in exchanges]
                    assert again.errors == self.errors
        return exchanges

    def _run(self, cut_step: int, at: int) -> Feeder:
        upgraded = self.upgraded() if self.upgraded is not None else None
        feeder = Feeder(Http2Analyzer(self.joined, upgraded))
        if upgraded is not None:
            feeder.calls += upgraded.calls
        for index, step in enumerate(self.steps):
            if not isinstance(step, tuple):
                step(feeder)
                continue
            side, written = step
            if at and index == cut_step:
                feeder.feed(side, written[:at])
                written = written[at:]
            if written:
                feeder.feed(side, written)
        feeder.finish()
        return feeder


def headers(stream_id: int, block: bytes, *, end: bool = True, cuts: tuple[int, ...] = ()) -> bytes:
    """HEADERS with CONTINUATION frames from the given offsets on."""
    edges = [0, *cuts, len(block)]
    pieces = [block[start:stop] for start, stop in itertools.pairwise(edges)]
    out = []
    for number, piece in enumerate(pieces):
        flags = END_HEADERS * (number == len(pieces) - 1)
        if number == 0:
            out.append(frame(HEADERS, flags | END_STREAM * end, stream_id, piece))
        else:
            out.append(frame(CONTINUATION, flags, stream_id, piece))
    return b"".join(out)


def said(exchange: Exchange) -> tuple[object, ...]:
    """Everything an exchange says but its times and calls."""
    return (
        exchange.stream_id, exchange.method, exchange.path, exchange.host, exchange.status, exchange.grpc_status,
        exchange.grpc_message, exchange.completeness, exchange.request_header_bytes, exchange.request_body_bytes,
        exchange.response_header_bytes, exchange.response_body_bytes, exchange.trace,
    )  # fmt: skip


def one(exchanges: list[Exchange]) -> Exchange:
    """The only one."""
    assert len(exchanges) == 1, exchanges
    return exchanges[0]
