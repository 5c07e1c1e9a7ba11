# SPDX-License-Identifier: Apache-2.0
"""Ring bytes an exchange costs, with framing followed by the kernel side and without. As root.

Both forms are loaded and take turns, load by load, so that both meet the same machine. Both ends are watched; a row
says what the server's records and what the client's records took. Ring bytes are what the ring buffer hands out:
records with their headers, rounded up.
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
from collections import defaultdict
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
import psutil

from rover_plugin.access_log.link import LinkWriter
from rover_plugin.access_log.outbox import Outbox
from rover_plugin.access_log.shard import Shard
from rover_plugin.access_log.worker_options import WorkerOptions
from rover_plugin.capture.bpf import Map
from rover_plugin.capture.records import HEADER
from rover_plugin.capture.ring import RingReader
from rover_plugin.capture.session import Capture, CaptureOptions, Statistic
from tests.support.servers import Nginx

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 2_000_000
MESSAGE = 100_000
ROUNDS = 3
_RECORD_OVERHEAD = 8
_LOCATIONS = """
    location / { return 200 "hello\\n"; }
    location /sendfile/ { alias WWW/files/; }
    location /write/ { sendfile off; alias WWW/files/; }
    location /chunked/ { sendfile off; ssi on; ssi_types *; alias WWW/files/; }
"""


class Watcher:
    """A kernel side and its analysis in this process; counts what its rings carry, by process."""

    def __init__(self, *, walk: bool) -> None:
        # The rings take everything, so that nothing lost looks like something saved.
        self._capture = Capture(CaptureOptions(shards=1, ring_bytes=32 << 20, walk=walk))
        self._ring = RingReader(self._capture.ring_descriptors()[0])
        policies = Map(self._capture.policies_descriptor)
        near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outbox = Outbox(
            LinkWriter(near, 1 << 20), policies, WorkerOptions(0, (), 1 << 20, 65536, 60.0, grpc_status_as_http=True)
        )
        self._outbox, self._shard = outbox, Shard(outbox)
        self._near = near
        self.bytes: dict[int, int] = defaultdict(int)
        self.records: dict[int, int] = defaultdict(int)
        self._running = False

    def _take(self, data: memoryview, start: int, end: int) -> None:
        tgid = HEADER.unpack_from(data, start)[6]
        self.bytes[tgid] += (end - start + _RECORD_OVERHEAD + 7) & ~7
        self.records[tgid] += 1
        self._shard.handle(data, start, end)

    def _run(self) -> None:
        while self._running:
            self._ring.read(self._take, 2000)
            self._outbox.hand_over()
            self._ring.wait(0.05)
        self._ring.read(self._take)

    def watch(self, tgids: set[int]) -> Self:
        """Watches these processes while it is entered."""
        self._tgids = tgids
        return self

    def __enter__(self) -> Self:
        self.bytes.clear()
        self.records.clear()
        self._capture.start()
        for tgid in self._tgids:
            self._capture.watch(tgid)
        self._running = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()
        self._capture.stop()
        assert self._capture.statistics()[Statistic.RING_FULL] == 0

    def close(self) -> None:
        """Frees everything."""
        self._ring.close()
        self._capture.close()
        self._near.close()
        self._far.close()


def _download(port: int, path: str, count: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(count):
        connection.request("GET", path)
        answer = connection.getresponse()
        while answer.read(1 << 16):
            pass
    connection.close()


def _python_server(port: int, chunk: int) -> None:
    """Answers everything with SIZE bytes: in one write, or in chunks of `chunk` bytes."""
    listener = socket.create_server(("127.0.0.1", port))
    body = bytes(SIZE)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as reader:
            while reader.readline():
                while reader.readline().strip():
                    pass
                if not chunk:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
                    connection.sendall(body)
                    continue
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for at in range(0, SIZE, chunk):
                    part = body[at : at + chunk]
                    connection.sendall(b"%x\r\n" % len(part) + part + b"\r\n")
                connection.sendall(b"0\r\n\r\n")


def _grpc_server(port: int) -> None:
    def echo(request: bytes, _: grpc.ServicerContext) -> bytes:
        return request

    server = grpc.server(futures.ThreadPoolExecutor(4))
    handler = grpc.method_handlers_generic_handler("t.T", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def _grpc_client(port: int, _path: str, count: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/t.T/Echo")
        for _ in range(count):
            call(bytes(MESSAGE), wait_for_ready=True)


def _measure(
    watcher: Watcher, servers: set[int], client: Callable[[int, str, int], None], port: int, path: str, count: int
) -> tuple[float, float, float, float]:
    """Ring bytes and records an exchange: of the server, and of the client."""
    begin = multiprocessing.get_context("spawn").Event()
    process = multiprocessing.get_context("spawn").Process(target=_when, args=(begin, client, port, path, count))
    process.start()
    assert process.pid
    with watcher.watch(servers | {process.pid}):
        begin.set()
        process.join()
    own = process.pid
    return (
        sum(size for tgid, size in watcher.bytes.items() if tgid in servers) / count,
        sum(size for tgid, size in watcher.records.items() if tgid in servers) / count,
        watcher.bytes[own] / count,
        watcher.records[own] / count,
    )


def _when(begin: threading.Event, client: Callable[[int, str, int], None], port: int, path: str, count: int) -> None:
    begin.wait()
    client(port, path, count)


def _workers(master: int) -> set[int]:
    return {child.pid for child in psutil.Process(master).children()}


def main(rounds: int) -> None:
    """Prints a row for each load."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        nginx = Nginx(folder / "nginx", locations=_LOCATIONS.replace("WWW", str(folder / "nginx" / "www")))
        (nginx.files / "2m").write_bytes(bytes(SIZE))
        stack.enter_context(nginx)
        ports = {}
        pids = {}
        for name, target, *arguments in (
            ("one write", _python_server, 0),
            ("chunks of 32 KB", _python_server, 32768),
            ("grpc", _grpc_server),
        ):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                ports[name] = probe.getsockname()[1]
            process = spawn.Process(target=target, args=(ports[name], *arguments), daemon=True)
            process.start()
            assert process.pid
            pids[name] = {process.pid}
        workers = _workers(nginx.pid)
        loads = {
            "nginx return 200": (workers, _download, nginx.port, "/", 300),
            "nginx 2 MB by sendfile": (workers, _download, nginx.port, "/sendfile/2m", 20),
            "nginx 2 MB by writev": (workers, _download, nginx.port, "/write/2m", 20),
            "nginx 2 MB chunked": (workers, _download, nginx.port, "/chunked/2m", 20),
            "Python 2 MB in one write": (pids["one write"], _download, ports["one write"], "/", 20),
            "Python 2 MB in chunks of 32 KB": (pids["chunks of 32 KB"], _download, ports["chunks of 32 KB"], "/", 20),
            "gRPC unary, 100 KB there and back": (pids["grpc"], _grpc_client, ports["grpc"], "", 50),
        }
        watchers = {walk: Watcher(walk=walk) for walk in (False, True)}
        for watcher in watchers.values():
            stack.callback(watcher.close)
        for name, load in loads.items():
            for walk in (False, True) * rounds:
                figures = _measure(watchers[walk], *load)
                print(
                    f"{name:34} {'walked' if walk else 'copied'}"
                    f"  server {figures[0]:10.0f} B {figures[1]:6.1f} records"
                    f"  client {figures[2]:10.0f} B {figures[3]:6.1f} records",
                    flush=True,
                )


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
