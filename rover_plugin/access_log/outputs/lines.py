# SPDX-License-Identifier: Apache-2.0
"""The connection as the beginning of a JSON object; every `json` fragment completes it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from rover_plugin.access_log.model import Role

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Endpoint, ResolvedConnection
    from rover_plugin.discovery.model import Entity


def opening(connection: ResolvedConnection) -> bytes:
    """`{"connection":…,"role":…,"local":{…},"remote":{…},` without an end."""
    # Written out, not by `json.dumps`: once a connection end or more, and only the names need quoting.
    return (
        f'{{"connection":{connection.id},"role":"{connection.role}",'
        f'"tls":{"true" if connection.tls else "false"},'
        f'"local":{_end(connection.local)},"remote":{_end(connection.remote, connection.role)},'
    ).encode()


def _end(endpoint: Endpoint, role: Role = Role.UNKNOWN) -> str:
    entity, pid = endpoint.entity, endpoint.pid
    names = _names(entity) if entity is not None else ""
    owner = f',"pid":{pid}' if pid is not None else ""
    return f'{{"address":"{endpoint.host}","port":{endpoint.port}{names}{owner}{_seen(endpoint, role)}}}'


def _seen(endpoint: Endpoint, role: Role) -> str:
    """What this end's socket has instead of the real address: what a client dialled, what a server sees."""
    if endpoint.seen is None:
        return ""
    name = "seen" if role is Role.SERVER else "dialled"
    return f',"{name}":{{"address":"{endpoint.seen[0]}","port":{endpoint.seen[1]}}}'


@lru_cache(maxsize=4096)
def _names(entity: Entity) -> str:
    names = {"service": entity.service, "process": entity.process}
    if entity.pod:
        names["pod"] = entity.pod
    return "," + json.dumps(names, separators=(",", ":"))[1:-1]
