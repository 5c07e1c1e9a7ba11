# SPDX-License-Identifier: Apache-2.0
"""Module `core`: the way to the SkyWalking OAP, and who this agent is.

Nothing is connected before somebody asks: a host that prints to the console needs no backend.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from rover_plugin.backend.caller import Caller
from rover_plugin.backend.dialer import AddressList, Dialer
from rover_plugin.backend.health import Health, HealthBoard, LinkState
from rover_plugin.backend.node import NodeIdentity, read_node
from rover_plugin.backend.security import Security
from rover_plugin.errors import ModuleError
from rover_plugin.telemetry.metrics import Sample

if TYPE_CHECKING:
    from rover_plugin.host.module import Context
    from rover_plugin.settings import Settings


class CoreModule:
    """The backend, as other modules use it.

    Attributes:
        instance_id: this run of the agent, 32 hex digits.
        cluster_name: `core.cluster_name`, may be empty.
        node_name: `process_discovery.kubernetes.node_name`, or the host name.
    """

    name = "core"
    requires: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.instance_id = uuid.uuid4().hex
        self.cluster_name = ""
        self.node_name = ""
        self._health = HealthBoard()
        self._dialer: Dialer | None = None
        self._callers: list[Caller] = []

    def active(self, settings: Settings) -> bool:  # noqa: ARG002 the contract's signature
        """False: it has no purpose of its own, it is started for those who require it."""
        return False

    def start(self, context: Context) -> None:
        """Reads `core.*`.

        Raises:
            BackendError: no address, or a certificate or key cannot be used.
        """
        settings = context.settings
        security = Security.from_settings(settings)
        addresses = AddressList(settings.items("core.backend.addr"))
        self.cluster_name = settings.text("core.cluster_name")
        self.node_name = read_node(settings.text("process_discovery.kubernetes.node_name"), "").name
        self._dialer = Dialer(addresses, security)
        context.telemetry.register(self._samples)

    def notify_start_success(self) -> None:
        """Nothing waits for the others."""

    def shutdown(self) -> None:
        """Closes every connection."""
        for caller in self._callers:
            caller.not_after = 0.0
            caller.close()

    @property
    def health(self) -> Health:
        """Whether the backend can be reached; IDLE while nobody has tried."""
        return self._health.current()

    def unhealthy(self) -> str:
        """Why nothing can be sent, or an empty string."""
        health = self.health
        if health.state is LinkState.CONNECTED:
            return ""
        return f"{health.state.value} {health.address}: {health.reason}".rstrip(": ")

    def _samples(self) -> list[Sample]:
        now = self.health.state
        return [Sample("rover_backend_state", state is now, (state.value,)) for state in LinkState]

    def node(self) -> NodeIdentity:
        """This host, its interfaces read anew."""
        return read_node(self.node_name, self.cluster_name)

    def open_caller(self, transport: str) -> Caller:
        """A way to make calls, under its name in health and events.

        Nothing is connected yet. Each caller has a connection of its own and belongs to one thread.
        """
        if self._dialer is None:
            raise _not_started()
        caller = Caller(self._dialer, self._health, transport)
        self._callers.append(caller)
        return caller


def _not_started() -> ModuleError:
    return ModuleError("the module core is not started", hint="let your module require it")
