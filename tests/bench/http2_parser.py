# SPDX-License-Identifier: Apache-2.0
"""CPU time of the HTTP/2 analyser per exchange, next to hyperframe + hpack over the same bytes in the same run.

Run: python -m tests.bench.http2_parser [exchanges]
Every exchange is distinct (fresh path or trace header). The connection is warm: its first exchanges are not counted.
hyperframe and hpack only parse frames and decode fields; they build no exchange. Ratios are what counts.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from typing import TYPE_CHECKING

import hpack

from rover_plugin.access_log.model import Call, Operation, Side
from rover_plugin.access_log.protocols.http2 import Http2Analyzer
from tests.support.http2_conversation import Conversation, get, grpc, parse, seeded, split_frames, traceparent

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.http2_conversation import Headers

ROUNDS = 7
WARM_UP = 100
Chunks = list[tuple[Side, bytes]]


def _answer(number: int) -> Headers:
    return [
        (":status", "200" if number % 20 else "404"),
        ("server", "nginx/1.22.1"),
        ("date", f"Mon, 24 Nov 2025 04:{number // 60000 % 60:02d}:{number // 1000 % 60:02d} GMT"),
        ("content-type", "application/json"),
        ("content-length", str(100 + number % 900)),
    ]


def plain(count: int) -> Chunks:
    """GET, one of 500 paths with a query of its own; answers with a body."""
    source = seeded(1)
    talk = Conversation()
    for number in range(count):
        path = f"/api/v1/items/{number % 500}?session={number * 7919:x}"
        talk.exchange(
            get(path, user_agent="curl/8.5.0", accept="*/*", traceparent=traceparent(source)),
            _answer(number),
            down=b"x" * (100 + number % 900),
        )
    return talk.chunks


def unary(count: int, concurrent: int = 1) -> Chunks:
    """gRPC unary calls with a fresh trace header, `concurrent` of them packed in each write."""
    source = seeded(2)
    talk = Conversation()
    answer = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-accept-encoding", "gzip")]
    for first in range(0, count, concurrent):
        streams = []
        for number in range(first, first + concurrent):
            fields = grpc(f"/shop.Cart/Method{number % 5}", traceparent=traceparent(source), grpc_timeout="5S")
            streams.append(talk.request(fields, end=False))
            talk.client.send_data(streams[-1], b"\0\0\0\0\x30" + b"q" * 48, end_stream=True)
        talk.flush()
        for stream_id in streams:
            talk.server.send_headers(stream_id, answer)
            talk.server.send_data(stream_id, b"\0\0\0\0\x40" + b"a" * 64)
            talk.server.send_headers(stream_id, [("grpc-status", "0"), ("grpc-message", "")], end_stream=True)
        talk.flush()
    return talk.chunks


def ours(chunks: Chunks) -> Callable[[int, int], None]:
    """The analyser; calls are made beforehand, as the record reader makes them."""
    analyzer = Http2Analyzer(joined=False)
    calls = [
        (side, Call(Operation.READ if side is Side.REQUEST else Operation.WRITE, 0, at, at + 1, len(data)), data)
        for at, (side, data) in enumerate(chunks)
    ]

    def run(start: int, stop: int) -> None:
        receive = analyzer.receive
        for side, call, data in calls[start:stop]:
            receive(side, call, data, 0)
        analyzer.exchanges.clear()
        analyzer.loose.clear()

    return run


def reference(chunks: Chunks) -> Callable[[int, int], None]:
    """hyperframe for the frames, hpack for the blocks, one dict of fields a block."""
    decoders = {Side.REQUEST: hpack.Decoder(), Side.RESPONSE: hpack.Decoder()}

    def run(start: int, stop: int) -> None:
        for side, data in chunks[start:stop]:
            for frame in split_frames(data):
                parsed = parse(frame)
                if parsed.type == 1:
                    dict(decoders[side].decode(parsed.data, raw=True))

    return run


def measure(make: Callable[[Chunks], Callable[[int, int], None]], chunks: Chunks, exchanges: int) -> float:
    """Median CPU µs per exchange over the rounds; the warm-up chunks are run, not counted."""
    results = []
    warm = len(chunks) * WARM_UP // exchanges
    for _ in range(ROUNDS):
        run = make(chunks)
        run(0, warm)
        gc.collect()
        began = time.process_time_ns()
        run(warm, len(chunks))
        results.append((time.process_time_ns() - began) / 1000 / (exchanges - WARM_UP))
    return statistics.median(results)


def main() -> None:
    """Prints the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    count -= count % 100
    print("| warm exchange | ours µs | hyperframe + hpack µs | ratio |\n|---|---:|---:|---:|")
    for name, chunks in (
        ("GET, fresh query and traceparent, 200 with body", plain(count)),
        ("gRPC unary, fresh traceparent", unary(count)),
        ("gRPC unary, 100 streams packed in one write", unary(count, 100)),
    ):
        mine = measure(ours, chunks, count)
        theirs = measure(reference, chunks, count)
        print(f"| {name} | {mine:.2f} | {theirs:.2f} | {theirs / mine:.1f} |")


if __name__ == "__main__":
    main()
