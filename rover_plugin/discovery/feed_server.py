# SPDX-License-Identifier: Apache-2.0
"""Serves the process table as a gRPC stream (protos/rover/feed.proto), on a unix socket and optionally on TCP.

No client has a queue of its own: each follows the table's history at its own pace, and gets a new snapshot when the
history has moved past it. So a slow client costs nothing but its own freshness.
"""

from __future__ import annotations

import fcntl
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog

from rover_plugin._generated.rover import feed_pb2, feed_pb2_grpc
from rover_plugin.discovery.feed_codec import encode_changes, encode_executables, encode_process
from rover_plugin.errors import FeedError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from rover_plugin.discovery.table import ProcessTable

_Item = TypeVar("_Item")

log = structlog.get_logger(__name__)

HEARTBEAT_S = 5.0
# A message costs both sides half a millisecond, whatever it holds, so news that nobody waits for shares one: of
# processes without entities, and of the dead.
UNWATCHED_S = 0.05
DEAD_S = 0.5
MAX_CLIENTS = 16  # each holds a thread
PAGE = 500  # processes or changes in one message: at most a few hundred KB
_STOP_GRACE_S = 1.0
_SUN_PATH_MAX = 107  # unix(7): sun_path has 108 bytes, the last is NUL


class _FeedService(feed_pb2_grpc.ProcessFeedServicer):
    """The Watch call."""

    def __init__(self, table: ProcessTable, heartbeat_s: float) -> None:
        self._table = table
        self._heartbeat_s = heartbeat_s

    def Watch(  # noqa: N802  named by the service
        self, request: feed_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[feed_pb2.WatchResponse]:
        """Streams the table until the client goes or the table closes."""
        table = self._table
        context.add_callback(table.wake)
        resumed = self._resumable(request)
        if resumed is None:
            revision = yield from self._snapshot()
        else:
            revision = resumed
            yield self._response(revision, heartbeat=feed_pb2.Heartbeat())
        while context.is_active() and not table.closed:
            table.wait(revision, self._heartbeat_s)
            if table.since(revision) != []:
                table.gather(revision, UNWATCHED_S, DEAD_S)
            changes = table.since(revision)
            if changes is None:
                revision = yield from self._snapshot()
            elif changes:
                for page in _pages(changes):
                    revision += len(page)
                    yield self._response(revision, changes=encode_changes(page))
            else:
                yield self._response(revision, heartbeat=feed_pb2.Heartbeat())

    def _resumable(self, request: feed_pb2.WatchRequest) -> int | None:
        """The revision to go on from, if it is one of this table and not forgotten."""
        position = request.resume_from
        if position.epoch != self._table.epoch or self._table.since(position.revision) is None:
            return None
        return position.revision

    def _snapshot(self) -> Generator[feed_pb2.WatchResponse, None, int]:
        revision, processes = self._table.snapshot()
        pages = _pages(processes) or [()]
        for number, page in enumerate(pages):
            snapshot = feed_pb2.Snapshot(
                processes=map(encode_process, page), first=number == 0, more=number < len(pages) - 1
            )
            if snapshot.first:
                snapshot.executables.CopyFrom(encode_executables(self._table.executables))
            yield self._response(revision, snapshot=snapshot)
        return revision

    def _response(self, revision: int, **body: Any) -> feed_pb2.WatchResponse:
        position = feed_pb2.Position(epoch=self._table.epoch, revision=revision)
        return feed_pb2.WatchResponse(position=position, heartbeat_seconds=self._heartbeat_s, **body)


def _pages(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    return [items[start : start + PAGE] for start in range(0, len(items), PAGE)]


class FeedServer:
    """Serves a table until `stop`.

    Args:
        table: what to serve.
        socket_path: the unix socket, mode 0600; its directory is made with mode 0700 if it is missing. None: no socket.
        tcp: `host:port` to serve on as well, unencrypted and for anybody who can reach it; empty for not at all.
        heartbeat_s: longest silence towards a client, in seconds.
    """

    def __init__(
        self, table: ProcessTable, socket_path: Path | None, tcp: str = "", *, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._table = table
        self._path = socket_path
        self._tcp = tcp
        self._heartbeat_s = heartbeat_s
        self._server: grpc.Server | None = None
        self._lock = -1
        self.tcp_port = 0

    def start(self) -> None:
        """Binds and serves.

        Raises:
            FeedError: another host serves there, or the socket or port cannot be had.
        """
        if self._path is not None:
            self._lock = _claim(self._path)
        server = grpc.server(
            ThreadPoolExecutor(MAX_CLIENTS, thread_name_prefix="feed"),
            maximum_concurrent_rpcs=MAX_CLIENTS,
            options=[("grpc.so_reuseport", 0)],  # or two hosts would share a port, each with half of the clients
        )
        feed_pb2_grpc.add_ProcessFeedServicer_to_server(_FeedService(self._table, self._heartbeat_s), server)  # type: ignore[no-untyped-call]
        try:
            # First what is likely to fail: gRPC gives bound addresses of a server that never started up late.
            if self._tcp:
                self.tcp_port = _bind_tcp(server, self._tcp)
            if self._path is not None:
                _bind_private(server, self._path)
        except FeedError:
            self._release()
            raise
        server.start()
        self._server = server
        log.info("feed_served", socket=str(self._path or ""), tcp=self._tcp)

    def stop(self) -> None:
        """Ends every stream and gives the socket up; harmless if it was never started."""
        self._table.close()
        if self._server is not None:
            self._server.stop(_STOP_GRACE_S).wait()
            self._server = None
        self._release()

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _claim(path: Path) -> int:
    """Makes sure that nobody else serves at `path`; returns the descriptor that holds the claim.

    gRPC replaces whatever socket it finds, so a living one must be noticed before. The lock file stays behind, for
    to remove it would let two hosts lock two files of one name.
    """
    if len(os.fsencode(path)) > _SUN_PATH_MAX:
        message = f"path of the feed's socket is longer than {_SUN_PATH_MAX} bytes: {path}"
        raise FeedError(message, hint="set process_discovery.feed.socket to a shorter one", path=str(path))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_stale(path)
    except FeedError:
        os.close(lock)
        raise
    except BlockingIOError as error:
        os.close(lock)
        raise _occupied(path) from error
    except OSError as error:
        os.close(lock)
        raise _unusable(path, error) from error
    return lock


def _remove_stale(path: Path) -> None:
    """Removes the socket of a host that is gone."""
    if not path.exists():
        return
    if not path.is_socket():
        message = f"{path} is in the way of the feed's socket, and is no socket"
        raise FeedError(message, hint="remove it or set process_discovery.feed.socket", path=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise _occupied(path)


def _bind_private(server: grpc.Server, path: Path) -> None:
    mask = os.umask(0o177)  # so that the socket is never open to others, not even for a moment
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise _unusable(path, error) from error
    finally:
        os.umask(mask)


def _bind_tcp(server: grpc.Server, address: str) -> int:
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        message = f"the process feed cannot be served on {address}"
        hint = "set process_discovery.feed.tcp to a free HOST:PORT of this machine, or leave it empty"
        raise FeedError(message, hint=hint, address=address) from error


def _occupied(path: Path) -> FeedError:
    return FeedError(
        f"two hosts on one feed socket: another rover-host serves {path}",
        hint="stop it, or give this one another socket with process_discovery.feed.socket",
        path=str(path),
    )


def _unusable(path: Path, error: Exception) -> FeedError:
    return FeedError(
        f"the process feed cannot be served on {path} ({error})",
        hint="set process_discovery.feed.socket to a path this user may create",
        path=str(path),
    )
