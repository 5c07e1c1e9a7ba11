# SPDX-License-Identifier: Apache-2.0
"""Reports processes to the OAP and keeps them alive there (oap-contract §D).

The OAP knows a process by service, instance and process name, not by pid: the workers of a server are one process to
it. So entities are reported, each with its oldest living process.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import structlog
from google.protobuf.message import DecodeError

from rover_plugin._generated.skywalking.common.Common_pb2 import KeyStringValuePair
from rover_plugin._generated.skywalking.ebpf.profiling import Process_pb2
from rover_plugin.discovery.layers import LAYERS
from rover_plugin.discovery.secrets import hide_secrets
from rover_plugin.errors import BackendError, CallError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rover_plugin.backend.caller import Caller
    from rover_plugin.discovery.model import Entity, Process
    from rover_plugin.discovery.table import ProcessTable
    from rover_plugin.telemetry.counters import Counters

_Item = TypeVar("_Item")

log = structlog.get_logger(__name__)

_SERVICE = "/skywalking.v3.EBPFProcessService/"
RPC_DEADLINE_S = 10.0
_STOP_PATIENCE_S = 2.0
BATCH = 200  # entities in one call: far below a megabyte, as the contract advises
MAX_COMMAND_LINE = 1024
# This agent offers no profiling, so the OAP must not ask it to.
_NOT_PROFILED = {"support_ebpf_profiling": "false"}


def process_id(entity: Entity) -> str:
    """The id the OAP gives an entity: IDManager.ProcessID, as oap-contract §D has it."""
    instance_id = f"{_base64(entity.service)}.1_{_base64(entity.instance)}"
    return hashlib.sha256(f"{entity.process}_{instance_id}".encode()).hexdigest()


def _base64(name: str) -> str:
    return base64.b64encode(name.encode()).decode()


def host_ip() -> str:
    """The address other hosts know this one by, empty if there is none: where packets to elsewhere would come from."""
    elsewhere = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))  # RFC 5737, RFC 3849
    for family, address in elsewhere:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))  # chooses a route, sends nothing
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return ""


class ProcessReporter:
    """One thread that beats: new entities are reported, known ones kept alive, all reported anew every so often.

    An entity counts as known once the OAP has answered for it. What it does not answer for is reported again with the
    next beat.

    Args:
        table: the processes.
        caller: makes the calls to the OAP, for this reporter only.
        agent_id: this agent's instance id.
        period_s: seconds between beats.
        full_every: each so many beats everything is reported in full.
    """

    def __init__(
        self,
        table: ProcessTable,
        caller: Caller,
        agent_id: str,
        counters: Counters,
        *,
        period_s: float,
        full_every: int,
    ) -> None:
        self._table = table
        self._caller = caller
        self._agent_id = agent_id
        self._counters = counters
        self._period_s = period_s
        self._full_every = full_every
        self._beats = 0
        self._known: set[Entity] = set()
        self._mistrusted = False
        self._failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="process-reporter", daemon=True)

    def start(self) -> None:
        """Beats for the first time at once, then every period."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; a call that hangs is given up."""
        self._stopping.set()
        self._caller.not_after = 0.0
        if self._thread.ident is not None:
            self._thread.join(_STOP_PATIENCE_S)

    def _run(self) -> None:
        next_beat = time.monotonic()
        while not self._stopping.wait(max(0.0, next_beat - time.monotonic())):
            next_beat = max(next_beat + self._period_s, time.monotonic())
            self.beat()

    def beat(self) -> None:
        """One round of reports; a failed call is counted and left to the next."""
        living = representatives(self._table.snapshot()[1])
        self._known &= living.keys()
        full = self._beats % self._full_every == 0
        self._beats += 1
        unreported = {entity: process for entity, process in living.items() if full or entity not in self._known}
        kept = [entity for entity in living if entity not in unreported]
        try:
            for batch in _batches(unreported.items()):
                self._report(dict(batch))
            for entities in _batches(kept):
                self._keep_alive(entities)
            # A report stores the process only; services and instances come into being by keepAlive.
            for entities in _batches(entity for entity in unreported if entity in self._known):
                self._keep_alive(entities)
        except BackendError as error:
            if not self._stopping.is_set():
                self._note_failure(error)
        else:
            self._failing = False

    def _report(self, batch: Mapping[Entity, Process]) -> None:
        address = host_ip()
        request = Process_pb2.EBPFProcessReportList(
            ebpfAgentID=self._agent_id,
            processes=(encode_properties(entity, process, address) for entity, process in batch.items()),
        )
        reply = self._caller.unary(_SERVICE + "reportProcesses", request.SerializeToString(), RPC_DEADLINE_S)
        try:
            answer = Process_pb2.EBPFReportProcessDownstream.FromString(reply)
        except DecodeError as error:
            raise CallError("the reply to a process report is no protobuf", status="INTERNAL") from error
        by_identity = {_identity(encode_entity(entity)): entity for entity in batch}
        for echoed in answer.processes:
            entity = by_identity.get(_identity(echoed.hostProcess.entityMetadata))
            if entity is None:
                continue
            self._known.add(entity)
            self._compare(entity, echoed.processId)
        unanswered = len(batch.keys() - self._known)
        if unanswered:
            self._counters.add("process_reports_unanswered", unanswered)

    def _compare(self, entity: Entity, received: str) -> None:
        expected = process_id(entity)
        if received == expected:
            return
        self._counters.add("process_ids_unexpected")
        if not self._mistrusted:
            self._mistrusted = True
            log.warning("process_id_unexpected", service=entity.service, process=entity.process, received=received)

    def _keep_alive(self, entities: Iterable[Entity]) -> None:
        request = Process_pb2.EBPFProcessPingPkgList(
            ebpfAgentID=self._agent_id,
            processes=(
                Process_pb2.EBPFProcessPingPkg(entityMetadata=encode_entity(entity), properties=_pairs(_NOT_PROFILED))
                for entity in entities
            ),
        )
        self._caller.unary(_SERVICE + "keepAlive", request.SerializeToString(), RPC_DEADLINE_S)

    def _note_failure(self, error: BackendError) -> None:
        code = error.status if isinstance(error, CallError) else "UNKNOWN"
        self._counters.add("process_reports_failed", code=code)
        if not self._failing:  # once, not every 20 s while the backend is away
            self._failing = True
            log.warning("process_report_failed", code=code, reason=error.message, retry_s=self._period_s)


def representatives(processes: Iterable[Process]) -> dict[Entity, Process]:
    """Each entity the OAP can take, with its oldest living process."""
    found: dict[Entity, Process] = {}
    for process in sorted(processes, key=lambda process: (process.key.start_time, process.key.pid)):
        if not process.exited:
            for entity in process.entities:
                if entity.layer in LAYERS:
                    found.setdefault(entity, process)
    return found


def encode_entity(entity: Entity) -> Process_pb2.EBPFProcessEntityMetadata:
    """An entity as the OAP's message."""
    return Process_pb2.EBPFProcessEntityMetadata(
        layer=entity.layer,
        serviceName=entity.service,
        instanceName=entity.instance,
        processName=entity.process,
        labels=entity.labels,
    )


def encode_properties(entity: Entity, process: Process, address: str) -> Process_pb2.EBPFProcessProperties:
    """An entity with what is known of its process, as the OAP's message; the names of properties are Rover's."""
    properties = {
        "host_ip": address,
        "pid": str(process.key.pid),
        "command_line": _command_line(process),
        "container_name": entity.container,
        "container_id": process.container_id,
        **_NOT_PROFILED,
    }
    return Process_pb2.EBPFProcessProperties(
        hostProcess=Process_pb2.EBPFHostProcessMetadata(
            entity=encode_entity(entity),
            pid=process.key.pid,
            properties=_pairs({key: value for key, value in properties.items() if value}),
        )
    )


def _command_line(process: Process) -> str:
    bounded = (argument[:MAX_COMMAND_LINE] for argument in process.cmdline[:MAX_COMMAND_LINE])
    return " ".join(hide_secrets(bounded))[:MAX_COMMAND_LINE].encode(errors="replace").decode()


def _pairs(properties: Mapping[str, str]) -> Iterator[KeyStringValuePair]:
    return (KeyStringValuePair(key=key, value=value) for key, value in properties.items())


def _identity(metadata: Process_pb2.EBPFProcessEntityMetadata) -> tuple[str, str, str]:
    return metadata.serviceName, metadata.instanceName, metadata.processName


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
