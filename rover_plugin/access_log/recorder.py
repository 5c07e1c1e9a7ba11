# SPDX-License-Identifier: Apache-2.0
"""Module `recorder`: writes what the rings deliver and the process feed says to a file, and analyses nothing.

It is not registered: `rover-host record` puts it where the module `access_log` would be.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from rover_plugin import __version__
from rover_plugin.access_log.address_book import AddressBook, interface_addresses
from rover_plugin.access_log.options import analysis_options, capture_options, feed_address
from rover_plugin.access_log.redaction import Redaction
from rover_plugin.access_log.schedule import TICK_NS
from rover_plugin.access_log.worker import clock_offset_ns
from rover_plugin.capture.recording import RecordingHeader, RecordingWriter
from rover_plugin.capture.ring import RingReader
from rover_plugin.capture.session import Capture
from rover_plugin.discovery.feed_client import FeedClient, FeedState
from rover_plugin.discovery.table import Removed

if TYPE_CHECKING:
    from pathlib import Path

    from rover_plugin.discovery.table import Change
    from rover_plugin.host.module import Context
    from rover_plugin.settings import Settings

log = structlog.get_logger(__name__)

_BATCH: Final = 2000
_WAIT_S: Final = 0.01
_FLUSH_NS: Final = 1_000_000_000
# Nobody pushes back on a disk, so the rings take what a slow moment of it costs.
_LEAST_RING_BYTES: Final = 16 << 20


class RecorderModule:
    """Records into one file until it is shut down.

    Args:
        path: the file; must not exist.
        redact: hide values, see `redaction`.

    Attributes:
        counts: what the recording's statistics say; complete after `shutdown`.
    """

    name = "recorder"
    requires: tuple[str, ...] = ("process_discovery",)

    def __init__(self, path: Path, *, redact: bool) -> None:
        self._path = path
        self._redact = redact
        self.counts: dict[str, Any] = {}
        self._capture: Capture | None = None
        self._writer: RecordingWriter | Redaction | None = None
        self._book = AddressBook()
        self._feed: FeedClient | None = None
        self._changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
        self._finishing = threading.Event()
        self._thread: threading.Thread | None = None
        self._context: Context | None = None

    def active(self, settings: Settings) -> bool:  # noqa: ARG002 whoever makes it wants it
        """Always."""
        return True

    def start(self, context: Context) -> None:
        """Loads the kernel side, opens the file, and begins.

        Raises:
            RecordingError: the file exists or cannot be written.
            CaptureError: as for the module `access_log`.
        """
        self._context = context
        settings = context.settings
        options = analysis_options(settings)
        self._book = AddressBook(options.exclude_namespaces, options.exclude_clusters)
        self._capture = capture = Capture(capture_options(settings, least_ring_bytes=_LEAST_RING_BYTES))
        system = os.uname()
        header = RecordingHeader(
            shards=capture.options.shards,
            start_ns=time.monotonic_ns(),
            clock_offset_ns=clock_offset_ns(),
            redacted=self._redact,
            local_addresses=tuple(sorted(address.hex() for address in interface_addresses())),
            options=options,
            agent=f"rover_plugin {__version__}",
            kernel=f"{system.release} {system.version}",
            machine=system.machine,
        )
        writer = RecordingWriter(self._path, header)
        self._writer = Redaction(writer, header) if self._redact else writer
        self._thread = threading.Thread(target=self._run, args=(capture, self._writer), name="recorder", daemon=True)
        self._thread.start()
        capture.start()
        self._feed = FeedClient(feed_address(settings))
        self._feed.follow(self._on_process, self._on_feed_state)
        log.info("recording_started", path=str(self._path), redacted=self._redact)

    def notify_start_success(self) -> None:
        """Nothing waits for the others."""

    def shutdown(self) -> None:
        """Detaches, writes what is still in the rings, and closes the file."""
        if self._capture is None or self._writer is None or self._thread is None:
            return
        self._capture.stop()
        if self._feed is not None:
            self._feed.close()
        self._finishing.set()
        self._thread.join()
        kernel = {statistic.name.lower(): count for statistic, count in self._capture.statistics().items()}
        self.counts = {**self.counts, "kernel": kernel, "connections": self._capture.connection_count()}
        self._writer.close(time.monotonic_ns(), self.counts)
        self._capture.close()

    def _on_process(self, change: Change) -> None:
        self._changes.put(change)
        if self._capture is None or isinstance(change, Removed):
            return
        process = change.process
        if self._book.exclusion(process):
            self._capture.unwatch(process.key.pid)
        elif not self._capture.watch(process.key.pid):
            log.warning("process_not_watched", pid=process.key.pid, reason="table_full")

    def _on_feed_state(self, state: FeedState) -> None:
        event = log.warning if state in {FeedState.STALE, FeedState.DOWN} else log.debug
        event("process_feed_state", state=state.value)

    # -- the thread --

    def _run(self, capture: Capture, writer: RecordingWriter | Redaction) -> None:
        try:
            self._record(capture, writer)
        except Exception as error:  # noqa: BLE001 whatever it is, the host has to end, and say it
            if self._context is not None:
                self._context.fail(error)

    def _record(self, capture: Capture, writer: RecordingWriter | Redaction) -> None:
        descriptors = capture.ring_descriptors()
        rings = [RingReader(descriptor) for descriptor in descriptors]
        poll = select.epoll()
        for descriptor in descriptors:
            poll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        last = [0] * len(rings)
        total = size = next_flush = 0
        records: list[bytes] = []

        def keep(data: memoryview, start: int, end: int) -> None:
            records.append(data[start:end].tobytes())

        while True:
            finishing = self._finishing.is_set()
            self._write_changes(writer)
            busy = False
            for shard, ring in enumerate(rings):
                taken = ring.read(keep, _BATCH)
                now_ns = time.monotonic_ns()
                # Workers look at the clock in vain, too: without records, time passes in ticks.
                if taken or now_ns - last[shard] >= TICK_NS:
                    last[shard] = now_ns
                    writer.batch(shard, now_ns, records)
                    total += taken
                    size += sum(map(len, records))
                    records.clear()
                busy = busy or bool(taken == _BATCH)
            if now_ns >= next_flush:
                next_flush = now_ns + _FLUSH_NS
                writer.clock(now_ns, clock_offset_ns())
                writer.flush()
            if not busy:
                if finishing:
                    break
                poll.poll(_WAIT_S)
        self.counts = {"records": total, "bytes": size}
        poll.close()
        for ring in rings:
            ring.close()

    def _write_changes(self, writer: RecordingWriter | Redaction) -> None:
        changes = []
        while True:
            try:
                changes.append(self._changes.get_nowait())
            except queue.Empty:
                break
        if changes:
            writer.processes(time.monotonic_ns(), changes)
