# SPDX-License-Identifier: Apache-2.0
"""Listening sockets are asked of the kernel's socket diagnosis; where that is not to be had, read from /proc."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rover_plugin.discovery import listeners
from rover_plugin.discovery.listeners import listening_ports
from rover_plugin.discovery.socket_diagnosis import listening_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

_ELSEWHERE = """
import ctypes, socket, sys
if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET
    sys.exit("not allowed")
listener = socket.socket()  # loopback is down in there, so a bind to any address it is
listener.bind(("0.0.0.0", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def listening_elsewhere() -> Iterator[tuple[int, int]]:
    """A process that listens in a network namespace of its own: pid and port."""
    command = [sys.executable, "-c", _ELSEWHERE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        port = child.stdout.readline()
        if not port:
            pytest.skip("may not make a network namespace")
        yield child.pid, int(port)
        child.communicate("")


def test_the_kernel_names_the_listening_sockets_of_both_families_and_no_others() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.create_connection(four.getsockname()) as connected,
    ):
        found = listening_sockets()
        assert found[os.fstat(four.fileno()).st_ino] == four.getsockname()[1]
        assert found[os.fstat(six.fileno()).st_ino] == six.getsockname()[1]
        assert os.fstat(connected.fileno()).st_ino not in found


def test_more_listeners_than_one_answer_holds_are_all_named() -> None:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(300)]
    try:
        expected = {os.fstat(one.fileno()).st_ino: one.getsockname()[1] for one in sockets}
        assert expected.items() <= listening_sockets().items()
    finally:
        for one in sockets:
            one.close()


def test_listeners_of_another_network_namespace_are_found_and_ours_are_not_theirs() -> None:
    before = Path("/proc/thread-self/ns/net").stat().st_ino
    with listening_elsewhere() as (pid, port), socket.create_server(("127.0.0.1", 0)) as ours:
        assert set(listening_sockets(f"/proc/{pid}/ns/net").values()) == {port}
        found = listening_ports([pid, os.getpid()])
        assert found[pid] == {port}
        assert ours.getsockname()[1] in found[os.getpid()]
        assert port not in found[os.getpid()]
    assert Path("/proc/thread-self/ns/net").stat().st_ino == before


def test_a_path_that_is_no_namespace_is_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        listening_sockets("/dev/null")


def test_without_socket_diagnosis_the_table_in_proc_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_namespace: str) -> dict[int, int]:
        raise OSError(errno.ENOENT, "no tcp_diag")

    with socket.create_server(("127.0.0.1", 0)) as four, listening_elsewhere() as (pid, port):
        asked = listening_ports([pid, os.getpid()])
        monkeypatch.setattr(listeners, "listening_sockets", refuse)
        read = listening_ports([pid, os.getpid()])
        assert read == asked
        assert four.getsockname()[1] in read[os.getpid()]
        assert read[pid] == {port}
