# SPDX-License-Identifier: Apache-2.0
"""A loopback relay that records what an HTTP/2 client and server say: how tests/data/http2/*.txt were made.

Run: python -m tests.support.http2_relay SERVER_PORT RELAY_PORT FILE   (stops after the first connection ends)
"""

from __future__ import annotations

import gzip
import selectors
import socket
import sys
from pathlib import Path

from rover_plugin.access_log.model import Side

_MARK = {Side.REQUEST: ">", Side.RESPONSE: "<"}
Chunks = list[tuple[Side, bytes]]


def relay_one(listener: socket.socket, server_port: int) -> Chunks:
    """Relays the next connection until one end closes; returns what was read, in order."""
    client, _ = listener.accept()
    server = socket.create_connection(("127.0.0.1", server_port))
    chunks: Chunks = []
    with selectors.DefaultSelector() as selector, client, server:
        selector.register(client, selectors.EVENT_READ, (Side.REQUEST, server))
        selector.register(server, selectors.EVENT_READ, (Side.RESPONSE, client))
        while True:
            for key, _ in selector.select():
                side, target = key.data
                try:
                    data = key.fileobj.recv(65536)
                    if data:
                        target.sendall(data)
                except ConnectionError:
                    data = b""
                if not data:
                    return chunks
                chunks.append((side, data))


def save(path: Path, chunks: Chunks) -> None:
    """One line a read: `>` from the client, `<` from the server, then hex."""
    path.write_text("".join(f"{_MARK[side]} {data.hex()}\n" for side, data in chunks))


def load(path: Path) -> Chunks:
    """What `save` wrote, perhaps compressed since."""
    sides = {mark: side for side, mark in _MARK.items()}
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [(sides[line[0]], bytes.fromhex(line[2:])) for line in text.splitlines()]


def main() -> None:
    """Records one connection."""
    with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as listener:
        save(Path(sys.argv[3]), relay_one(listener, int(sys.argv[1])))


if __name__ == "__main__":
    main()
