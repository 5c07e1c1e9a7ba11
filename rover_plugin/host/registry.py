# SPDX-License-Identifier: Apache-2.0
"""Which modules there are, and which of them run in what order (design §4, "Module").

The host knows no module by import: they register under the entry point group `rover.modules`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from rover_plugin.errors import ModuleError, NothingActiveError, RoverError, UnknownModuleError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

    from rover_plugin.host.module import Module
    from rover_plugin.settings import Settings

GROUP = "rover.modules"

Factories = Mapping[str, Callable[[], "Module"]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command line asks for.

    Attributes:
        loaded: the named modules and all they require, each after what it requires.
        started: those of them that are active or required by an active one, in the same order.
    """

    loaded: tuple[Module, ...]
    started: tuple[Module, ...]


def registered() -> Factories:
    """Returns the registered modules by name, none of them imported yet.

    Raises:
        ModuleError: two packages register different modules under one name.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            message = f"module {point.name} is registered twice, as {other.value} and as {point.value}"
            raise ModuleError(message, hint="uninstall one of the two packages", module=point.name)
    return {name: _factory(point) for name, point in points.items()}


def plan(names: Iterable[str], settings: Settings, factories: Factories) -> Plan:
    """Loads the modules `names` with all they require and decides what is started.

    Raises:
        UnknownModuleError: a name that no package registers.
        ModuleError: a module cannot be loaded, or modules require each other in a circle.
        NothingActiveError: none of `names` is active.
    """
    names = list(names)
    loaded: dict[str, Module] = {}
    for name in names:
        _load(name, factories, loaded, ())
    active = [name for name in names if loaded[name].active(settings)]
    if not active:
        msg = f"no module is active: {', '.join(names)}"
        raise NothingActiveError(
            msg,
            hint="; ".join(_how_to_activate(name, settings) for name in names),
            modules=names,
        )
    needed = _closure(active, loaded)
    return Plan(tuple(loaded.values()), tuple(module for name, module in loaded.items() if name in needed))


def describe(settings: Settings, factories: Factories) -> list[tuple[str, str, str]]:
    """Returns name, state (`active`, `inactive`, `broken`) and what it requires, or what is wrong, of each module."""
    rows = []
    for name in sorted(factories):
        try:
            module = _make(name, factories, ())
        except RoverError as error:
            rows.append((name, "broken", error.message))
        else:
            state = "active" if module.active(settings) else "inactive"
            rows.append((name, state, f"requires {', '.join(module.requires)}" if module.requires else ""))
    return rows


def _factory(point: EntryPoint) -> Callable[[], Module]:
    def make() -> Module:
        module: Module = point.load()()
        return module

    return make


def _load(name: str, factories: Factories, loaded: dict[str, Module], path: tuple[str, ...]) -> None:
    """Adds `name` to `loaded` after everything it requires; `path` are the modules that led here."""
    if name in path:
        message = f"modules require each other in a circle: {' → '.join([*path[path.index(name) :], name])}"
        raise ModuleError(message, hint="remove one of them from --modules or fix its `requires`", module=name)
    if name in loaded:
        return
    module = _make(name, factories, path)
    for required in module.requires:
        _load(required, factories, loaded, (*path, name))
    loaded[name] = module


def _make(name: str, factories: Factories, path: tuple[str, ...]) -> Module:
    if name not in factories:
        near = difflib.get_close_matches(name, factories, n=1)
        asked = f", required by {path[-1]}" if path else ""
        hint = f"did you mean {near[0]}?" if near else f"registered are {', '.join(sorted(factories)) or 'none'}"
        msg = f"unknown module {name}{asked}"
        raise UnknownModuleError(msg, hint=hint, module=name)
    try:
        return factories[name]()
    except RoverError:
        raise
    except Exception as error:
        message = f"module {name} cannot be loaded: {type(error).__name__}: {error}"
        raise ModuleError(message, hint="install its package again", module=name) from error


def _closure(names: Iterable[str], loaded: Mapping[str, Module]) -> set[str]:
    """Returns `names` with all they require, directly or not."""
    needed: set[str] = set()
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name not in needed:
            needed.add(name)
            open_names += loaded[name].requires
    return needed


def _how_to_activate(name: str, settings: Settings) -> str:
    key = settings.schema.find(f"{name}.active")
    if key is None:
        return f"{name} decides by itself, see its documentation"
    return f"set {key.name} = true in a --config file, {key.variable}=true, or --set {key.name}=true"
