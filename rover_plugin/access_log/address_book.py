# SPDX-License-Identifier: Apache-2.0
"""Who is at the ends of a connection: processes by pid, and the two ends of one connection by what the kernel says.

A connection between two watched processes of this host is seen from both ends. `Ends` finds the one from the other; a
name comes from nowhere else (docs/naming.md).
"""

from __future__ import annotations

import ipaddress
import socket
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import psutil

from rover_plugin.access_log.ends import Ends
from rover_plugin.access_log.model import Endpoint, ResolvedConnection, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rover_plugin.access_log.ends import End
    from rover_plugin.access_log.link import ConnectionFacts
    from rover_plugin.discovery.model import Process, ProcessKey

_INTERFACES_REFRESH_S: Final = 30.0
NOT_SELECTED: Final = "not_selected"
"""Exclusion of a process that no rule of the feed's host chooses."""

# A connection each: a dictionary answers in a third of the time an enumeration takes.
_ROLES: Final = {role.value: role for role in Role}


@lru_cache(maxsize=4096)
def format_address(raw: bytes) -> str:
    """Text of 4 or 16 address bytes."""
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def is_loopback(raw: bytes) -> bool:
    """127.0.0.0/8 or ::1."""
    return raw[0] == 127 if len(raw) == 4 else raw == b"\0" * 15 + b"\1"


class AddressBook:
    """Names connections. Not thread-safe: the hub's thread owns it.

    Args:
        exclude_namespaces, exclude_clusters: processes there are not watched (exact names).
        local_addresses: addresses of this host, packed; by default those of its interfaces, looked up now and then.
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
        self._ends = Ends()
        self._local_addresses = local_addresses or _CachedInterfaces()

    def sizes(self) -> dict[str, int]:
        """Entries by kind."""
        return {"processes": len(self._processes), "ends": len(self._ends), "leaving": self._ends.leaving}

    @property
    def evicted(self) -> int:
        """See `Ends.evicted`."""
        return self._ends.evicted

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

    def learn(self, facts: ConnectionFacts) -> End:
        """Notes whose a connection's local end is."""
        end = self._ends.add(facts)
        self._owner(end)
        return end

    def forget(self, facts: ConnectionFacts, now_ns: int) -> None:
        """The connection has ended. Its end is kept for a while: the other one may be late."""
        self._ends.remove(facts, now_ns)

    def translate(self, identity: int, remote: tuple[bytes, int]) -> None:
        """Notes whom a connection really goes to, or comes from, where the kernel translates addresses."""
        end = self._ends.get(identity)
        if end is not None:
            end.translated = remote

    def other_end(self, facts: ConnectionFacts) -> End | None:
        """The connection's other end, if that is known beyond doubt."""
        return self._ends.other(facts)

    def owner_of(self, end: End) -> Process | None:
        """Whose an end is, if the feed has said so."""
        return self._owner(end)

    def peer_is_ours(self, facts: ConnectionFacts) -> bool:
        """Whether the remote end is an address of this host, so that its process may be watched too."""
        return is_loopback(facts.remote) or facts.remote == facts.local or facts.remote in self._local_addresses()

    def knowledge_of_peer(self, facts: ConnectionFacts) -> str:
        """What is known of the other end, for the metric rover_peers."""
        other = self._ends.other(facts)
        if other is None:
            return "unnamed" if self.peer_is_ours(facts) else "elsewhere"
        owner = self._owner(other)
        return "named" if owner is not None and owner.entities else "not_chosen"

    def peer_is_known(self, facts: ConnectionFacts) -> bool:
        """Whether the remote end is an end we know, of a process the feed has named."""
        other = self._ends.other(facts)
        return other is not None and self._owner(other) is not None

    def resolve(self, facts: ConnectionFacts) -> ResolvedConnection:
        """Names both ends as far as they are known."""
        own = self._ends.get(facts.id)
        process = self._owner(own) if own is not None else self._processes.get(facts.pid)
        local = _endpoint(facts.local, facts.local_port, facts.pid, process)
        other = self._ends.other(facts)
        address, owner, pid = (facts.remote, facts.remote_port), None, None
        if other is not None:
            address = (other.facts.local, other.facts.local_port)
            owner, pid = self._owner(other), other.facts.pid
        elif own is not None and own.translated is not None:
            address = own.translated
        seen = None
        if address != (facts.remote, facts.remote_port):
            seen = (format_address(facts.remote), facts.remote_port)
        remote = _endpoint(*address, pid, owner, seen)
        return ResolvedConnection(facts.id, facts.pid, local, remote, _ROLES[facts.role], facts.tls)

    def _owner(self, end: End) -> Process | None:
        """The end's process as the feed describes it now; the last it said of one that is gone."""
        current = self._processes.get(end.facts.pid)
        if current is not None and (end.process is None or end.process.key == current.key):
            end.process = current
        return end.process


def _endpoint(
    address: bytes, port: int, pid: int | None, process: Process | None, seen: tuple[str, int] | None = None
) -> Endpoint:
    entity = process.entities[0] if process is not None and process.entities else None
    return Endpoint(format_address(address), port, entity, pid, seen)


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
