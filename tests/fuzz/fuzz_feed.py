# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of process feed messages, as a foreign host may send them. See README.md beside this file.

Run: python -m tests.fuzz.fuzz_feed [libFuzzer options] [corpus folders]
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(
        include=["rover_plugin.discovery.feed_client", "rover_plugin.discovery.feed_codec"]
    ):
        import rover_plugin.discovery.feed_client  # noqa: F401

from google.protobuf.message import DecodeError

from rover_plugin._generated.rover import feed_pb2
from rover_plugin.discovery.feed_client import FeedClient
from rover_plugin.discovery.table import Added, Change, Removed, Updated


def test_one_input(data: bytes) -> None:
    """Messages of a Watch stream, each behind a length of two bytes: the table they make is consistent."""
    client = FeedClient("unix:/nowhere")
    known: set[object] = set()

    def take(change: Change) -> None:
        match change:
            case Added(process) | Updated(process):
                known.add(process.key)
            case Removed(key):
                known.discard(key)

    client._on_change = take
    at = 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "little")
        try:
            response = feed_pb2.WatchResponse.FromString(data[at + 2 : at + 2 + length])
        except DecodeError:
            pass  # grpcio ends the call
        else:
            client._receive(response)
        at += 2 + length
    assert known == set(client._processes)


def main() -> None:
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
