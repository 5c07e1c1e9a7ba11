# SPDX-License-Identifier: Apache-2.0
"""A worker's end of a recording: repeats to the main process what the shard is given, with what came of it.

Only while somebody records. Then the worker waits for the main process: what is not taken fills the ring, and shows in
the recording as lost there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rover_plugin.capture.recording import LENGTH, Batch

if TYPE_CHECKING:
    from rover_plugin.access_log.link import LinkWriter
    from rover_plugin.access_log.shard import Shard

_DRAIN_S: Final = 10.0


class Tap:
    """Stands between a ring and its shard.

    Args:
        number: of the shard.

    Attributes:
        clock_offset_ns: wall clock minus CLOCK_MONOTONIC, as the encoders know it.
    """

    def __init__(self, number: int, shard: Shard, link: LinkWriter) -> None:
        self._number = number
        self._shard = shard
        self._link = link
        self._records: list[bytes] = []
        self.clock_offset_ns = 0

    def handle(self, data: memoryview, start: int, end: int) -> None:
        """See `Shard.handle`."""
        self._records += (LENGTH.pack(end - start), data[start:end].tobytes())
        self._shard.handle(data, start, end)

    def tell(self, now_ns: int, *, final: bool = False) -> None:
        """To be called once time has passed for the shard, or it has ended, and before anything else is read."""
        records, self._records = b"".join(self._records), []
        self._link.records(Batch(now_ns, 0, self.clock_offset_ns, self._number, records, final).pack())
        self._link.drain(_DRAIN_S)
