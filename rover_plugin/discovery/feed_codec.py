# SPDX-License-Identifier: Apache-2.0
"""Processes and changes as messages of protos/rover/feed.proto, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rover_plugin._generated.rover import feed_pb2
from rover_plugin.discovery.model import Entity, Executables, Process, ProcessKey
from rover_plugin.discovery.table import Added, Change, Removed, Updated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def encode_process(process: Process) -> feed_pb2.Process:
    """A process as a message."""
    return feed_pb2.Process(
        key=_encode_key(process.key),
        exe=text(process.exe),
        cmdline=map(text, process.cmdline),
        pid_namespace=process.pid_namespace,
        cgroup_id=process.cgroup_id,
        container_id=process.container_id,
        entities=map(_encode_entity, process.entities),
        exited=process.exited,
        decided=process.decided,
    )


def decode_process(message: feed_pb2.Process) -> Process:
    """A process out of a message."""
    return Process(
        key=_decode_key(message.key),
        exe=message.exe,
        cmdline=tuple(message.cmdline),
        pid_namespace=message.pid_namespace,
        cgroup_id=message.cgroup_id,
        container_id=message.container_id,
        entities=tuple(map(_decode_entity, message.entities)),
        exited=message.exited,
        decided=message.decided,
    )


def encode_executables(executables: Executables) -> feed_pb2.Executables:
    """What rules may choose, as a message."""
    return feed_pb2.Executables(
        limited=executables.only is not None, only=sorted(executables.only or ()), never=sorted(executables.never)
    )


def decode_executables(message: feed_pb2.Executables) -> Executables:
    """What rules may choose, out of a message."""
    return Executables(frozenset(message.only) if message.limited else None, frozenset(message.never))


def encode_changes(changes: Iterable[Change]) -> feed_pb2.Changes:
    """Changes as a message, in their order."""
    return feed_pb2.Changes(changes=map(_encode_change, changes))


def decode_changes(message: feed_pb2.Changes) -> Iterator[Change]:
    """Changes out of a message; kinds this version does not know are left out."""
    for change in message.changes:
        match change.WhichOneof("change"):
            case "added":
                yield Added(decode_process(change.added))
            case "updated":
                yield Updated(decode_process(change.updated))
            case "removed":
                yield Removed(_decode_key(change.removed))


def _encode_change(change: Change) -> feed_pb2.Change:
    match change:
        case Added(process):
            return feed_pb2.Change(added=encode_process(process))
        case Updated(process):
            return feed_pb2.Change(updated=encode_process(process))
        case Removed(key):
            return feed_pb2.Change(removed=_encode_key(key))


def _encode_key(key: ProcessKey) -> feed_pb2.ProcessKey:
    return feed_pb2.ProcessKey(pid=key.pid, start_time=key.start_time)


def _decode_key(message: feed_pb2.ProcessKey) -> ProcessKey:
    return ProcessKey(message.pid, message.start_time)


def _encode_entity(entity: Entity) -> feed_pb2.Entity:
    return feed_pb2.Entity(
        layer=entity.layer,
        service=text(entity.service),
        instance=text(entity.instance),
        process=text(entity.process),
        labels=entity.labels,
        cluster=entity.cluster,
        namespace=entity.namespace,
        pod=entity.pod,
        container=entity.container,
    )


def _decode_entity(message: feed_pb2.Entity) -> Entity:
    return Entity(
        layer=message.layer,
        service=message.service,
        instance=message.instance,
        process=message.process,
        labels=tuple(message.labels),
        cluster=message.cluster,
        namespace=message.namespace,
        pod=message.pod,
        container=message.container,
    )


def text(path: str) -> str:
    """As the feed has it: names may be any bytes, which Python keeps as lone surrogates, and protobuf wants UTF-8."""
    return path if path.isascii() else path.encode(errors="replace").decode()
