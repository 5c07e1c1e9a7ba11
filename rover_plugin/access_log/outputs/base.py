# SPDX-License-Identifier: Apache-2.0
"""What an output is (design §4, "Outputs").

The work is split in two so that it can run where it is cheapest. In the worker process an *encoder* turns an exchange
or stand-alone calls into a fragment of bytes. In the main process an *output* turns the resolved connection into a
prefix of bytes once, and every message is `prefix + fragment`: for protobuf because concatenated fields merge, for
JSON because the prefix is the opening of an object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.telemetry.ledger import Standing


class Output(Protocol):
    """Where finished messages go. Called from one thread only, except `shutdown`'s flush."""

    name: str  # as in `access_log.outputs`, and in the label `output` of what it counts
    encoding: str  # "protobuf" or "json": which encoder's fragments it takes

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        """Bytes that go before each fragment of this connection until it changes."""

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        """Takes one message; never blocks, never raises for a fault of where it goes.

        Raises:
            Exception: whatever it likes, for a message that it cannot take: the hub counts that as lost(output_failed)
                and shows it once. Nothing of such a message may have been counted.

        The two counts say how many logs are inside, for the ledger: the output reports every log it was given exactly
        once as exported or lost(reason) through the counters `logs_exported` / `logs_lost` (labels: output, unit =
        kernel | protocol, reason).
        """

    def standing(self) -> Standing:
        """What became of the logs it was given, and what it holds, all at the same moment."""

    def tick(self) -> None:
        """Called at least every 100 ms; flushes by time."""

    def close(self, deadline_s: float) -> None:
        """Flushes what it holds within `deadline_s` seconds, counts the rest as lost(shutdown), frees resources."""
