# SPDX-License-Identifier: Apache-2.0
"""Output `skywalking`: access logs to the OAP, as oap-contract K asks for.

The hub's thread collects messages in parcels of some dozens, a thread of its own sends them:

    write() ─► open parcels ─(flush.max_count, or flush.period)─► spool ─► one call at a time ─► exported | lost(reason)

What is open goes to the spool after `access_log.flush.max_count` logs (kernel and protocol logs together). A call
carries as many parcels as `Pace` allows. What becomes of a parcel:

- sent in a call that was answered: exported;
- not begun when its call ended, or the backend is known not to have begun with the call: it is sent again;
- else the OAP may have applied a part of it, and has no way to recognise a repetition: lost(send_unconfirmed).

So that a backend slower than the agent does not lose call after call: the first call after a failure is small; a call
waits for as long as its flow-control window moves; and one whose body takes too long is closed between two parcels
instead of cancelled, so that what was sent is answered for.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from rover_plugin.access_log.outputs.disk_spool import FILE_BYTES, DiskSpool
from rover_plugin.access_log.outputs.parcel import Parcel, logs_in
from rover_plugin.access_log.outputs.skywalking_names import connection_prefix, node_field
from rover_plugin.access_log.outputs.skywalking_pace import Pace
from rover_plugin.backend.backoff import REFUSED_S, Backoff
from rover_plugin.backend.caller import Patience
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
PATIENCE: Final = Patience(quiet=20.0, total=120.0, body=10.0)
MOST_MESSAGE_BYTES: Final = 1 << 20
# The least that is lost where a call fails midway: at 75 logs/s a backend takes these in 2-3 s.
PARCEL_MESSAGES: Final = 64
_PARCEL_BYTES: Final = 64 << 10
_LOSS_LOG_S: Final = 10.0
_CONNECTION_TAG: Final = 0x12  # field 2, length-delimited: how every message with a sendable connection begins
_HEAD: Final = struct.Struct(">BI")


class SkyWalkingOutput:
    """Sends to the backend of module `core`.

    Args:
        settings: `access_log.flush.*`, `access_log.spool.*`, `process_discovery.kubernetes.active`.
        core: the backend.
        counters: gets logs_exported, logs_lost and logs_filtered.
        clock_offset_ns: nanoseconds that encoders have already added to CLOCK_MONOTONIC (see `ClockBase.for_offset`).

    Raises:
        RoverError: the spool's directory cannot be used.
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
        self._most_parcel_bytes = min(_PARCEL_BYTES, self._spool_bytes // 4)
        self._parcel = Parcel()
        self._open_logs = 0
        self._next_flush = time.monotonic() + self._period_s
        # Shared by both threads, under the condition's lock.
        self._changed = threading.Condition()
        self._open: list[Parcel] = []
        self._spool: deque[Parcel] = deque()
        self._sending: list[Parcel] = []
        self._held_bytes = 0
        self._closing = False
        self._abandoned = False
        # The sender's own.
        self._caller = core.open_caller("access_log")
        self._backoff = Backoff()
        self._not_before = 0.0
        self._check_s = settings.seconds("core.backend.check_period")
        self._pace = Pace()
        self._losses: Counter[str] = Counter()
        self._losses_logged = 0.0
        self._restored = Logs(0, 0)
        self._disk = self._open_disk(settings)
        self._thread = threading.Thread(target=self._run, name="skywalking-output", daemon=True)
        self._thread.start()

    def _open_disk(self, settings: Settings) -> DiskSpool | None:
        directory = settings.text("access_log.spool.directory")
        if not directory:
            return None
        most_bytes = settings.size("access_log.spool.max_disk_bytes")
        disk = DiskSpool(Path(directory), most_bytes, self._changed, self._lost_on_disk)
        self._restored = disk.logs
        if any(self._restored):
            log.info("spool_restored", directory=directory, kernel=disk.logs.kernel, protocol=disk.logs.protocol)
        return disk

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
        parcel = self._parcel
        parcel.body += _HEAD.pack(0, size)
        parcel.body += message
        parcel.messages += 1
        parcel.kernel_logs += kernel_logs
        parcel.protocol_logs += protocol_logs
        self._open_logs += kernel_logs + protocol_logs
        if self._open_logs >= self._most_logs:
            self._seal()
        elif parcel.messages >= PARCEL_MESSAGES or len(parcel.body) >= self._most_parcel_bytes:
            self._put_aside()

    def spool(self) -> tuple[int, int]:
        """Bytes that wait, and room for them."""
        with self._changed:
            return self._held_bytes + len(self._parcel.body), self._spool_bytes

    def standing(self) -> Standing:
        """What waits in open parcels, in the spool and for an answer is held; what is in files is kept."""
        with self._changed:
            held = logs_in([self._parcel, *self._open, *self._spool, *self._sending])
            kept = self._disk.logs if self._disk is not None else Logs(0, 0)
            return standing(self._counters, self.name, held)._replace(restored=self._restored, kept=kept)

    def tick(self) -> None:
        """Hands what is open to the sender each flush period."""
        now = time.monotonic()
        if now >= self._next_flush:
            self._next_flush = now + self._period_s
            self._seal()

    def close(self, deadline_s: float) -> None:
        """Sends what is held; gives up at the deadline, or when the backend cannot be reached."""
        self._seal()
        with self._changed:
            self._closing = True
            self._caller.not_after = time.monotonic() + deadline_s
            self._changed.notify()
        self._thread.join(deadline_s + 0.5)
        with self._changed:
            self._abandoned = True  # from here on the thread settles nothing, should it still live
            left = list(self._spool)
            self._spool.clear()
            self._lose(self._sending, "shutdown")
            self._sending = []
            self._held_bytes = 0
            self._keep_or_lose(left)
        if self._disk is not None:
            self._disk.close()
        self._log_losses(at_once=True)
        self._caller.close()

    def _refuse(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        if len(message) > MOST_MESSAGE_BYTES:
            with self._changed:
                self._lose([Parcel(kernel_logs=kernel_logs, protocol_logs=protocol_logs)], "message_too_large")
        else:
            self._count("logs_filtered", kernel_logs, protocol_logs, reason="same_service")

    def _put_aside(self) -> None:
        """Begins a new parcel; the full one waits for the next flush, within the spool's bound."""
        parcel, self._parcel = self._parcel, Parcel()
        with self._changed:
            self._open.append(parcel)
            self._held_bytes += len(parcel.body)
            self._trim()

    def _seal(self) -> None:
        if self._parcel.messages:
            self._put_aside()
        self._open_logs = 0
        with self._changed:
            if self._open:
                self._spool.extend(self._open)
                self._open.clear()
                self._changed.notify()

    def _trim(self) -> None:
        """Moves parcels to the disk, or drops them, the oldest first, until the spool is within its bound; locked."""
        if self._held_bytes <= self._spool_bytes:
            return
        room = min(FILE_BYTES, self._spool_bytes // 2)
        bound = self._spool_bytes if self._disk is None else self._spool_bytes - room
        moved = []
        while self._held_bytes > bound and (self._spool or self._open):
            moved.append(self._spool.popleft() if self._spool else self._open.pop(0))
            self._held_bytes -= len(moved[-1].body)
        if self._disk is None or not self._disk.offer(moved):
            self._lose(moved, "spool_full")

    def _keep_or_lose(self, parcels: list[Parcel]) -> None:
        """At the end: to the disk what the backend did not get; locked."""
        if self._disk is None:
            self._lose(parcels, "shutdown")
        else:
            self._disk.keep(parcels)

    def _lost_on_disk(self, logs: Logs, reason: str) -> None:
        self._lose([Parcel(kernel_logs=logs.kernel, protocol_logs=logs.protocol)], reason)

    # -- the sender's thread --

    def _run(self) -> None:
        while True:
            parcels = self._take()
            if parcels is None:
                return
            try:
                if parcels:
                    self._send(parcels)
                else:
                    self._idle()
            except Exception as error:
                # A mistake of ours must not stop the logs that follow, nor go uncounted.
                log.exception("skywalking_output_failed")
                self._caller.close()
                self._failed(parcels, 0, CallError(str(error), status="INTERNAL", body_bytes_sent=sys.maxsize))
            self._log_losses()

    def _take(self) -> list[Parcel] | None:
        """The parcels of the next call, none if nothing came for a while; None when all is done."""
        with self._changed:
            pause_s = self._not_before - time.monotonic()
            self._changed.wait_for(self._ready, min(self._check_s, pause_s) if pause_s > 0 else self._check_s)
            if self._spool and self._ready():
                self._sending = self._next_call()
                return list(self._sending)
            if self._closing:
                return None
            disk = self._disk if self._ready() else None
        if disk is not None:
            disk.load(self._take_back)
        return []

    def _next_call(self) -> list[Parcel]:
        """As many parcels as the pace allows, at least one, and all of one boot."""
        chosen = [self._spool.popleft()]
        messages = chosen[0].messages
        while (
            self._spool
            and messages + self._spool[0].messages <= self._pace.messages
            and self._spool[0].boot_seconds == chosen[0].boot_seconds
        ):
            chosen.append(self._spool.popleft())
            messages += chosen[-1].messages
        return chosen

    def _take_back(self, parcels: list[Parcel]) -> None:
        """What is new goes first; then the oldest of what was kept on the disk. Under the lock."""
        self._spool.extend(parcels)
        self._held_bytes += sum(len(parcel.body) for parcel in parcels)

    def _ready(self) -> bool:
        if self._closing:
            return True
        waits = bool(self._spool) or (self._disk is not None and self._disk.filled)
        return waits and time.monotonic() >= self._not_before

    def _send(self, parcels: list[Parcel]) -> None:
        earlier = parcels[0].boot_seconds
        clock = ClockBase(earlier, 0) if earlier else ClockBase.for_offset(self._clock_offset_ns)
        node = node_field(self._core.node(), clock)
        first = parcels[0].body
        length = message_length(first)
        # The first message of a stream carries the node: serialised fields may be joined (protobuf encoding, "merge").
        opening = frame_message(node + first[MESSAGE_HEAD_BYTES : MESSAGE_HEAD_BYTES + length])
        body: list[bytes | bytearray] = [opening + first[MESSAGE_HEAD_BYTES + length :]]
        body += [parcel.body for parcel in parcels[1:]]
        began = time.monotonic()
        try:
            sent = self._caller.stream(METHOD, body, PATIENCE, cautious=self._backoff.failures > 0)
        except BackendError as error:
            self._failed(parcels, len(node), error)
            return
        self._backoff.reset()
        self._pace.answered(time.monotonic() - began, whole=sent == len(parcels))
        self._settle(parcels[:sent], parcels[sent:])

    def _settle(self, exported: list[Parcel], unsent: list[Parcel]) -> None:
        with self._changed:
            if self._abandoned:
                return
            self._sending = []
            self._spool.extendleft(reversed(unsent))
            self._held_bytes -= sum(len(parcel.body) for parcel in exported)
            for parcel in exported:
                self._count("logs_exported", parcel.kernel_logs, parcel.protocol_logs)

    def _failed(self, parcels: list[Parcel], extra_bytes: int, error: BackendError) -> None:
        sent = error.body_bytes_sent if isinstance(error, CallError) else 0
        status = error.status if isinstance(error, CallError) else ""
        self._pace.failed()
        self._not_before = time.monotonic() + (REFUSED_S if status in HINTS else 0) + self._delay_s(status)
        unconfirmed = []
        begins = 0
        for parcel in parcels:
            if begins >= sent:
                break
            unconfirmed.append(parcel)
            begins += len(parcel.body) + (0 if begins else extra_bytes)
        with self._changed:
            if self._abandoned:
                return
            self._sending = []
            self._spool.extendleft(reversed(parcels[len(unconfirmed) :]))
            self._held_bytes -= sum(len(parcel.body) for parcel in unconfirmed)
            self._lose(unconfirmed, "send_unconfirmed")
            self._trim()
            if self._closing and not sent:
                # Not reached, or turned away: nobody waits for that to change.
                left = list(self._spool)
                self._spool.clear()
                self._held_bytes = 0
                self._keep_or_lose(left)

    def _idle(self) -> None:
        """Keeps an eye on the connection, so that health is known and a going backend is noticed between calls."""
        if time.monotonic() < self._not_before:
            return
        try:
            self._caller.watch()
        except CallError as error:
            self._not_before = time.monotonic() + self._delay_s(error.status)

    def _delay_s(self, status: str) -> float:
        """Knocking at a closed door costs nobody anything, so a backend that is away is found within a flush period."""
        return self._backoff.next(self._period_s if status == "UNAVAILABLE" else None)

    # -- counting --

    def _lose(self, parcels: list[Parcel], reason: str) -> None:
        """Counts logs as lost; under the lock."""
        for parcel in parcels:
            self._count("logs_lost", parcel.kernel_logs, parcel.protocol_logs, reason=reason)
            self._losses[reason] += parcel.kernel_logs + parcel.protocol_logs

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
