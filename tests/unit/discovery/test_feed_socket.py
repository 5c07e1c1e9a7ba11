# SPDX-License-Identifier: Apache-2.0
"""Who may have the feed's socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from rover_plugin.discovery.feed_server import FeedServer
from rover_plugin.discovery.table import ProcessTable
from rover_plugin.errors import FeedError

if TYPE_CHECKING:
    from pathlib import Path


def started(path: Path, tcp: str = "") -> FeedServer:
    server = FeedServer(ProcessTable(), path, tcp)
    server.start()
    return server


def test_a_second_host_on_the_same_socket_is_told_so(tmp_path: Path) -> None:
    first = started(tmp_path / "feed.sock")
    try:
        with pytest.raises(FeedError, match="two hosts on one feed socket") as refusal:
            started(tmp_path / "feed.sock")
        assert "process_discovery.feed.socket" in refusal.value.hint
    finally:
        first.stop()
    started(tmp_path / "feed.sock").stop()


def test_another_server_on_the_socket_is_not_pushed_aside(tmp_path: Path) -> None:
    path = tmp_path / "feed.sock"
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        with pytest.raises(FeedError, match="two hosts on one feed socket"):
            started(path)


def test_the_socket_of_a_dead_host_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "feed.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    started(path).stop()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "feed.sock"
    path.write_text("precious")
    with pytest.raises(FeedError, match="is no socket"):
        started(path)
    assert path.read_text() == "precious"


def test_a_directory_that_cannot_be_made_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FeedError, match=r"cannot be served .* path this user may create"):
        started(tmp_path / "file" / "feed.sock")


def test_a_path_too_long_for_a_socket_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="longer than 107 bytes"):
        started(tmp_path / ("x" * 108))


def test_a_taken_tcp_port_is_an_error_and_frees_the_socket(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FeedError, match=f"cannot be served on 127.0.0.1:{port}"):
            started(tmp_path / "feed.sock", f"127.0.0.1:{port}")
    started(tmp_path / "feed.sock").stop()


def test_a_server_that_never_started_can_be_stopped(tmp_path: Path) -> None:
    FeedServer(ProcessTable(), tmp_path / "feed.sock").stop()
    assert list(tmp_path.iterdir()) == []
