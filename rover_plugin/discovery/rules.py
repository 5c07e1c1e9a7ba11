# SPDX-License-Identifier: Apache-2.0
"""Rules that choose processes: `exe=/usr/sbin/nginx`, `port=8000-8999 && user=www-data`, `cmdline~=--role[ =]api`."""

from __future__ import annotations

import pwd
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from rover_plugin.discovery.naming import file_name
from rover_plugin.discovery.procfs import ProcessFacts
from rover_plugin.errors import SettingsError

ACCEPTED_FORMS = (
    "exe=/usr/sbin/nginx (or exe=nginx), cmdline=exact command line, port=80, port=8000-8999, user=www-data, "
    "cgroup=/system.slice (and below), unit=nginx.service, container=name or id; KEY~=regular expression for every key "
    "but port; several conditions joined with ' && '"
)
_CONDITION = re.compile(r"\s*([a-z]+)\s*(~?=)\s*(.*?)\s*", re.DOTALL)
_AND = " && "
_NAMES = "->"

# Facts that change while a process runs: they are looked at again from time to time, and only if a rule asks.
VOLATILE_KEYS = frozenset({"port", "user", "cgroup", "unit", "container"})

# Those of them that a program gets by what it does; it is born with the others.
ACQUIRED_KEYS = frozenset({"port", "user"})

Predicate = Callable[[ProcessFacts], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions that must all hold.

    Attributes:
        text: as it was written.
        keys: which facts it looks at.
        executable: name of the only program's file, without its folder, that it can match; empty for any.
        by_name: that name alone makes it match.
    """

    text: str
    keys: frozenset[str]
    conditions: tuple[Predicate, ...]
    executable: str = ""
    by_name: bool = False

    def matches(self, facts: ProcessFacts) -> bool:
        """Whether every condition holds for this process."""
        return all(condition(facts) for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class ServiceRule:
    """Gives the processes a rule chooses the name of a service."""

    rule: Rule
    service: str


def parse_rules(key: str, texts: Iterable[str]) -> tuple[Rule, ...]:
    """Parses the rules of the setting `key`.

    Raises:
        SettingsError: a rule is not of one of the accepted forms; the message repeats the rule.
    """
    return tuple(parse_rule(key, text) for text in texts)


def parse_rule(key: str, text: str) -> Rule:
    """Parses one rule, see `parse_rules`."""
    parts = text.split(_AND)
    parsed = [_parse_condition(key, text, part) for part in parts]
    keys = frozenset(name for name, _ in parsed)
    conditions = [condition for _, condition in parsed]
    if "unit" in keys and "container" not in keys:  # a container's nginx.service is another than the host's
        conditions.append(_on_host)
    paths = [path for part in parts if (path := _exact_executable(part))]
    return Rule(
        text,
        keys,
        tuple(conditions),
        executable=file_name(paths[0]) if paths else "",
        by_name=len(parts) == 1 and bool(paths) and "/" not in paths[0],
    )


def _on_host(facts: ProcessFacts) -> bool:
    return facts.container is None


def _exact_executable(part: str) -> str:
    match = _CONDITION.fullmatch(part)
    return match[3] if match is not None and match.group(1, 2) == ("exe", "=") else ""


def parse_service_rules(key: str, texts: Iterable[str]) -> tuple[ServiceRule, ...]:
    """Parses `RULE -> SERVICE`, see `parse_rules`."""
    return tuple(_parse_service_rule(key, text) for text in texts)


def _parse_service_rule(key: str, text: str) -> ServiceRule:
    rule, arrow, service = text.rpartition(_NAMES)
    if not arrow or not service.strip():
        message = f"{key}: service rule {text!r} names no service"
        raise SettingsError(message, hint=f"write RULE {_NAMES} SERVICE, where RULE is: {ACCEPTED_FORMS}", key=key)
    return ServiceRule(parse_rule(key, rule), service.strip())


def _parse_condition(key: str, text: str, part: str) -> tuple[str, Predicate]:
    match = _CONDITION.fullmatch(part)
    if match is None or not match.group(3):
        raise _bad_rule(key, text, f"{part.strip()!r} is not KEY=VALUE or KEY~=REGEX")
    name, operator, value = match.groups()
    if operator == "~=":
        if name not in _TEXTS:
            known = ", ".join(sorted(_TEXTS))
            raise _bad_rule(key, text, f"{name!r} takes no regular expression, only {known} do")
        try:
            return name, _search(_TEXTS[name], re.compile(value))
        except re.error as error:
            raise _bad_rule(key, text, f"{value!r} is not a regular expression ({error})") from error
    if name not in _EQUALS:
        raise _bad_rule(key, text, f"{name!r} is none of {', '.join(sorted(_EQUALS))}")
    try:
        return name, _EQUALS[name](value)
    except ValueError as error:
        raise _bad_rule(key, text, str(error)) from error


def _bad_rule(key: str, text: str, reason: str) -> SettingsError:
    return SettingsError(f"{key}: bad rule {text!r}: {reason}", hint=f"use {ACCEPTED_FORMS}", key=key, rule=text)


@lru_cache(maxsize=1024)
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _container_text(facts: ProcessFacts) -> str:
    return facts.container.service if facts.container else ""


_TEXTS: dict[str, Callable[[ProcessFacts], str]] = {
    "exe": lambda facts: facts.exe,
    "cmdline": lambda facts: " ".join(facts.cmdline),
    "user": lambda facts: _user_name(facts.uid),
    "cgroup": lambda facts: facts.cgroup.path,
    "unit": lambda facts: facts.cgroup.unit,
    "container": _container_text,
}


def _search(text: Callable[[ProcessFacts], str], pattern: re.Pattern[str]) -> Predicate:
    return lambda facts: pattern.search(text(facts)) is not None


def _exe(value: str) -> Predicate:
    if "/" in value:
        return lambda facts: facts.exe == value
    return lambda facts: file_name(facts.exe) == value


def _cmdline(value: str) -> Predicate:
    return lambda facts: " ".join(facts.cmdline) == value


def _port(value: str) -> Predicate:
    first, dash, last = value.partition("-")
    try:
        low, high = int(first), int(last if dash else first)
    except ValueError:
        low = high = -1
    if not 1 <= low <= high <= 65535:
        message = f"{value!r} is neither a port nor a range of ports within 1-65535"
        raise ValueError(message)
    return lambda facts: any(low <= port <= high for port in facts.ports)


def _user(value: str) -> Predicate:
    return lambda facts: value in {_user_name(facts.uid), str(facts.uid)}


def _cgroup(value: str) -> Predicate:
    path = "/" + value.strip("/")
    below = path if path == "/" else path + "/"
    return lambda facts: facts.cgroup.path == path or facts.cgroup.path.startswith(below)


def _unit(value: str) -> Predicate:
    unit = value if value.endswith((".service", ".scope")) else f"{value}.service"
    return lambda facts: facts.cgroup.unit == unit


def _container(value: str) -> Predicate:
    shortest_id = 12  # what `docker ps` shows
    by_id = len(value) >= shortest_id

    def matches(facts: ProcessFacts) -> bool:
        container = facts.container
        if container is None:
            return False
        return value in {container.shown, container.service} or (by_id and container.id.startswith(value))

    return matches


_EQUALS: dict[str, Callable[[str], Predicate]] = {
    "exe": _exe,
    "cmdline": _cmdline,
    "port": _port,
    "user": _user,
    "cgroup": _cgroup,
    "unit": _unit,
    "container": _container,
}
