# SPDX-License-Identifier: Apache-2.0
"""Whether the backend can be reached, and if not, why."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_REPEAT_S: Final = 60.0

# Statuses that no waiting heals: a person has to change a token, a certificate or the OAP.
HINTS: Final = {
    "PERMISSION_DENIED": "set core.backend.authentication (ROVER_BACKEND_AUTHENTICATION) as SW_AUTHENTICATION is there",
    "UNAUTHENTICATED": "check core.backend.enable_TLS, ca_pem_path, client_pem_path and client_key_path",
    "UNIMPLEMENTED": "the OAP must be 10.0 or newer with receiver-ebpf on, and core.backend.addr its gRPC port",
}


class LinkState(StrEnum):
    """State of the link to the backend."""

    IDLE = "idle"  # nobody has asked for it yet
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True, slots=True)
class Health:
    """One moment of it; `since` is time.monotonic(), `reason` the last error while disconnected."""

    state: LinkState = LinkState.IDLE
    address: str = ""
    reason: str = ""
    since: float = 0.0


_WORST_FIRST: Final = (LinkState.DISCONNECTED, LinkState.CONNECTING, LinkState.CONNECTED, LinkState.IDLE)


class HealthBoard:
    """Where the transports (`access_log`, `reports`) note their state; thread-safe. Changes are logged once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: dict[str, Health] = {}
        self._logged_at: dict[str, float] = {}

    def current(self) -> Health:
        """The worst of all transports in use."""
        with self._lock:
            return min(self._links.values(), key=lambda link: _WORST_FIRST.index(link.state), default=Health())

    def connecting(self, transport: str, address: str) -> None:
        """A first connection is being made; a lost one stays disconnected until it is back."""
        with self._lock:
            known = self._links.get(transport)
            if known is None or known.state is LinkState.IDLE:
                self._links[transport] = Health(LinkState.CONNECTING, address, since=time.monotonic())

    def connected(self, transport: str, address: str) -> None:
        """The transport works."""
        if self._change(transport, Health(LinkState.CONNECTED, address)):
            log.info("backend_connected", transport=transport, address=address)

    def disconnected(self, transport: str, address: str, status: str, reason: str, hint: str = "") -> None:
        """The transport failed. Logged when the status changes and each minute; an error if waiting cannot heal it."""
        words = f"{status}: {reason}" if reason else status
        changed = self._change(transport, Health(LinkState.DISCONNECTED, address, words))
        now = time.monotonic()
        if changed or now - self._logged_at.get(transport, 0.0) >= _REPEAT_S:
            self._logged_at[transport] = now
            facts = {"transport": transport, "address": address, "reason": words}
            if status in HINTS:
                log.error("backend_refuses", **facts, hint=hint or HINTS[status])
            else:
                log.warning("backend_disconnected", **facts, **({"hint": hint} if hint else {}))

    def _change(self, transport: str, health: Health) -> bool:
        with self._lock:
            known = self._links.get(transport, Health())
            same_state = known.state is health.state and known.address == health.address
            same = same_state and known.reason.partition(":")[0] == health.reason.partition(":")[0]
            since = known.since if same else time.monotonic()
            self._links[transport] = Health(health.state, health.address, health.reason, since)
            return not same
