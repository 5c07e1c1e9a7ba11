# SPDX-License-Identifier: Apache-2.0
"""What one process has open towards others, from /proc, in whatever network namespace it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from rover_plugin.discovery.procfs import PROC

_LISTEN = "0A"  # include/net/tcp_states.h, TCP_LISTEN
_TCP = ("tcp", "tcp6")
# Table below /proc/PID/net, name for people, column of the inode (proc(5), /proc/net).
_OTHERS = (("udp", "UDP", 9), ("udp6", "UDP", 9), ("unix", "unix", 6))
_IO_URING = "anon_inode:[io_uring]"


class TcpSocket(NamedTuple):
    """A TCP socket; `remote` is 0 for one that listens."""

    local: int
    remote: int


@dataclass(frozen=True, slots=True)
class OpenSockets:
    """Sockets of a process.

    Attributes:
        tcp: those that listen or are connected.
        others: kinds of its other sockets: UDP, unix, or "other".
        io_uring: whether it has an io_uring.
    """

    tcp: tuple[TcpSocket, ...]
    others: frozenset[str]
    io_uring: bool

    def service_ports(self) -> frozenset[int]:
        """Ports of the servers at its connections: its own where it listens, else the other end's."""
        listens = {socket.local for socket in self.tcp if not socket.remote}
        return frozenset(socket.local if socket.local in listens else socket.remote for socket in self.tcp)


def open_sockets(pid: int, proc: str = PROC) -> OpenSockets:
    """Looks at every descriptor of a process.

    Raises:
        OSError: it is gone, or another user's.
    """
    links = _links(f"{proc}/{pid}/fd")
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    tcp: list[TcpSocket] = []
    for table in _TCP:
        for fields in _rows(f"{proc}/{pid}/net/{table}"):
            if fields[9] in inodes:
                inodes.discard(fields[9])
                remote = 0 if fields[3] == _LISTEN else _port(fields[2])
                if remote or fields[3] == _LISTEN:
                    tcp.append(TcpSocket(_port(fields[1]), remote))
    others = set()
    for table, name, column in _OTHERS:
        found = {fields[column] for fields in _rows(f"{proc}/{pid}/net/{table}")} & inodes
        if found:
            others.add(name)
            inodes -= found
    if inodes:
        others.add("other")
    return OpenSockets(tuple(tcp), frozenset(others), _IO_URING in links)


def _links(directory: str) -> list[str]:
    links = []
    for descriptor in os.listdir(directory):  # noqa: PTH208 no path needed
        try:
            links.append(os.readlink(f"{directory}/{descriptor}"))  # noqa: PTH115 as above
        except FileNotFoundError:
            continue
    return links


def _rows(path: str) -> list[list[str]]:
    try:
        with open(path, encoding="ascii", errors="replace") as lines:  # noqa: PTH123 as above
            return [line.split() for line in lines][1:]
    except FileNotFoundError:  # without IPv6 there is no tcp6
        return []


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
