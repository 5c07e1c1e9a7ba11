# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 conversations between two `h2` endpoints, rewritten and cut at will, and an independent reading of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import hpack
import hyperframe.frame as hf

from rover_plugin.access_log.model import Call, Completeness, Operation, Side

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rover_plugin.access_log.model import Exchange
    from rover_plugin.access_log.protocols.http2 import Http2Analyzer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Headers = list[tuple[str, str]]


@dataclass
class Seen:
    """What an independent reader (hyperframe and hpack over the whole byte streams) saw of one stream."""

    method: str | None = None
    path: str | None = None
    host: str | None = None
    status: int | None = None
    grpc_status: int | None = None
    request_header_bytes: int = 0
    request_body_bytes: int = 0
    response_header_bytes: int = 0
    response_body_bytes: int = 0
    traceparent: str | None = None


@dataclass
class Conversation:
    """Two `h2` endpoints and every byte they exchanged, in order."""

    client_settings: dict[int, int] = field(default_factory=dict)
    server_settings: dict[int, int] = field(default_factory=dict)
    chunks: list[tuple[Side, bytes]] = field(default_factory=list)
    server_events: list[h2.events.Event] = field(default_factory=list)
    client_events: list[h2.events.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        )
        self.server = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                validate_inbound_headers=False,
            )
        )
        self.client.local_settings.update(self.client_settings)
        self.server.local_settings.update(self.server_settings)
        self.client.initiate_connection()
        self.server.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Lets the bytes go both ways until nobody has more to say."""
        while True:
            up = self.client.data_to_send()
            if up:
                self.chunks.append((Side.REQUEST, up))
                self._receive(self.server, up, self.server_events)
            down = self.server.data_to_send()
            if down:
                self.chunks.append((Side.RESPONSE, down))
                self._receive(self.client, down, self.client_events)
            if not up and not down:
                return

    def _receive(self, endpoint: h2.connection.H2Connection, data: bytes, events: list[h2.events.Event]) -> None:
        for event in endpoint.receive_data(data):
            events.append(event)
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                endpoint.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def request(self, headers: Headers, *, end: bool = True, **options: int) -> int:
        """Starts a request; returns its stream id."""
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, headers, end_stream=end, **options)
        return stream_id

    def exchange(self, request: Headers, response: Headers, up: bytes = b"", down: bytes = b"") -> int:
        """One whole exchange, flushed after each half."""
        stream_id = self.request(request, end=not up)
        if up:
            self.client.send_data(stream_id, up, end_stream=True)
        self.flush()
        self.server.send_headers(stream_id, response, end_stream=not down)
        if down:
            self.server.send_data(stream_id, down, end_stream=True)
        self.flush()
        return stream_id

    def bytes_of(self, side: Side) -> bytes:
        """Everything one side sent."""
        return b"".join(data for chunk_side, data in self.chunks if chunk_side is side)


def get(path: str = "/", host: str = "example.test", **more: str) -> Headers:
    """A GET request's fields."""
    fields = [(":method", "GET"), (":scheme", "http"), (":authority", host), (":path", path)]
    return fields + [(name.replace("_", "-"), value) for name, value in more.items()]


def post(path: str = "/", host: str = "example.test", **more: str) -> Headers:
    """A POST request's fields."""
    return [(":method", "POST"), *get(path, host, **more)[1:]]


def grpc(path: str, host: str = "svc:50051", **more: str) -> Headers:
    """A gRPC request's fields."""
    return post(path, host, content_type="application/grpc", te="trailers", user_agent="grpc-test/1", **more)


def seeded(seed: int) -> random.Random:
    """Made-up data, the same each run."""
    return random.Random(seed)


def traceparent(random_source: random.Random) -> str:
    """A fresh W3C trace header value."""
    return f"00-{random_source.getrandbits(128) | 1:032x}-{random_source.getrandbits(64) | 1:016x}-01"


def split_frames(data: bytes) -> list[bytes]:
    """The frames of one side, the preface left out."""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    result = []
    while at < len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3])
        result.append(data[at:end])
        at = end
    return result


def parse(frame: bytes) -> hf.Frame:
    """One frame by hyperframe."""
    parsed, _ = hf.Frame.parse_frame_header(memoryview(frame[:9]))
    parsed.parse_body(memoryview(frame[9:]))
    return parsed


def read_independently(up: bytes, down: bytes) -> dict[int, Seen]:
    """Every stream of a whole conversation, by hyperframe and hpack."""
    streams: dict[int, Seen] = {}
    for side, data in ((Side.REQUEST, up), (Side.RESPONSE, down)):
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = 1 << 20
        block = b""
        for raw in split_frames(data):
            frame = parse(raw)
            if isinstance(frame, hf.DataFrame):
                seen = streams.setdefault(frame.stream_id, Seen())
                if side is Side.REQUEST:
                    seen.request_body_bytes += len(frame.data)
                else:
                    seen.response_body_bytes += len(frame.data)
            elif isinstance(frame, (hf.HeadersFrame, hf.ContinuationFrame)):
                block += frame.data
                if "END_HEADERS" in frame.flags:
                    _note(
                        streams.setdefault(frame.stream_id, Seen()), side, decoder.decode(block, raw=True), len(block)
                    )
                    block = b""
    return streams


def _note(seen: Seen, side: Side, fields: Iterable[tuple[bytes, bytes]], size: int) -> None:
    known = {name.decode(): value.decode("utf-8", "replace") for name, value in fields}
    if side is Side.REQUEST:
        seen.request_header_bytes += size
        if ":method" in known:
            seen.method = known[":method"]
            seen.path = known.get(":path", "").partition("?")[0] or None
            seen.host = known.get(":authority") or known.get("host")
            seen.traceparent = known.get("traceparent")
        return
    if known.get(":status", "").startswith("1"):
        return
    seen.response_header_bytes += size
    if ":status" in known:
        seen.status = int(known[":status"])
    if "grpc-status" in known:
        seen.grpc_status = int(known["grpc-status"])


class Feeder:
    """Feeds an analyser as a watched server (or client) would see it, one call a piece, and keeps the calls."""

    def __init__(self, analyzer: Http2Analyzer, *, client: bool = False) -> None:
        self.analyzer = analyzer
        self.client = client
        self.calls: list[Call] = []
        self.now = 1000

    def call(self, side: Side, size: int) -> Call:
        """A new call: the server reads requests and writes responses, the client the other way round."""
        operation = Operation.READ if (side is Side.REQUEST) is not self.client else Operation.WRITE
        self.now += 10
        made = Call(operation, 0, self.now - 5, self.now, size)
        self.calls.append(made)
        return made

    def feed(self, side: Side, data: bytes, unseen: int = 0) -> Call:
        """One call."""
        made = self.call(side, len(data) + unseen)
        self.analyzer.receive(side, made, data, unseen)
        return made

    def feed_all(self, chunks: Iterable[tuple[Side, bytes]]) -> None:
        """One call a chunk."""
        for side, data in chunks:
            self.feed(side, data)

    def finish(self) -> list[Exchange]:
        """Closes the connection; checks that every call came out exactly once."""
        self.analyzer.close(self.now)
        out = [id(call) for exchange in self.analyzer.exchanges for call in exchange.calls]
        out += [id(call) for call in self.analyzer.loose]
        assert sorted(out) == sorted(id(call) for call in self.calls)
        return self.analyzer.exchanges


def cut(chunks: Iterable[tuple[Side, bytes]], sizes: Iterable[int]) -> list[tuple[Side, bytes]]:
    """Cuts every chunk into pieces of the given sizes, taken in turn."""
    sizes = iter(sizes)
    pieces = []
    for side, data in chunks:
        at = 0
        while at < len(data):
            step = next(sizes)
            pieces.append((side, data[at : at + step]))
            at += step
    return pieces


def shown(exchange: Exchange) -> Seen:
    """An exchange in the oracle's terms."""
    return Seen(
        exchange.method,
        exchange.path,
        exchange.host,
        exchange.status,
        exchange.grpc_status,
        exchange.request_header_bytes,
        exchange.request_body_bytes,
        exchange.response_header_bytes,
        exchange.response_body_bytes,
        exchange.trace and f"{exchange.trace.trace_id}-{exchange.trace.span_id}",
    )


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame, whatever the numbers."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


def reframe(data: bytes, source: random.Random) -> bytes:
    """The same side said otherwise: HEADERS padded, with priority fields, split into CONTINUATION frames of any size
    (empty ones too); DATA padded; PING, PRIORITY and WINDOW_UPDATE strewn in between."""
    out = [PREFACE] if data.startswith(PREFACE) else []
    for raw in split_frames(data):
        parsed = parse(raw)
        kind, flags = raw[3], raw[4]
        if kind == 1 and not flags & 0x28:
            out += _resplit(raw[9:], flags, parsed.stream_id, source)
        elif kind == 0 and not flags & 0x8 and source.random() < 0.5 and len(raw) < 16000:
            padding = source.randrange(200)
            out.append(frame(0, flags | 0x8, parsed.stream_id, bytes((padding,)) + raw[9:] + bytes(padding)))
        else:
            out.append(raw)
        if flags & 0x4 or kind not in {1, 5, 9}:
            noise = (frame(6, 1, 0, b"12345678"), frame(8, 0, 0, b"\0\0\1\0"), frame(2, 0, 1, b"\0\0\0\0\x10"))
            out += source.choices(noise, k=source.choice((0, 0, 1, 3)))
    return b"".join(out)


def _resplit(block: bytes, flags: int, stream_id: int, source: random.Random) -> list[bytes]:
    pieces = [block]
    while source.random() < 0.6 and len(pieces) < 6:
        last = pieces.pop()
        at = source.randint(0, len(last))
        pieces += [last[:at], last[at:]]
    first, end_stream = pieces[0], flags & 0x1
    head_flags = end_stream
    if source.random() < 0.5:
        head_flags |= 0x20
        first = b"\x80\0\0\0\x10" + first
    if first and source.random() < 0.5:  # hyperframe does not take a padded frame with nothing in it
        head_flags |= 0x8
        padding = source.randrange(256)
        first = bytes((padding,)) + first + bytes(padding)
    frames = [(1, head_flags, first), *((9, 0, piece) for piece in pieces[1:])]
    kind, last_flags, payload = frames.pop()
    frames.append((kind, last_flags | 0x4, payload))
    return [frame(kind, piece_flags, stream_id, payload) for kind, piece_flags, payload in frames]


def comparable(exchange: Exchange, oracle: Seen) -> tuple[Seen, Seen]:
    """Both sides with the trace written alike."""
    if oracle.traceparent is None:
        return shown(exchange), oracle
    return shown(exchange), replace(oracle, traceparent="-".join(oracle.traceparent.split("-")[1:3]))


def assert_agrees(exchanges: list[Exchange], up: bytes, down: bytes) -> None:
    """Every stream the oracle saw is there once, complete, and says the same."""
    oracle = read_independently(up, down)
    assert sorted(exchange.stream_id or 0 for exchange in exchanges) == sorted(oracle)
    for exchange in exchanges:
        ours, theirs = comparable(exchange, oracle[exchange.stream_id or 0])
        assert ours == theirs
        assert exchange.completeness is Completeness.COMPLETE
