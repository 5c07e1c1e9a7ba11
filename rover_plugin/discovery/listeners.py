# SPDX-License-Identifier: Apache-2.0
"""Which process listens on which TCP port."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rover_plugin.discovery.procfs import PROC
from rover_plugin.discovery.socket_diagnosis import listening_sockets

if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTEN = "0A"  # include/net/tcp_states.h, TCP_LISTEN


def listening_ports(pids: Iterable[int], proc: str = PROC) -> dict[int, frozenset[int]]:
    """TCP ports (IPv4 and IPv6) each of `pids` holds a listening socket for, in whatever network namespace it is.

    Costs one look at every descriptor of every process, so it is for rules that ask for ports only.
    """
    by_namespace: dict[int, dict[str, int]] = {}
    found: dict[int, frozenset[int]] = {}
    for pid in pids:
        try:
            namespace = os.stat(f"{proc}/{pid}/ns/net").st_ino  # noqa: PTH116  thousands of calls a scan
            if namespace not in by_namespace:
                by_namespace[namespace] = _listeners(pid, proc)
            found[pid] = _ports_of(pid, by_namespace[namespace], proc)
        except OSError:
            continue
    return found


def _listeners(pid: int, proc: str) -> dict[str, int]:
    """Socket link text (`socket:[inode]`) to port, of the network namespace a process is in."""
    try:
        sockets = listening_sockets(f"{proc}/{pid}/ns/net")
    except OSError:  # not allowed, or a kernel without it
        sockets = _listening_inodes(pid, proc)
    return {f"socket:[{inode}]": port for inode, port in sockets.items()}


def _listening_inodes(pid: int, proc: str) -> dict[int, int]:
    """Inode to port out of a table that holds every TCP socket (proc(5), /proc/net/tcp)."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        try:
            with open(f"{proc}/{pid}/net/{table}") as lines:  # noqa: PTH123  as above
                next(lines)
                for line in lines:
                    fields = line.split(None, 10)
                    if fields[3] == _LISTEN:
                        inodes[int(fields[9])] = int(fields[1].rpartition(":")[2], 16)
        except (FileNotFoundError, StopIteration):  # without IPv6 there is no tcp6
            continue
    return inodes


def _ports_of(pid: int, inodes: dict[str, int], proc: str) -> frozenset[int]:
    if not inodes:
        return frozenset()
    directory = f"{proc}/{pid}/fd"
    ports = set()
    for descriptor in os.listdir(directory):  # noqa: PTH208  as above
        try:
            port = inodes.get(os.readlink(f"{directory}/{descriptor}"))  # noqa: PTH115  as above
        except FileNotFoundError:
            continue
        if port is not None:
            ports.add(port)
    return frozenset(ports)
