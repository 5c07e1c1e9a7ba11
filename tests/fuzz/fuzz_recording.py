# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of recording files with right checksums, replayed and explained. See README.md here.

Run: python -m tests.fuzz.fuzz_recording [libFuzzer options] [corpus folders]
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["rover_plugin.capture", "rover_plugin.access_log"]):
        import rover_plugin.access_log.explain
        import rover_plugin.access_log.replay  # noqa: F401

from rover_plugin.access_log.explain import explain, survey
from rover_plugin.access_log.replay import NoOutput, replay
from rover_plugin.capture.recording import MAGIC, VERSION, RecordingReader
from rover_plugin.errors import RecordingError
from rover_plugin.telemetry.counters import Counters

_HEADER = b'{"shards":2,"start_ns":1}'
_PREAMBLE = struct.pack("<8sH", MAGIC, VERSION)
_BLOCK = struct.Struct("<B3xI")
# Where a first byte says so, the file's header is the first block's content instead of this one.
_OWN_HEADER = 0x80


def block(kind: int, content: bytes) -> bytes:
    head = _BLOCK.pack(kind, len(content))
    return head + struct.pack("<I", zlib.crc32(content, zlib.crc32(head))) + content


def recording(data: bytes) -> bytes:
    """The file that input stands for: blocks, each a kind, a length (2 bytes) and content; checksums are right."""
    blocks = [] if data[:1] and data[0] & _OWN_HEADER else [block(1, _HEADER)]
    at = 1
    while at + 3 <= len(data):
        length = int.from_bytes(data[at + 1 : at + 3], "little")
        blocks.append(block(data[at] % 9, data[at + 3 : at + 3 + length]))
        at += 3 + length
    return _PREAMBLE + b"".join(blocks)


def as_input(file: bytes) -> bytes:
    """Input that stands for a recording, as far as its blocks are small enough."""
    parts = [bytes((_OWN_HEADER,))]
    at = len(_PREAMBLE)
    while at + 12 <= len(file):
        kind, length = _BLOCK.unpack_from(file, at)
        at += 12
        if length < 1 << 16:
            parts += (bytes((kind,)), length.to_bytes(2, "little"), file[at : at + length])
        at += length
    return b"".join(parts)


def test_one_input(data: bytes) -> None:
    """Replaying and explaining either work, or say that the file is damaged; the ledger balances all the same."""
    descriptor = os.memfd_create("recording")
    try:
        os.write(descriptor, recording(data))
        path = Path(f"/proc/self/fd/{descriptor}")
        with suppress(RecordingError), RecordingReader(path) as reader:
            counters = Counters()
            assert replay(reader, NoOutput(counters), counters).imbalance == 0
        with suppress(RecordingError), RecordingReader(path) as reader:
            stories = survey(reader)
            for story in stories[:3]:
                with RecordingReader(path) as again:
                    explain(again, story.id)
    finally:
        os.close(descriptor)


def main() -> None:
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
