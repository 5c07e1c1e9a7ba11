# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what the backend may send: HTTP/2 frames and gRPC replies. See README.md beside this file.

Run: python -m tests.fuzz.fuzz_backend [libFuzzer options] [corpus folders]
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["rover_plugin.backend.grpc_over_h2", "h2", "hpack", "hyperframe"]):
        import rover_plugin.backend.grpc_over_h2  # noqa: F401

from rover_plugin.backend.grpc_over_h2 import ClientConnection, first_message

# What a step's first byte says: the backend's bytes, or what this end does.
BYTES, OPEN, SEND, FINISH, ABANDON, LOST = range(6)
_MOST_BACKLOG = 4 << 20


def test_one_input(data: bytes) -> None:
    """Steps: a kind, a length (2 bytes) and as many bytes, which only `BYTES` and `SEND` use."""
    protocol = ClientConnection("backend:11800", "http", [("authentication", "token")])
    protocol.take_outgoing()
    at = sent = 0
    while at + 3 <= len(data):
        kind, length = data[at] % 6, int.from_bytes(data[at + 1 : at + 3], "little")
        piece = data[at + 3 : at + 3 + length]
        at += 3 + length
        sent += _step(protocol, kind, piece)
        assert len(protocol.take_outgoing()) < _MOST_BACKLOG + sent
        first_message(protocol.reply)
    protocol.abandon("CANCELLED", "")
    assert not protocol._stream or protocol.end is not None


def _step(protocol: ClientConnection, kind: int, piece: bytes) -> int:
    running = protocol._stream and protocol.end is None
    if kind == BYTES:
        protocol.receive(piece)
    elif kind == OPEN and protocol.usable and not running:
        protocol.open("/service/method", 1.0)
    elif kind == SEND and running:
        return protocol.send(memoryview(piece))
    elif kind == FINISH and running:
        protocol.finish()
    elif kind == ABANDON:
        protocol.abandon("DEADLINE_EXCEEDED", "no answer in time")
    elif kind == LOST:
        protocol.lost("gone")
    return 0


def main() -> None:
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
