# SPDX-License-Identifier: Apache-2.0
"""Starts modules, waits, and shuts them down in reverse order, whatever happens (design §4, "Module")."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from rover_plugin.cancellation import Cancellation
from rover_plugin.errors import CancelledError, ModuleError, RoverError
from rover_plugin.host.module import Context
from rover_plugin.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rover_plugin.host.module import Module
    from rover_plugin.settings import Settings

log = structlog.get_logger()


class Stop:
    """The wish that the host stops; may be expressed from any thread. The first error given is kept.

    Attributes:
        error: why, if something failed.
        starting: what modules wait for while they start; the wish cancels it.
    """

    def __init__(self) -> None:
        self.starting = Cancellation()
        self._wished = threading.Event()
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def request(self) -> None:
        """Asks for an orderly end."""
        self._wished.set()
        self.starting.cancel()

    def fail(self, error: BaseException) -> None:
        """Asks for an end because of `error`."""
        with self._lock:
            self.error = self.error or error
        self.request()

    def requested(self) -> bool:
        """Whether anybody asked."""
        return self._wished.is_set()

    def wait(self) -> None:
        """Blocks until somebody asks."""
        self._wished.wait()


def run(modules: Sequence[Module], settings: Settings, stop: Stop) -> None:
    """Runs `modules`, given in dependency order, until `stop`.

    Those that started are shut down in reverse order, also when a later one fails to start or `stop` comes early.
    What goes wrong in a shutdown is a warning: the others are shut down all the same.

    Raises:
        ModuleError: the first failure, be it of telemetry, a start or later, after all modules are shut down.
    """
    started: list[Module] = []
    names = [module.name for module in modules]
    log.info("rover_starting", modules=names)
    begin = time.monotonic()
    telemetry = Telemetry()
    with _served(telemetry, settings):
        try:
            if _start(modules, started, settings, stop, telemetry):
                telemetry.phase = ""
                log.info("rover_started", modules=names, seconds=round(time.monotonic() - begin, 3))
                stop.wait()
        finally:
            telemetry.phase = "stopping"
            for module in reversed(started):
                _shutdown(module)
            log.info("rover_stopped")
    if stop.error is not None:
        what = "a module failed"
        raise _failure(what, stop.error, settings) from stop.error


@contextmanager
def _served(telemetry: Telemetry, settings: Settings) -> Iterator[None]:
    listen = settings.text("telemetry.listen")
    if not listen:
        yield
        return
    from rover_plugin.telemetry.server import TelemetryServer  # noqa: PLC0415 costs memory, and is off by default

    with closing(TelemetryServer(listen, telemetry)):
        yield


def _start(
    modules: Sequence[Module], started: list[Module], settings: Settings, stop: Stop, telemetry: Telemetry
) -> bool:
    """Starts and notifies `modules`, adding each to `started`; returns whether it came to the end before `stop`."""
    by_name: dict[str, Module] = {}
    context = Context(
        settings,
        telemetry.counters,
        MappingProxyType(by_name),
        stop.fail,
        telemetry,
        stop.starting,
        stop.request,
    )
    for module in modules:
        if stop.requested():
            return False
        try:
            module.start(context)
        except CancelledError:
            return False
        except Exception as error:
            what = f"module {module.name} could not start"
            raise _failure(what, error, settings) from error
        started.append(module)
        by_name[module.name] = module
    for module in modules:
        try:
            module.notify_start_success()
        except Exception as error:
            what = f"module {module.name} failed after its start"
            raise _failure(what, error, settings) from error
    return True


def _failure(what: str, error: BaseException, settings: Settings) -> ModuleError:
    """Wraps `error` in one line that keeps its hint, and says where a setting that a module refuses was set."""
    if not isinstance(error, RoverError):
        return ModuleError(f"{what}: {type(error).__name__}: {error}", hint="logger.level = DEBUG shows where")
    key = error.context.get("key")
    where = f" (set by {settings.origin(key)})" if isinstance(key, str) and key in settings.schema.keys else ""
    return ModuleError(f"{what}: {error.message}{where}", hint=error.hint)


def _shutdown(module: Module) -> None:
    try:
        module.shutdown()
    except Exception as error:  # one module's bad end must not keep the others from flushing
        trace = log.is_enabled_for(logging.DEBUG)
        log.warning("module_shutdown_failed", module=module.name, error=str(error), exc_info=trace)
