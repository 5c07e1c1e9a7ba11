# SPDX-License-Identifier: Apache-2.0
"""What a module is: the contract between the host and everything it runs (design §4, "Module")."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rover_plugin.cancellation import Cancellation
from rover_plugin.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rover_plugin.settings import Settings
    from rover_plugin.telemetry.counters import Counters


@dataclass(frozen=True, slots=True)
class Context:
    """Everything the host gives a module when it starts.

    Attributes:
        settings: the effective configuration, validated.
        counters: the process-wide counters; modules add to them, telemetry exports them.
        modules: the modules started before this one, by name (at least those it `requires`).
        fail: call it from any thread to stop the whole host with an error, as if a start had failed.
        telemetry: where modules register gauges and health checks.
        starting: cancelled when the host is to stop; to be given to whatever a start waits for.
        stop: call it from any thread to stop the whole host as a signal would.
    """

    settings: Settings
    counters: Counters
    modules: Mapping[str, Module] = field(default_factory=dict)
    fail: Callable[[BaseException], None] = lambda _: None
    telemetry: Telemetry = field(default_factory=Telemetry)
    starting: Cancellation = field(default_factory=Cancellation)
    stop: Callable[[], None] = lambda: None


class Module(Protocol):
    """A part of the agent with a life of its own. Registered under the entry point group `rover.modules`.

    The entry point names a class (or factory) that is called without arguments.
    """

    name: str
    requires: tuple[str, ...]

    def active(self, settings: Settings) -> bool:
        """Whether the configuration asks for this module; a required module is started all the same."""

    def start(self, context: Context) -> None:
        """Starts the module; called once, in dependency order.

        Raises:
            RoverError: it cannot start (CancelledError: it was not to any more). Nothing of it is left then.
        """

    def notify_start_success(self) -> None:
        """Called after every module has started, in start order."""

    def shutdown(self) -> None:
        """Flushes and stops; called once, in reverse start order, also after a failed start of a later one."""


def module_as(module: Module | None, kind: type[Any]) -> Any:
    """Returns `module` if it is a `kind`, else raises `TypeError`; the typed way to use another module."""
    if not isinstance(module, kind):
        message = f"expected module of {kind.__name__}, got {type(module).__name__}"
        raise TypeError(message)
    return module
