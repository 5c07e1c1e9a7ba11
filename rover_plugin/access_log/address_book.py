# SPDX-License-Identifier: Apache-2.0
"""Who is behind an address: processes by pid, and the local ends of all connections we see.

A connection between two watched processes of this host is seen from both ends; each end's remote address is the other's
local one. So the book learns every local end as soon as its connection is known, and looks remote ends up in it.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import psutil

from rover_plugin.access_log.model import Endpoint, ResolvedConnection, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rover_plugin.access_log.link import ConnectionFacts
    from rover_plugin.discovery.model import Process, ProcessKey

_INTERFACES_REFRESH_S: Final = 30.0
# How long the end of a closed connection is remembered: longer than a fragment of its other end can wait for a name.
_LEAVING_NS: Final = 5_000_000_000

# And how many of them: 13 000 connections that close in a second.
_MAX_LEAVING: Final = 65_536

NOT_SELECTED: Final = "not_selected"
"""Exclusion of a process that no rule of the feed's host chooses."""

# A connection each: a dictionary answers in a third of the time an enumeration takes.
_ROLES: Final = {role.value: role for role in Role}

# Where an address is valid: loopback addresses in one network namespace only, all others everywhere on the host.
_End = tuple[int, bytes, int]


@dataclass(slots=True)
class _Owner:
    pid: int
    connections: int


@lru_cache(maxsize=4096)
def format_address(raw: bytes) -> str:
    """Text of 4 or 16 address bytes."""
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def is_loopback(raw: bytes) -> bool:
    """127.0.0.0/8 or ::1."""
    return raw[0] == 127 if len(raw) == 4 else raw == b"\0" * 15 + b"\1"


def _end(netns: int, address: bytes, port: int) -> _End:
    return (netns if is_loopback(address) else 0, address, port)


class AddressBook:
    """Names connections. Not thread-safe: the hub's thread owns it.

    Args:
        exclude_namespaces, exclude_clusters: processes there are not watched (exact names).
        local_addresses: addresses of this host, packed; by default those of its interfaces, looked up now and then.

    Attributes:
        evicted: ends of closed connections forgotten early, for want of room.
    """

    def __init__(
        self,
        exclude_namespaces: Collection[str] = (),
        exclude_clusters: Collection[str] = (),
        local_addresses: Callable[[], frozenset[bytes]] | None = None,
    ) -> None:
        self._exclude_namespaces = frozenset(exclude_namespaces)
        self._exclude_clusters = frozenset(exclude_clusters)
        self._processes: dict[int, Process] = {}
        self._exclusions: dict[int, str] = {}
        self._ends: dict[_End, _Owner] = {}
        self._leaving: deque[tuple[int, _End]] = deque()
        self.evicted = 0
        self._local_addresses = local_addresses or _CachedInterfaces()

    def sizes(self) -> dict[str, int]:
        """Entries by kind."""
        return {"processes": len(self._processes), "ends": len(self._ends), "leaving": len(self._leaving)}

    def add_process(self, process: Process) -> None:
        """Learns or replaces a process."""
        self._processes[process.key.pid] = process
        self._exclusions[process.key.pid] = self.exclusion(process)

    def remove_process(self, key: ProcessKey) -> bool:
        """Forgets a process; False if it was not known, or its pid is another's by now."""
        known = self._processes.get(key.pid)
        if known is None or known.key != key:
            return False
        del self._processes[key.pid], self._exclusions[key.pid]
        return True

    def knows(self, pid: int) -> bool:
        """Whether the feed has named this process, to be watched or not."""
        return pid in self._processes

    def exclusion(self, process: Process) -> str:
        """Why a process is not to be watched, or an empty string."""
        if not process.entities:
            return NOT_SELECTED
        entity = process.entities[0]
        if entity.namespace and entity.namespace in self._exclude_namespaces:
            return "excluded_namespace"
        cluster = entity.service.partition("::")[0] if "::" in entity.service else entity.cluster
        if cluster and cluster in self._exclude_clusters:
            return "excluded_cluster"
        return ""

    def exclusion_of(self, pid: int) -> str:
        """`exclusion` of a known process by pid."""
        return self._exclusions[pid]

    def learn(self, facts: ConnectionFacts) -> None:
        """Notes whose a connection's local end is."""
        owner = self._ends.setdefault(_end(facts.netns, facts.local, facts.local_port), _Owner(facts.pid, 0))
        owner.pid = facts.pid
        owner.connections += 1

    def forget(self, facts: ConnectionFacts, now_ns: int) -> None:
        """The connection is gone, as often as it was learnt. Its end is kept for a while: the other one may be late."""
        self._leaving.append((now_ns + _LEAVING_NS, _end(facts.netns, facts.local, facts.local_port)))
        while self._leaving and (self._leaving[0][0] < now_ns or len(self._leaving) > _MAX_LEAVING):
            until_ns, end = self._leaving.popleft()
            self.evicted += until_ns >= now_ns
            owner = self._ends.get(end)
            if owner is not None:
                owner.connections -= 1
                if owner.connections <= 0:
                    del self._ends[end]

    def peer_is_ours(self, facts: ConnectionFacts) -> bool:
        """Whether the remote end is an address of this host, so that its process may be watched too."""
        return is_loopback(facts.remote) or facts.remote == facts.local or facts.remote in self._local_addresses()

    def peer_is_known(self, facts: ConnectionFacts) -> bool:
        """Whether the remote end is a connection or listener end we know, of a process the feed has named."""
        owner = self._ends.get(_end(facts.netns, facts.remote, facts.remote_port))
        return owner is not None and owner.pid in self._processes

    def resolve(self, facts: ConnectionFacts) -> ResolvedConnection:
        """Names both ends as far as they are known."""
        local = self._endpoint(facts.local, facts.local_port, facts.pid)
        owner = self._ends.get(_end(facts.netns, facts.remote, facts.remote_port))
        remote = self._endpoint(facts.remote, facts.remote_port, owner.pid if owner is not None else None)
        return ResolvedConnection(facts.id, facts.pid, local, remote, _ROLES[facts.role], facts.tls)

    def _endpoint(self, address: bytes, port: int, pid: int | None) -> Endpoint:
        process = self._processes.get(pid) if pid is not None else None
        entity = process.entities[0] if process is not None and process.entities else None
        return Endpoint(format_address(address), port, entity, pid)


class _CachedInterfaces:
    def __init__(self) -> None:
        self._addresses: frozenset[bytes] = frozenset()
        self._looked_at = float("-inf")

    def __call__(self) -> frozenset[bytes]:
        now = time.monotonic()
        if now - self._looked_at > _INTERFACES_REFRESH_S:
            self._looked_at = now
            self._addresses = interface_addresses()
        return self._addresses


def interface_addresses() -> frozenset[bytes]:
    """The addresses of this host's interfaces, packed."""
    texts = (item.address.partition("%")[0] for items in psutil.net_if_addrs().values() for item in items)
    return frozenset(packed for packed in map(_packed, texts) if packed is not None)


def _packed(text: str) -> bytes | None:
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        return None  # a link-layer address
