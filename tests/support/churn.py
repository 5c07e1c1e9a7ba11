# SPDX-License-Identifier: Apache-2.0
"""Connections and processes that come and go at a steady rate, as cheaply as can be.

Run as `python -m tests.support.churn PORT CONNECTIONS_A_SECOND PROCESSES_A_SECOND`; ends when its standard input does,
and prints how many requests were answered: {"connection": N, "process": N}.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time

ANSWER = b"HTTP/1.1 200"
# One in so many processes is a program of its own, the others are forks.
_EXEC_EVERY = 5


def exchange(port: int, path: str) -> bool:
    """One request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: soak\r\n\r\n".encode())
        return connection.recv(4096).startswith(ANSWER)


def spawn(port: int, number: int) -> int:
    """A process that makes one request; returns its id, and its exit code says whether it was answered."""
    if number % _EXEC_EVERY == 0:
        url = f"http://127.0.0.1:{port}/soak/process"
        # Not subprocess, which reaps children behind our back.
        return os.posix_spawnp("curl", ["curl", "-sf", "-A", __spec__.name, "-o", "/dev/null", url], os.environ)
    child = os.fork()
    if child:
        return child
    os._exit(0 if exchange(port, "/soak/process") else 1)


def main() -> None:
    port, connection_rate, process_rate = map(int, sys.argv[1:4])
    answered = {"connection": 0, "process": 0}
    began = time.monotonic()
    connections = processes = 0
    children: set[int] = set()
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        elapsed = time.monotonic() - began
        while connections < elapsed * connection_rate:
            connections += 1
            answered["connection"] += exchange(port, "/soak/connection")
        while processes < elapsed * process_rate:
            children.add(spawn(port, processes))
            processes += 1
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.discard(child)
                answered["process"] += status == 0
    for child in children:
        answered["process"] += os.waitpid(child, 0)[1] == 0
    print(json.dumps(answered), flush=True)


if __name__ == "__main__":
    main()
