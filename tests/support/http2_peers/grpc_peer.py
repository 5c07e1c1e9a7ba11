# SPDX-License-Identifier: Apache-2.0
"""grpcio's server and client: `grpc_peer.py server` | `grpc_peer.py client PORT CONCURRENT < requests.json`.

A request is {"kind": "unary" | "client" | "server" | "bidi", "method": …, "messages": n, "deadline": seconds | null};
methods: Echo answers, Fail aborts with NOT_FOUND, Slow waits for its cancellation, FailLate sends one message first,
Mirror (unary) answers with what it got. A unary request may say its "size".
"""

from __future__ import annotations

import json
import sys
from concurrent import futures
from threading import Event
from typing import Any

import grpc

MESSAGE = b"m" * 50
SERVICE = "rover.test.Peer"
KINDS = {"unary": "Unary", "client": "Client", "server": "Server", "bidi": "Bidi"}


def _report(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _behave(name: str, context: grpc.ServicerContext) -> None:
    if name.endswith("Fail"):
        context.abort(grpc.StatusCode.NOT_FOUND, "no café at 100%")
    if name.endswith("Slow"):
        cancelled = Event()
        context.add_callback(cancelled.set)
        cancelled.wait(20)


class _Handler(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        _, service, name = details.method.split("/")
        if service != SERVICE or name.endswith("Missing"):
            return None

        def one(request: bytes, context: grpc.ServicerContext) -> bytes:
            _behave(name, context)
            return request if name.endswith("Mirror") else MESSAGE

        def collect(messages: Any, context: grpc.ServicerContext) -> bytes:
            count = sum(1 for _ in messages)
            _behave(name, context)
            return MESSAGE * count

        def stream(first: bytes, context: grpc.ServicerContext) -> Any:
            yield from [MESSAGE] * (1 if name.endswith("FailLate") else first[0])
            if name.endswith("FailLate"):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "after one")
            _behave(name, context)

        def both(messages: Any, context: grpc.ServicerContext) -> Any:
            yield from messages
            _behave(name, context)

        if name.startswith("Unary"):
            return grpc.unary_unary_rpc_method_handler(one)
        if name.startswith("Client"):
            return grpc.stream_unary_rpc_method_handler(collect)
        if name.startswith("Server"):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.stream_stream_rpc_method_handler(both)


def _serve() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(40), handlers=(_Handler(),), options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _report({"port": port})
    sys.stdin.read()
    server.stop(1).wait()


def _ask(channel: grpc.Channel, request: dict[str, Any]) -> dict[str, Any]:
    path = f"/{SERVICE}/{KINDS[request['kind']]}{request['method']}"
    count = request["messages"]
    messages = [MESSAGE] * count
    result = {"path": path, "messages": 0, "code": 0, "details": ""}
    try:
        if request["kind"] == "unary":
            message = b"m" * request.get("size", len(MESSAGE))
            answers = [channel.unary_unary(path)(message, timeout=request["deadline"])]
        elif request["kind"] == "client":
            answers = [channel.stream_unary(path)(iter(messages), timeout=request["deadline"])]
        elif request["kind"] == "server":
            answers = channel.unary_stream(path)(bytes((count,)), timeout=request["deadline"])
        else:
            answers = channel.stream_stream(path)(iter(messages), timeout=request["deadline"])
        for _ in answers:
            result["messages"] += 1
    except grpc.RpcError as error:
        result["code"], result["details"] = error.code().value[0], error.details()
    return result


def _client(port: str, concurrent: int) -> None:
    requests = json.load(sys.stdin)
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        futures.ThreadPoolExecutor(concurrent) as workers,
    ):
        for result in workers.map(lambda request: _ask(channel, request), requests):
            _report(result)


if __name__ == "__main__":
    if sys.argv[1] == "server":
        _serve()
    else:
        _client(sys.argv[2], int(sys.argv[3]))
