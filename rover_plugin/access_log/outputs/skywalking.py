# SPDX-License-Identifier: Apache-2.0
"""Output `skywalking`: access logs to the OAP, as oap-contract K asks for.

The hub's thread collects messages in batches, a thread of its own sends them:

    write() ─► open batch ─(full, or flush.period)─► spool ─► one call at a time ─► exported | lost(reason)

A batch is closed after `access_log.flush.max_count` logs (kernel and protocol logs together). A call carries one batch,
or as many as wait, up to some thousand messages. What becomes of a batch whose call failed:

- nothing of it had left, or the backend is known not to have begun with the call: it is sent again;
- else the OAP may have applied a part of it, and has no way to recognise a repetition: lost(send_unconfirmed).
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.access_log.outputs.skywalking_names import connection_prefix, node_field
from rover_plugin.backend.backoff import REFUSED_S, Backoff
from rover_plugin.backend.grpc_over_h2 import MESSAGE_HEAD_BYTES, frame_message, message_length
from rover_plugin.backend.health import HINTS
from rover_plugin.backend.node import ClockBase
from rover_plugin.errors import BackendError, CallError
from rover_plugin.telemetry.ledger import Logs, standing

if TYPE_CHECKING:
    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.backend.module import CoreModule
    from rover_plugin.settings import Settings
    from rover_plugin.telemetry.counters import Counters
    from rover_plugin.telemetry.ledger import Standing

log = structlog.get_logger(__name__)

METHOD: Final = "/skywalking.v3.EBPFAccessLogService/collect"
CALL_DEADLINE_S: Final = 20.0
MOST_MESSAGES_A_CALL: Final = 4000
MOST_MESSAGE_BYTES: Final = 1 << 20
_MOST_BATCH_BYTES: Final = 1 << 20
_LOSS_LOG_S: Final = 10.0
_CONNECTION_TAG: Final = 0x12  # field 2, length-delimited: how every message with a sendable connection begins
_HEAD: Final = struct.Struct(">BI")


@dataclass(slots=True)
class Batch:
    """Framed messages that live and die together."""

    body: bytearray = field(default_factory=bytearray)
    messages: int = 0
    kernel_logs: int = 0
    protocol_logs: int = 0


class SkyWalkingOutput:
    """Sends to the backend of module `core`.

    Args:
        settings: `access_log.flush.*`, `access_log.spool.max_bytes`, `process_discovery.kubernetes.active`.
        core: the backend.
        counters: gets logs_exported, logs_lost and logs_filtered.
        clock_offset_ns: nanoseconds that encoders have already added to CLOCK_MONOTONIC (see `ClockBase.for_offset`).
    """

    name = "skywalking"
    encoding = "protobuf"

    def __init__(self, settings: Settings, core: CoreModule, counters: Counters, *, clock_offset_ns: int = 0) -> None:
        self._core = core
        self._counters = counters
        self._clock_offset_ns = clock_offset_ns
        self._kubernetes = settings.flag("process_discovery.kubernetes.active")
        self._most_logs = settings.integer("access_log.flush.max_count")
        self._period_s = settings.seconds("access_log.flush.period")
        self._spool_bytes = settings.size("access_log.spool.max_bytes")
        self._most_batch_bytes = min(_MOST_BATCH_BYTES, self._spool_bytes // 4)
        self._batch = Batch()
        self._next_flush = time.monotonic() + self._period_s
        # Shared by both threads, under the condition's lock.
        self._changed = threading.Condition()
        self._spool: deque[Batch] = deque()
        self._sending: list[Batch] = []
        self._held_bytes = 0
        self._closing = False
        self._abandoned = False
        # The sender's own.
        self._bulk = core.open_bulk_stream(METHOD)
        self._backoff = Backoff()
        self._not_before = 0.0
        self._check_s = settings.seconds("core.backend.check_period")
        self._call_messages = MOST_MESSAGES_A_CALL
        self._losses: Counter[str] = Counter()
        self._losses_logged = 0.0
        self._thread = threading.Thread(target=self._run, name="skywalking-output", daemon=True)
        self._thread.start()

    # -- the hub's thread --

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        """Field 2 of EBPFAccessLogMessage; empty if the OAP would drop every log on this connection in silence."""
        return connection_prefix(
            connection, self._core.cluster_name, self._core.node_name, resolve_in_backend=self._kubernetes
        )

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        """Takes one message: prefix and fragments."""
        size = len(message)
        if not size or message[0] != _CONNECTION_TAG or size > MOST_MESSAGE_BYTES or not kernel_logs + protocol_logs:
            self._refuse(message, kernel_logs, protocol_logs)
            return
        batch = self._batch
        batch.body += _HEAD.pack(0, size)
        batch.body += message
        batch.messages += 1
        batch.kernel_logs += kernel_logs
        batch.protocol_logs += protocol_logs
        if batch.kernel_logs + batch.protocol_logs >= self._most_logs or len(batch.body) >= self._most_batch_bytes:
            self._seal()

    def spool(self) -> tuple[int, int]:
        """Bytes that wait, and room for them."""
        with self._changed:
            return self._held_bytes + len(self._batch.body), self._spool_bytes

    def standing(self) -> Standing:
        """What waits in the open batch, in the spool and for an answer is held."""
        with self._changed:
            held = [self._batch, *self._spool, *self._sending]
            logs = Logs(sum(batch.kernel_logs for batch in held), sum(batch.protocol_logs for batch in held))
            return standing(self._counters, self.name, logs)

    def tick(self) -> None:
        """Closes the open batch each flush period."""
        now = time.monotonic()
        if now >= self._next_flush:
            self._next_flush = now + self._period_s
            self._seal()

    def close(self, deadline_s: float) -> None:
        """Sends what is held; gives up at the deadline, or when the backend cannot be reached."""
        self._seal()
        with self._changed:
            self._closing = True
            self._bulk.not_after = time.monotonic() + deadline_s
            self._changed.notify()
        self._thread.join(deadline_s + 0.5)
        with self._changed:
            self._abandoned = True  # from here on the thread settles nothing, should it still live
            left = [*self._sending, *self._spool]
            self._spool.clear()
            self._sending = []
            self._lose(left, "shutdown")
        self._log_losses(at_once=True)
        self._bulk.close()

    def _refuse(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        if len(message) > MOST_MESSAGE_BYTES:
            with self._changed:
                self._lose([Batch(kernel_logs=kernel_logs, protocol_logs=protocol_logs)], "message_too_large")
        else:
            self._count("logs_filtered", kernel_logs, protocol_logs, reason="same_service")

    def _seal(self) -> None:
        batch = self._batch
        if not batch.messages:
            return
        self._batch = Batch()
        with self._changed:
            self._spool.append(batch)
            self._held_bytes += len(batch.body)
            self._trim()
            self._changed.notify()

    def _trim(self) -> None:
        """Drops whole batches, the oldest first, until the spool is within its bound; under the lock."""
        dropped = []
        while self._held_bytes > self._spool_bytes and self._spool:
            dropped.append(self._spool.popleft())
            self._held_bytes -= len(dropped[-1].body)
        self._lose(dropped, "spool_full")

    # -- the sender's thread --

    def _run(self) -> None:
        while True:
            batches = self._take()
            if batches is None:
                return
            try:
                if batches:
                    self._send(batches)
                else:
                    self._idle()
            except Exception as error:
                # A mistake of ours must not stop the logs that follow, nor go uncounted.
                log.exception("skywalking_output_failed")
                self._bulk.close()
                self._failed(batches, 0, CallError(str(error), status="INTERNAL", body_bytes_sent=sys.maxsize))
            self._log_losses()

    def _take(self) -> list[Batch] | None:
        """The batches of the next call, none if nothing came for a while; None when all is done."""
        with self._changed:
            pause_s = self._not_before - time.monotonic()
            self._changed.wait_for(self._ready, min(self._check_s, pause_s) if pause_s > 0 else self._check_s)
            if self._spool and self._ready():
                messages = 0
                while self._spool and (not self._sending or messages + self._spool[0].messages <= self._call_messages):
                    self._sending.append(self._spool.popleft())
                    messages += self._sending[-1].messages
                return list(self._sending)
            return None if self._closing else []

    def _ready(self) -> bool:
        return self._closing or (bool(self._spool) and time.monotonic() >= self._not_before)

    def _send(self, batches: list[Batch]) -> None:
        node = node_field(self._core.node(), ClockBase.for_offset(self._clock_offset_ns))
        first = batches[0].body
        length = message_length(first)
        # The first message of a stream carries the node: serialised fields may be joined (protobuf encoding, "merge").
        opening = frame_message(node + first[MESSAGE_HEAD_BYTES : MESSAGE_HEAD_BYTES + length])
        body: list[bytes | bytearray | memoryview] = [
            opening,
            memoryview(first)[MESSAGE_HEAD_BYTES + length :],
            *(batch.body for batch in batches[1:]),
        ]
        try:
            self._bulk.send(body, CALL_DEADLINE_S, cautious=self._backoff.failures > 0)
        except BackendError as error:
            self._failed(batches, len(node), error)
        else:
            self._backoff.reset()
            self._call_messages = min(MOST_MESSAGES_A_CALL, self._call_messages * 2)
            with self._changed:
                if not self._abandoned:
                    self._sending = []
                    self._held_bytes -= sum(len(batch.body) for batch in batches)
                    for batch in batches:
                        self._count("logs_exported", batch.kernel_logs, batch.protocol_logs)

    def _failed(self, batches: list[Batch], extra_bytes: int, error: BackendError) -> None:
        sent = error.body_bytes_sent if isinstance(error, CallError) else 0
        status = error.status if isinstance(error, CallError) else ""
        if status == "DEADLINE_EXCEEDED":
            self._call_messages = max(1, self._call_messages // 2)
        self._not_before = time.monotonic() + (REFUSED_S if status in HINTS else 0) + self._delay_s(status)
        unconfirmed = []
        begins = 0
        for batch in batches:
            if begins >= sent:
                break
            unconfirmed.append(batch)
            begins += len(batch.body) + (0 if begins else extra_bytes)
        with self._changed:
            if self._abandoned:
                return
            self._sending = []
            self._spool.extendleft(reversed(batches[len(unconfirmed) :]))
            self._held_bytes -= sum(len(batch.body) for batch in unconfirmed)
            self._lose(unconfirmed, "send_unconfirmed")
            self._trim()
            if self._closing and not sent:
                # Not reached, or turned away: nobody waits for that to change.
                left = list(self._spool)
                self._spool.clear()
                self._lose(left, "shutdown")

    def _idle(self) -> None:
        """Keeps an eye on the connection, so that health is known and a going backend is noticed between calls."""
        if time.monotonic() < self._not_before:
            return
        try:
            self._bulk.watch()
        except CallError as error:
            self._not_before = time.monotonic() + self._delay_s(error.status)

    def _delay_s(self, status: str) -> float:
        """Knocking at a closed door costs nobody anything, so a backend that is away is found within a flush period."""
        return self._backoff.next(self._period_s if status == "UNAVAILABLE" else None)

    # -- counting --

    def _lose(self, batches: list[Batch], reason: str) -> None:
        """Counts logs as lost; under the lock."""
        for batch in batches:
            self._count("logs_lost", batch.kernel_logs, batch.protocol_logs, reason=reason)
            self._losses[reason] += batch.kernel_logs + batch.protocol_logs

    def _count(self, counter: str, kernel_logs: int, protocol_logs: int, **labels: str) -> None:
        if kernel_logs:
            self._counters.add(counter, kernel_logs, output="skywalking", unit="kernel", **labels)
        if protocol_logs:
            self._counters.add(counter, protocol_logs, output="skywalking", unit="protocol", **labels)

    def _log_losses(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        with self._changed:
            if not self._losses or (now - self._losses_logged < _LOSS_LOG_S and not at_once):
                return
            losses, self._losses = dict(self._losses), Counter()
            self._losses_logged = now
        log.warning("logs_lost", output="skywalking", **losses)
