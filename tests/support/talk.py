# SPDX-License-Identifier: Apache-2.0
"""A server and a client that say who they are: each path names the client's process, each answer the server's.

python tests/support/talk.py serve ADDRESS PORT [WORKERS]
python tests/support/talk.py call ADDRESS PORT CONNECTIONS REQUESTS
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import threading
from pathlib import Path


def answer(connection: socket.socket) -> None:
    """Answers requests without a body until the peer closes."""
    body = str(os.getpid())
    text = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    waiting = b""
    with connection:
        while received := connection.recv(65536):
            waiting += received
            while b"\r\n\r\n" in waiting:
                waiting = waiting.partition(b"\r\n\r\n")[2]
                connection.sendall(text)


def serve(address: str, port: int, workers: int) -> None:
    """Accepts on one listener in `workers` processes, as prefork servers do; says "ready" on standard output."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address, port))
        listener.listen(1024)
        for _ in range(workers - 1):
            if not os.fork():
                break
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            accepted, _ = listener.accept()
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(accepted,), daemon=True).start()


def call(address: str, port: int, connections: int, requests: int) -> None:
    """Opens all connections, then uses each; says "open", waits for a line, and prints [[path, server's pid], …]."""
    pool = []
    for _ in range(connections):
        connection = http.client.HTTPConnection(address, port, timeout=30)
        connection.connect()
        pool.append(connection)
    sys.stdout.write("open\n")
    sys.stdout.flush()
    sys.stdin.readline()
    said = []
    for number in range(requests):
        for index, connection in enumerate(pool):
            path = f"/{os.getpid()}/{index}/{number}"
            connection.request("GET", path)
            said.append((path, int(connection.getresponse().read())))
    for connection in pool:
        connection.close()
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main() -> None:
    """See the module's description."""
    what, address, port, *counts = sys.argv[1:]
    if what == "serve":
        serve(address, int(port), int(counts[0]) if counts else 1)
    else:
        call(address, int(port), int(counts[0]), int(counts[1]))


PATH = Path(__file__)

if __name__ == "__main__":
    main()
