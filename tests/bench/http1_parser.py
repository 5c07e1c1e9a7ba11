# SPDX-License-Identifier: Apache-2.0
"""CPU time of the HTTP/1 analyser per exchange, next to h11 and httptools where they are installed.

Run: python -m tests.bench.http1_parser [exchanges]
Every request and response is distinct; heads are about 400 + 280 bytes, half of the requests carry a trace header.
Ratios are what counts: figures differ by machine.
"""

from __future__ import annotations

import base64
import gc
import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from rover_plugin.access_log.model import Call, Operation, Side
from rover_plugin.access_log.protocols.http1 import Http1Analyzer

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 5


def conversation(count: int) -> list[tuple[bytes, bytes]]:
    """`count` distinct (request, response) pairs, content included."""
    return [(_request(number), _response(number)) for number in range(count)]


def _request(number: int) -> bytes:
    trace = b""
    if number % 4 == 0:
        fields = (f"trace-{number}", f"segment-{number}")
        ids = "-".join(base64.b64encode(field.encode()).decode() for field in fields)
        rest = "-".join(base64.b64encode(field).decode() for field in (b"shop", b"shop-1", b"/cart", b"10.0.0.1:80"))
        trace = f"sw8: 1-{ids}-{number % 7}-{rest}\r\n".encode()
    elif number % 4 == 2:
        trace = f"traceparent: 00-{number + 1:032x}-{number + 1:016x}-01\r\n".encode()
    content = b'{"quantity": %d}' % number if number % 5 == 0 else b""
    length = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(content) if content else b""
    return (
        b"%s /api/v1/items/%d?session=%x HTTP/1.1\r\nHost: shop-%d.example.com\r\n"
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0\r\n"
        b"Accept: application/json, text/plain, */*\r\nAccept-Language: en-GB,en;q=0.9\r\n"
        b"Accept-Encoding: gzip, deflate, br\r\nCookie: session=%032x\r\nX-Request-Id: %016x\r\n%s%s"
        b"Connection: keep-alive\r\n\r\n%s"
    ) % (b"POST" if content else b"GET", number, number * 7919, number % 50, number, number, length, trace, content)


def _response(number: int) -> bytes:
    content = b"x" * (20 + number % 900)
    return (
        b"HTTP/1.1 %d OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 24 Nov 2025 04:%02d:%02d GMT\r\n"
        b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\nConnection: keep-alive\r\n"
        b"Cache-Control: no-store\r\nX-Request-Id: %016x\r\nVary: Accept-Encoding\r\nX-Upstream: item-%d\r\n\r\n%s"
    ) % (200 if number % 20 else 404, number // 60 % 60, number % 60, len(content), number, number % 8, content)


def rover(pairs: list[tuple[bytes, bytes]]) -> Callable[[], int]:
    """Ours, one call a message; the calls exist already, as in the agent."""
    calls = [Call(Operation.READ + side, 0, i, i + 1) for i in range(len(pairs)) for side in (0, 1)]

    def work() -> int:
        analyzer = Http1Analyzer()
        receive = analyzer.receive
        exchanges = analyzer.exchanges
        done = 0
        given = iter(calls)
        for request, response in pairs:
            receive(Side.REQUEST, next(given), request, 0)
            receive(Side.RESPONSE, next(given), response, 0)
            done += len(exchanges)
            exchanges.clear()
        return done

    return work


def httptools(pairs: list[tuple[bytes, bytes]], library: Any) -> Callable[[], int]:
    """httptools with callbacks that keep what an exchange needs."""

    class Keeper:
        def __init__(self) -> None:
            self.done = 0
            self.headers: dict[bytes, bytes] = {}
            self.url = b""

        def on_url(self, url: bytes) -> None:
            self.url = url

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers[name.lower()] = value

        def on_body(self, body: bytes) -> None:
            pass

        def on_message_complete(self) -> None:
            self.done += 1
            self.headers.clear()

    def work() -> int:
        requests, responses = Keeper(), Keeper()
        client, server = library.HttpRequestParser(requests), library.HttpResponseParser(responses)
        for request, response in pairs:
            client.feed_data(request)
            server.feed_data(response)
        return min(requests.done, responses.done)

    return work


def h11(pairs: list[tuple[bytes, bytes]], library: Any) -> Callable[[], int]:
    """h11 in its server role for requests; the response goes to a client that sent an equal request."""

    def work() -> int:
        done = 0
        server, client = library.Connection(library.SERVER), library.Connection(library.CLIENT)
        for request, response in pairs:
            server.receive_data(request)
            event = server.next_event()
            while type(server.next_event()) is not library.EndOfMessage:
                pass
            client.send(library.Request(method=b"GET", target=event.target, headers=[("Host", "x")]))
            client.send(library.EndOfMessage())
            client.receive_data(response)
            while type(client.next_event()) is not library.EndOfMessage:
                pass
            server.send(library.Response(status_code=200, headers=[("Content-Length", "0")]))
            server.send(library.EndOfMessage())
            server.start_next_cycle()
            client.start_next_cycle()
            done += 1
        return done

    return work


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    pairs = conversation(count)
    sizes = [sum(message[side].find(b"\r\n\r\n") + 4 for message in pairs) / count for side in (0, 1)]
    print(f"{count} distinct exchanges, heads {sizes[0]:.0f} + {sizes[1]:.0f} bytes on average")
    candidates: dict[str, tuple[Callable[[], int], int]] = {"rover_plugin": (rover(pairs), count)}
    for name, make, size in (("httptools", httptools, count), ("h11", h11, count // 10)):
        try:
            library = importlib.import_module(name)
        except ImportError:
            print(f"{name} is not installed, left out")
            continue
        candidates[name] = (make(pairs[:size], library), size)
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(ROUNDS):
        for name, (work, size) in candidates.items():
            gc.collect()
            start = time.process_time()
            done = work()
            best[name] = min(best[name], (time.process_time() - start) / size * 1e6)
            if done != size:
                message = f"{name} saw {done} of {size} exchanges"
                raise SystemExit(message)
    for name, cost in best.items():
        print(f"{name:14} {cost:7.2f} us/exchange  {cost / best['rover_plugin']:6.2f} x")


if __name__ == "__main__":
    main()
