# SPDX-License-Identifier: Apache-2.0
"""A process and the entities it stands for (design §4, "Process feed")."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Entity:
    """What the backend knows a process as. `layer` is an OAP layer name such as OS_LINUX or K8S_SERVICE."""

    layer: str
    service: str
    instance: str
    process: str
    labels: tuple[str, ...] = ()
    cluster: str = ""
    namespace: str = ""
    pod: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class ProcessKey:
    """Identity of a process: the pid alone is reused. `start_time` is in clock ticks since boot (proc(5), field 22)."""

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the feed. No entities means: known, not to be watched.

    `exited`: gone, but listed for a while longer so that what it left behind can still be named. `decided`: its
    entities stay what they are until it executes another program; else what it does may change them, such as to listen.
    """

    key: ProcessKey
    exe: str = ""
    cmdline: tuple[str, ...] = ()
    pid_namespace: int = 0
    cgroup_id: int = 0
    container_id: str = ""
    entities: tuple[Entity, ...] = field(default=())
    exited: bool = False
    decided: bool = False


@dataclass(frozen=True, slots=True)
class Executables:
    """Which programs may get entities at all, by the names of their files without folders.

    Attributes:
        only: these and no others; None for any.
        never: not these.
    """

    only: frozenset[str] | None = None
    never: frozenset[str] = frozenset()
