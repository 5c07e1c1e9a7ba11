# SPDX-License-Identifier: Apache-2.0
"""The local finder: which processes of this host are watched, and what they are called."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rover_plugin.discovery.layers import checked_layer
from rover_plugin.discovery.model import Entity, Executables
from rover_plugin.discovery.naming import bounded, executable_name, service_name
from rover_plugin.discovery.rules import VOLATILE_KEYS, Rule, ServiceRule, parse_rules, parse_service_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.discovery.procfs import ProcessFacts
    from rover_plugin.settings import Settings

_PREFIX = "process_discovery.local"


class Finder(Protocol):
    """Names processes. Several may stand side by side; a process has the entities of all of them."""

    @property
    def fact_keys(self) -> frozenset[str]:
        """Which facts, as rules name them, its answer depends on."""

    @property
    def executables(self) -> Executables:
        """Which programs it may ever choose."""

    def entities(self, facts: ProcessFacts) -> tuple[Entity, ...]:
        """What this process is known as; nothing if it is not to be watched for this finder's sake."""


@dataclass(frozen=True)
class LocalFinder:
    """Chooses by rules; without any it takes every process.

    The instance is the host's name, which outlives restarts of the process (oap-contract §C); the process is the name
    of the executable, so that the workers of a server are one.

    Attributes:
        include: a process must match one of these, if there are any.
        exclude: and none of these.
        service_rules: the first that matches names the service.
        cluster: goes before the service name as `cluster::`, where the backend expects it.
    """

    layer: str
    instance: str
    include: tuple[Rule, ...] = ()
    exclude: tuple[Rule, ...] = ()
    service_rules: tuple[ServiceRule, ...] = ()
    cluster: str = ""

    @property
    def fact_keys(self) -> frozenset[str]:
        """Facts any of the rules looks at."""
        rules = (*self.include, *self.exclude, *(named.rule for named in self.service_rules))
        return frozenset().union(*(rule.keys for rule in rules))

    @property
    def executables(self) -> Executables:
        """What the rules with `exe=` leave."""
        names = {rule.executable for rule in self.include}
        return Executables(
            frozenset(names) if names and "" not in names else None,
            frozenset(rule.executable for rule in self.exclude if rule.by_name),
        )

    def entities(self, facts: ProcessFacts) -> tuple[Entity, ...]:
        """One entity, or none if the rules leave the process out."""
        if self.include and not any(rule.matches(facts) for rule in self.include):
            return ()
        if any(rule.matches(facts) for rule in self.exclude):
            return ()
        container = facts.container
        return (
            Entity(
                layer=self.layer,
                service=bounded(self._qualified(self._service(facts))),
                instance=bounded(self.instance),
                process=bounded(executable_name(facts)),
                cluster=self.cluster,
                namespace=container.namespace if container else "",
                pod=container.pod if container else "",
                container=container.shown if container else "",
            ),
        )

    def _service(self, facts: ProcessFacts) -> str:
        named = next((named.service for named in self.service_rules if named.rule.matches(facts)), None)
        return named or service_name(facts)

    def _qualified(self, service: str) -> str:
        return f"{self.cluster}::{service}" if self.cluster and "::" not in service else service


def is_volatile(finder: Finder) -> bool:
    """Whether its answer may change while a process just runs on."""
    return bool(finder.fact_keys & VOLATILE_KEYS)


def local_finder(settings: Settings, cluster: str, hostname: Callable[[], str] = socket.gethostname) -> LocalFinder:
    """The finder the settings `process_discovery.local.*` describe.

    Raises:
        SettingsError: a rule or the layer is not one.
    """
    return LocalFinder(
        layer=checked_layer(f"{_PREFIX}.layer", settings.text(f"{_PREFIX}.layer")),
        instance=hostname(),
        include=parse_rules(f"{_PREFIX}.include", settings.items(f"{_PREFIX}.include")),
        exclude=parse_rules(f"{_PREFIX}.exclude", settings.items(f"{_PREFIX}.exclude")),
        service_rules=parse_service_rules(f"{_PREFIX}.service_rules", settings.items(f"{_PREFIX}.service_rules")),
        cluster=cluster,
    )
