# SPDX-License-Identifier: Apache-2.0
"""Follows a process feed (protos/rover/feed.proto) and keeps following it, whatever happens to the server."""

from __future__ import annotations

import math
import random
import threading
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from rover_plugin._generated.rover import feed_pb2, feed_pb2_grpc
from rover_plugin.discovery.feed_codec import decode_changes, decode_executables, decode_process
from rover_plugin.discovery.table import Added, Change, Removed, Updated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rover_plugin.discovery.model import Executables, Process, ProcessKey

log = structlog.get_logger(__name__)

FIRST_BACK_OFF_S = 0.1
MAX_BACK_OFF_S = 5.0
SILENCE_HEARTBEATS = 3  # a feed that misses this many heartbeats is stale
CONNECT_PATIENCE_S = 15.0  # until the first message


class FeedState(StrEnum):
    """Health of a followed feed."""

    CONNECTING = "connecting"  # not yet, or not again
    LIVE = "live"
    STALE = "stale"  # connected, but silent for longer than its heartbeats allow
    DOWN = "down"  # the server is gone or refuses
    CLOSED = "closed"  # by us


class FeedClient:
    """One follower of one feed.

    Whatever the connection goes through, the changes it delivers describe one consistent table: each process is added
    once before it is updated or removed. After a new snapshot only the differences are delivered.

    Args:
        address: path of a unix socket, `unix:PATH`, or `host:port`.
    """

    def __init__(self, address: str) -> None:
        self._address = f"unix:{address}" if address.startswith("/") else address
        self._processes: dict[ProcessKey, Process] = {}
        self._arriving: dict[ProcessKey, Process] = {}
        self._position: feed_pb2.Position | None = None
        self._state: FeedState | None = None
        self._last_message = self._connected = -math.inf
        self._patience_s = CONNECT_PATIENCE_S
        self._closing = threading.Event()
        self._call_lock = threading.Lock()
        self._call: grpc.Future[Any] | None = None
        self._threads: tuple[threading.Thread, ...] = ()
        self._on_change: Callable[[Change], None] = lambda _change: None
        self._on_state: Callable[[FeedState], None] = lambda _state: None
        self._on_executables: Callable[[Executables], None] = lambda _executables: None

    @property
    def state(self) -> FeedState:
        """Health as of now."""
        return self._state or FeedState.CONNECTING

    @property
    def age_s(self) -> float:
        """Seconds since the last message of the server, infinite before the first."""
        return time.monotonic() - self._last_message

    def follow(
        self,
        on_change: Callable[[Change], None],
        on_state: Callable[[FeedState], None],
        on_executables: Callable[[Executables], None] = lambda _executables: None,
    ) -> None:
        """Starts following, in threads of its own.

        Args:
            on_change: called with every change, in order, from one thread.
            on_state: called when the health changes, from any of the threads.
            on_executables: called before the changes of each snapshot, from the thread of `on_change`.
        """
        self._on_change, self._on_state, self._on_executables = on_change, on_state, on_executables
        self._threads = (
            threading.Thread(target=self._run, name="feed-client", daemon=True),
            threading.Thread(target=self._watch_silence, name="feed-client-watch", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops following; no callback runs after it has returned, unless called by one."""
        self._closing.set()
        self._hang_up()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._enter(FeedState.CLOSED)

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self._enter(FeedState.CONNECTING)
            began = time.monotonic()
            reason = self._watch()
            if self._closing.is_set():
                return
            failures = 0 if self._last_message >= began else failures + 1
            if self._state is not FeedState.STALE:
                self._enter(FeedState.DOWN)
            delay = min(MAX_BACK_OFF_S, FIRST_BACK_OFF_S * 2 ** min(failures, 10)) * random.uniform(0.5, 1.5)  # noqa: S311  spreads load
            log.info("feed_lost", address=self._address, reason=reason, retry_s=round(delay, 2))
            self._closing.wait(delay)

    def _watch(self) -> str:
        """One connection, from the first message to its end; returns why it ended."""
        # With a pool of its own the channel takes no part in the back-off of an earlier one to the same address.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._address, options=options) as channel:
            self._patience_s, self._connected = CONNECT_PATIENCE_S, time.monotonic()
            stub = feed_pb2_grpc.ProcessFeedStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Watch(feed_pb2.WatchRequest(resume_from=self._position))
            with self._call_lock:
                self._call = call
            if self._closing.is_set():
                call.cancel()
            try:
                for response in call:
                    self._receive(response)
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"
            finally:
                with self._call_lock:
                    self._call = None
            return "the server ended it"

    def _receive(self, response: feed_pb2.WatchResponse) -> None:
        self._last_message = time.monotonic()
        self._patience_s = SILENCE_HEARTBEATS * response.heartbeat_seconds or CONNECT_PATIENCE_S
        match response.WhichOneof("body"):
            case "snapshot":
                if not self._collect(response.snapshot):
                    return
                self._deliver(self._differences())
            case "changes":
                self._deliver(decode_changes(response.changes))
        self._position = response.position
        self._enter(FeedState.LIVE)

    def _collect(self, page: feed_pb2.Snapshot) -> bool:
        """Takes a page of a snapshot; true with the last."""
        if page.first:
            self._arriving = {}
            self._on_executables(decode_executables(page.executables))
        for process in map(decode_process, page.processes):
            self._arriving[process.key] = process
        return not page.more

    def _differences(self) -> list[Change]:
        """What leads from the table as delivered to the snapshot that has arrived; removals first, for reused pids."""
        arrived, self._arriving = self._arriving, {}
        changes: list[Change] = [Removed(key) for key in self._processes if key not in arrived]
        for key, process in arrived.items():
            known = self._processes.get(key)
            if known is None:
                changes.append(Added(process))
            elif known != process:
                changes.append(Updated(process))
        return changes

    def _deliver(self, changes: Iterable[Change]) -> None:
        for change in changes:
            match change:
                case Added(process) | Updated(process):
                    self._processes[process.key] = process
                case Removed(key):
                    self._processes.pop(key, None)
            try:
                self._on_change(change)
            except Exception:  # the follower's fault must not end the feed for everybody after it
                log.exception("feed_follower_failed", change=type(change).__name__)

    def _watch_silence(self) -> None:
        """Hangs up on a server that says nothing, which makes `_run` connect again."""
        while not self._closing.wait(min(1.0, self._patience_s / SILENCE_HEARTBEATS)):
            silent_s = time.monotonic() - max(self._last_message, self._connected)
            if self._call is not None and silent_s > self._patience_s:
                log.warning("feed_silent", address=self._address, seconds=round(silent_s, 1))
                self._enter(FeedState.STALE)
                self._hang_up()

    def _hang_up(self) -> None:
        with self._call_lock:
            if self._call is not None:
                self._call.cancel()

    def _enter(self, state: FeedState) -> None:
        with self._call_lock:
            if state is self._state or self._state is FeedState.CLOSED:
                return
            self._state = state
        self._on_state(state)
