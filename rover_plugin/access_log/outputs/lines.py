# SPDX-License-Identifier: Apache-2.0
"""The connection as the beginning of a JSON object; every `json` fragment completes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Endpoint, ResolvedConnection


def _end(endpoint: Endpoint) -> dict[str, Any]:
    result: dict[str, Any] = {"address": endpoint.host, "port": endpoint.port}
    if endpoint.entity is not None:
        result["service"] = endpoint.entity.service
        result["process"] = endpoint.entity.process
        if endpoint.entity.pod:
            result["pod"] = endpoint.entity.pod
    if endpoint.pid is not None:
        result["pid"] = endpoint.pid
    return result


def opening(connection: ResolvedConnection) -> bytes:
    """`{"connection":…,"role":…,"local":{…},"remote":{…},` without an end."""
    head = {
        "connection": connection.id,
        "role": connection.role.value,
        "protocol": connection.protocol.value,
        "tls": connection.tls,
        "local": _end(connection.local),
        "remote": _end(connection.remote),
    }
    return json.dumps(head, separators=(",", ":"))[:-1].encode() + b","


def printable(text: str) -> str:
    """The same text with nothing in it that steers a terminal: it may come from the network."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
