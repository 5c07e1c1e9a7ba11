# SPDX-License-Identifier: Apache-2.0
"""The main process's end of a recording: writes what the resolver is given, in the order in which it is given it.

`Tap` is the workers' end.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from rover_plugin import __version__
from rover_plugin.access_log.link import Item, read_items
from rover_plugin.access_log.redaction import Redaction
from rover_plugin.capture.recording import Batch, RecordingHeader, RecordingWriter
from rover_plugin.discovery.table import Removed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rover_plugin.capture.recording import AnalysisOptions, Translation
    from rover_plugin.discovery.table import Change

_FLUSH_NS: Final = 1_000_000_000
_RECORDS: Final = int(Item.RECORDS)


class Recorder:
    """Records into one file. Not thread-safe: the hub's thread calls it between `open` and `close`.

    Args:
        path: the file; must not exist.
        redact: hide values, see `redaction`.

    Attributes:
        counts: what the recording's statistics say; complete after `close`.
    """

    def __init__(self, path: Path, *, redact: bool) -> None:
        self._path = path
        self._redact = redact
        self.counts: dict[str, Any] = {}
        self._writer: RecordingWriter | Redaction | None = None
        self._datagrams: defaultdict[int, list[bytes]] = defaultdict(list)
        self._contents: defaultdict[int, bytes] = defaultdict(bytes)
        self._next_flush = 0
        self._batches = self._bytes = 0

    def open(self, shards: int, options: AnalysisOptions, local_addresses: Iterable[bytes]) -> None:
        """Begins the file.

        Raises:
            RecordingError: the file exists or cannot be written.
        """
        system = os.uname()
        header = RecordingHeader(
            shards=shards,
            start_ns=time.monotonic_ns(),
            redacted=self._redact,
            local_addresses=tuple(sorted(address.hex() for address in local_addresses)),
            options=options,
            agent=f"rover_plugin {__version__}",
            kernel=f"{system.release} {system.version}",
            machine=system.machine,
        )
        writer = RecordingWriter(self._path, header)
        self._writer = Redaction(writer, header) if self._redact else writer

    def take(self, source: int, datagram: bytes, now_ns: int) -> Sequence[bytes]:
        """Takes a datagram of the worker `source`; returns what the resolver may take now.

        What came of a batch waits until the batch is here: a replay knows no state in between.
        """
        if datagram[0] != _RECORDS:
            self._datagrams[source].append(datagram)
            return ()
        for _, more, _, _, _, part in read_items(datagram):
            self._contents[source] += part
            if more:
                return ()
        self._write(Batch.unpack(self._contents.pop(source)), now_ns)
        return self._datagrams.pop(source, ())

    def _write(self, batch: Batch, now_ns: int) -> None:
        if self._writer is None:
            return
        self._writer.batch(replace(batch, taken_ns=now_ns))
        self._batches += 1
        self._bytes += len(batch.records)
        if now_ns >= self._next_flush:
            self._next_flush = now_ns + _FLUSH_NS
            self._writer.flush()

    def processes(self, now_ns: int, changes: Iterable[Change]) -> None:
        """Takes what the resolver is told of processes; of those that nobody has chosen only that they exist."""
        if self._writer is not None:
            self._writer.processes(now_ns, map(_of_chosen, changes))

    def settling(self, now_ns: int) -> None:
        """The resolver is about to look again at what waits."""
        if self._writer is not None:
            self._writer.settling(now_ns)

    def translations(self, now_ns: int, answers: Iterable[Translation]) -> None:
        """Takes what the resolver is told of translated connections."""
        if self._writer is not None:
            self._writer.translations(now_ns, answers)

    def close(self, counts: dict[str, Any]) -> None:
        """Ends the file, with `counts` in its statistics; harmless if it was never begun."""
        if self._writer is None:
            return
        self.counts = {"batches": self._batches, "bytes": self._bytes, **counts}
        writer, self._writer = self._writer, None
        writer.close(time.monotonic_ns(), self.counts)


def _of_chosen(change: Change) -> Change:
    if isinstance(change, Removed) or change.process.entities:
        return change
    return replace(change, process=replace(change.process, exe="", cmdline=()))
