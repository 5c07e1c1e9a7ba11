# SPDX-License-Identifier: Apache-2.0
"""The main process's side: one thread that carries what workers found and what the feed says to the resolver."""

from __future__ import annotations

import queue
import selectors
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.access_log.choices import Choices
from rover_plugin.access_log.resolver import FOREVER_NS, Resolver
from rover_plugin.errors import ModuleError, RoverError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rover_plugin.access_log.address_book import AddressBook
    from rover_plugin.access_log.link import ConnectionFacts
    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.access_log.recorder import Recorder
    from rover_plugin.capture.recording import Translation
    from rover_plugin.discovery.model import Process
    from rover_plugin.discovery.table import Change
    from rover_plugin.telemetry.counters import Counters
    from rover_plugin.telemetry.ledger import Ledger
    from rover_plugin.telemetry.telemetry import Histograms

log = structlog.get_logger(__name__)

_TICK_S: Final = 0.05
# Changes of processes that may wait; a busy host makes some hundred a second.
_MOST_CHANGES: Final = 16_384
_DATAGRAM: Final = 1 << 16


class Hub:
    """Connects workers, feed and outputs.

    Args:
        channels: the main process's ends of the workers' links, one a worker.
        encodings: in the order of the index workers put on fragments.
        watch, unwatch: tell the kernel side about a process.
        fail: stops the host when a worker dies.
        recorder: writes what the resolver is given.
        translate: asks for a connection's other end behind address translation; `translated` takes the answer.
        refuse: see `Choices`.
    """

    def __init__(
        self,
        channels: Sequence[socket.socket],
        encodings: Sequence[str],
        outputs: Sequence[Output],
        book: AddressBook,
        counters: Counters,
        watch: Callable[[int], bool],
        unwatch: Callable[[int], None],
        fail: Callable[[BaseException], None],
        recorder: Recorder | None = None,
        translate: Callable[[ConnectionFacts], None] | None = None,
        refuse: Callable[[Process], int | None] | None = None,
    ) -> None:
        self._outputs = outputs
        self._book = book
        self._choices = Choices(channels, watch, unwatch, refuse)
        self._resolver = Resolver(
            encodings,
            outputs,
            book,
            counters,
            self._choices.watch,
            self._choices.unwatch,
            len(channels),
            translate,
            self._choices.refuse,
            self._choices.decided,
        )
        self._translations: queue.SimpleQueue[Sequence[Translation]] = queue.SimpleQueue()
        self._recorder = recorder
        self._fail = fail
        self._processes: queue.Queue[Change | None] = queue.Queue(_MOST_CHANGES)
        self._complete = threading.Event()
        self._finishing = False
        self._failed: set[str] = set()
        self._selector = selectors.DefaultSelector()
        for number, channel in enumerate(channels):
            self._selector.register(channel, selectors.EVENT_READ, number)
        self._thread = threading.Thread(target=self._run, name="access-log-hub", daemon=True)

    @property
    def lag(self) -> Histograms:
        """Seconds from the end of a call to its arrival here, by worker."""
        return self._resolver.lag

    @property
    def connections(self) -> int:
        """How many the main process knows."""
        return self._resolver.connections

    def address_book_sizes(self) -> dict[str, int]:
        """Entries of the address book by kind."""
        return self._book.sizes()

    @property
    def address_book_evicted(self) -> int:
        """See `AddressBook.evicted`."""
        return self._book.evicted

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def ledger(self) -> Ledger:
        """Belongs to the hub's thread until `finish`; others read whole balances."""
        return self._resolver.ledger

    def settle_ledger(self, kernel_sequences: Mapping[int, int]) -> Ledger:
        """Draws the last balance, once the hub has finished and the outputs are closed.

        Args:
            kernel_sequences: see `Ledger.settle_ring`.
        """
        self.ledger.settle_ring(kernel_sequences)
        self.ledger.check(self._resolver.waiting_logs())
        return self.ledger

    def start(self) -> None:
        """Starts the hub's thread."""
        self._thread.start()

    def process_changed(self, change: Change) -> None:
        """From the feed, any thread."""
        self._put(change)

    def processes_complete(self) -> None:
        """From the feed, any thread: what it had to say at first has been said."""
        self._put(None)

    def translated(self, answers: Sequence[Translation]) -> None:
        """Answers to what `translate` asked, from any thread."""
        self._translations.put(answers)

    def _put(self, change: Change | None) -> None:
        # A hub that stands still makes the feed wait, which falls behind and is given a new snapshot later.
        while True:
            try:
                self._processes.put(change, timeout=1.0)
            except queue.Full:
                if self._thread.is_alive():
                    continue
            return

    def wait_for_processes(self, timeout_s: float) -> bool:
        """Waits until the processes named at first are watched; False if that takes too long."""
        return self._complete.wait(timeout_s)

    def stop_waiting(self) -> None:
        """Ends `wait_for_processes`, from any thread."""
        self._complete.set()

    def expect_end(self) -> None:
        """From now on a worker that ends is no failure."""
        self._finishing = True

    def finish(self, timeout_s: float) -> bool:
        """Waits until every worker has handed on everything and closed its link; False if that takes too long."""
        self.expect_end()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the thread --

    def _run(self) -> None:
        try:
            next_tick = 0.0
            while self._selector.get_map():
                for key, _ in self._selector.select(_TICK_S):
                    self._take_processes()
                    self._read(key.fileobj, key.data)  # type: ignore[arg-type]
                now = time.monotonic()
                if now >= next_tick:
                    next_tick = now + _TICK_S
                    self._take_processes()
                    self._take_translations()
                    self._settle(time.monotonic_ns())
                    self._choices.send()
                    self._tick_outputs()
            self._take_processes()
            self._resolver.settle(FOREVER_NS)
        except RoverError as error:
            self._fail(error)
        except Exception as error:
            log.exception("hub_failed")
            self._fail(error)

    def _tick_outputs(self) -> None:
        for output in self._outputs:
            with self._surviving(output.name):
                output.tick()

    @contextmanager
    def _surviving(self, part: str) -> Iterator[None]:
        """A mistake in one part, whatever a log holds, must not end the rest; each part's first one is shown."""
        try:
            yield
        except RoverError:
            raise
        except Exception:
            if part not in self._failed:
                self._failed.add(part)
                log.exception("hub_part_failed", part=part)

    def _read(self, channel: socket.socket, worker: int) -> None:
        for _ in range(64):
            try:
                datagram = channel.recv(_DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                datagram = b""
            if not datagram:
                self._selector.unregister(channel)
                if not self._finishing:
                    self._fail(ModuleError("an access log worker ended on its own", hint="its last words are above"))
                return
            self._take(worker, datagram, time.monotonic_ns())

    def _take(self, worker: int, datagram: bytes, now_ns: int) -> None:
        taken = (datagram,) if self._recorder is None else self._recorder.take(worker, datagram, now_ns)
        for whole in taken:
            with self._surviving("resolver"):
                self._resolver.take(whole, now_ns, worker)

    def _settle(self, now_ns: int) -> None:
        if self._recorder is not None and not self._resolver.settled:
            self._recorder.settling(now_ns)
        with self._surviving("resolver"):
            self._resolver.settle(now_ns)

    def _take_translations(self) -> None:
        while not self._translations.empty():
            answers = self._translations.get()
            now_ns = time.monotonic_ns()
            if self._recorder is not None:
                self._recorder.translations(now_ns, answers)
            with self._surviving("resolver"):
                self._resolver.translated(answers, now_ns)

    def _take_processes(self) -> None:
        while True:
            try:
                change = self._processes.get_nowait()
            except queue.Empty:
                return
            if change is None:
                self._complete.set()
            else:
                now_ns = time.monotonic_ns()
                if self._recorder is not None:
                    self._recorder.processes(now_ns, (change,))
                self._resolver.change_process(change, now_ns)
