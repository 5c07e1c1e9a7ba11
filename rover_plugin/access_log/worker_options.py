# SPDX-License-Identifier: Apache-2.0
"""What a worker process is told by the main process; light, since both import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

READY: Final = b"\1"
"""What the main process sends along with the descriptors, and is sent back by a worker that reads."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told.

    Attributes:
        encodings: which fragments to make, in the order of their index on the link.
        queue_size: log messages that may wait for the main process.
        max_connections: of this shard; max_bytes: their memory, see `account`.
        exchange_timeout_s: a request unanswered for so long is let go.
        open_report_s: a stream that stays open is reported each time this has passed.
        grpc_status_as_http: see `ProtobufEncoder`.
        record: repeat to the main process what is read, see `tap`.
        confine: give up what parsing does not need, see `capture.confinement`.
    """

    shard: int
    encodings: tuple[str, ...]
    queue_size: int
    max_connections: int
    exchange_timeout_s: float
    grpc_status_as_http: bool
    path_templates: bool = False
    open_report_s: float = 60.0
    max_bytes: int = 1 << 60
    record: bool = False
    confine: bool = False
