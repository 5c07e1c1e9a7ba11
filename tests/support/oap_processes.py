# SPDX-License-Identifier: Apache-2.0
"""The OAP's `EBPFProcessService` (oap-contract D): process ids, and heartbeats that check the layer."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from dataclasses import dataclass, field

from rover_plugin._generated.skywalking.common import Command_pb2 as command
from rover_plugin._generated.skywalking.ebpf.profiling import Process_pb2 as wire

LAYERS = frozenset({"MESH", "MESH_DP", "K8S", "K8S_SERVICE", "OS_LINUX", "OS_WINDOWS", "GENERAL", "NGINX", "MYSQL"})
ELIGIBLE = "support_ebpf_profiling"


class UnknownLayerError(Exception):
    """`layer` is not one of the OAP's; what came before it in the list is already applied."""


@dataclass
class ReportedProcess:
    """One row of the OAP's process table."""

    id: str
    service: str
    instance: str
    name: str
    detect_type: str = ""
    layer: str = ""
    pid: int = 0
    agent: str = ""
    labels: tuple[str, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)
    last_ping_minute: int | None = None

    @property
    def profiling_eligible(self) -> bool:
        return self.properties.get(ELIGIBLE) == "true"


def process_id(entity: wire.EBPFProcessEntityMetadata) -> str:
    """The OAP's id of a process: lower-case hex sha256 over name and instance id."""
    service = base64.b64encode(entity.serviceName.encode()).decode()
    instance = base64.b64encode(entity.instanceName.encode()).decode()
    return hashlib.sha256(f"{entity.processName}_{service}.1_{instance}".encode()).hexdigest()


class ProcessTable:
    """What was reported and what is alive. Thread-safe.

    Attributes:
        by_id: rows by process id.
        services: (layer, service) and `instances`: (layer, service, instance) made visible by heartbeats.
        reports: number of reportProcesses calls, `pings`: of keepAlive calls that succeeded.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, ReportedProcess] = {}
        self.services: set[tuple[str, str]] = set()
        self.instances: set[tuple[str, str, str]] = set()
        self.reports = 0
        self.pings = 0
        self._lock = threading.Lock()

    def report(self, request: wire.EBPFProcessReportList) -> wire.EBPFReportProcessDownstream:
        """Stores every entry that has metadata, skips the others in silence."""
        reply = wire.EBPFReportProcessDownstream()
        with self._lock:
            self.reports += 1
            for sent in request.processes:
                kind = sent.WhichOneof("metadata")
                if kind is None:
                    continue
                metadata = getattr(sent, kind)
                row = self._row(metadata.entity)
                row.detect_type = "VM" if kind == "hostProcess" else "KUBERNETES"
                row.pid, row.agent = metadata.pid, request.ebpfAgentID
                row.labels = tuple(metadata.entity.labels)
                row.properties = {pair.key: pair.value for pair in metadata.properties}
                answer = reply.processes.add(processId=row.id)
                echo = getattr(answer, kind)
                echo.pid = metadata.pid
                echo.entityMetadata.CopyFrom(metadata.entity)
        return reply

    def ping(self, request: wire.EBPFProcessPingPkgList) -> command.Commands:
        """Upserts every entry until one names an unknown layer."""
        with self._lock:
            for sent in request.processes:
                entity = sent.entityMetadata
                if entity.layer not in LAYERS:
                    message = f"Unknown layer: {entity.layer}"
                    raise UnknownLayerError(message)
                row = self._row(entity)
                row.layer, row.agent = entity.layer, request.ebpfAgentID
                row.labels = tuple(entity.labels)
                row.properties[ELIGIBLE] = next((p.value for p in sent.properties if p.key == ELIGIBLE), "false")
                row.last_ping_minute = int(time.time() // 60)
                self.services.add((entity.layer, entity.serviceName))
                self.instances.add((entity.layer, entity.serviceName, entity.instanceName))
            self.pings += 1
        return command.Commands()

    def _row(self, entity: wire.EBPFProcessEntityMetadata) -> ReportedProcess:
        key = process_id(entity)
        if key not in self.by_id:
            self.by_id[key] = ReportedProcess(key, entity.serviceName, entity.instanceName, entity.processName)
        return self.by_id[key]
