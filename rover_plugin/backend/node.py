# SPDX-License-Identifier: Apache-2.0
"""This host as the backend knows it: name, interfaces, and the clock its times count from (oap-contract A.2, B)."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Final

import psutil

_SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface: kernel ifindex, MTU in bytes, name."""

    index: int
    mtu: int
    name: str


@dataclass(frozen=True, slots=True)
class ClockBase:
    """Where CLOCK_MONOTONIC stands in wall-clock time.

    Wall clock = boot_seconds * 10^9 + offset_ns + CLOCK_MONOTONIC, in nanoseconds since the epoch. The OAP never reads
    the nanoseconds of bootTime, so only `boot_seconds` travels there and who encodes times adds `offset_ns` to them.
    """

    boot_seconds: int
    offset_ns: int

    @classmethod
    def now(cls) -> ClockBase:
        """The exact base at this moment, the remainder below a second in `offset_ns`."""
        return cls(*divmod(_boot_ns(), _SECOND_NS))

    @classmethod
    def for_offset(cls, offset_ns: int) -> ClockBase:
        """The base for times that already carry `offset_ns`: exact to half a second, which is as near as seconds get.

        Take it anew for each stream: the wall clock is stepped, the offset inside encoded times is not.
        """
        return cls((_boot_ns() - offset_ns + _SECOND_NS // 2) // _SECOND_NS, offset_ns)


def _boot_ns() -> int:
    # The wall clock is read between two readings of the other one, so that being descheduled here shows; best of three.
    samples = []
    for _ in range(3):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        samples.append((after - before, wall - (before + after) // 2))
    return min(samples)[1]


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What goes into `node` of a stream, apart from the clock."""

    name: str
    cluster: str
    interfaces: tuple[Interface, ...]


def read_node(name: str, cluster: str) -> NodeIdentity:
    """This host now; `name` empty means the host name."""
    return NodeIdentity(name or socket.gethostname(), cluster, read_interfaces())


def read_interfaces() -> tuple[Interface, ...]:
    """The interfaces of this network namespace, by ifindex."""
    statistics = psutil.net_if_stats()
    return tuple(
        Interface(index, statistics[name].mtu if name in statistics else 0, name)
        for index, name in sorted(socket.if_nameindex())
    )
