# SPDX-License-Identifier: Apache-2.0
"""A parcel: some dozens of framed messages for the backend that are sent, kept, or lost together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rover_plugin.telemetry.ledger import Logs

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(slots=True)
class Parcel:
    """Framed messages (`grpc_over_h2.frame_message`), one after another.

    Attributes:
        boot_seconds: the clock base that the times in it count from, where it is not this boot's (`ClockBase`); else 0.
    """

    body: bytearray = field(default_factory=bytearray)
    messages: int = 0
    kernel_logs: int = 0
    protocol_logs: int = 0
    boot_seconds: int = 0


def logs_in(parcels: Iterable[Parcel]) -> Logs:
    """How many logs some parcels hold."""
    kernel = protocol = 0
    for parcel in parcels:
        kernel += parcel.kernel_logs
        protocol += parcel.protocol_logs
    return Logs(kernel, protocol)
