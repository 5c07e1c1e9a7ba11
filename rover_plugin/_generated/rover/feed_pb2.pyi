from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("resume_from",)
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    resume_from: Position
    def __init__(self, resume_from: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("epoch", "revision")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    revision: int
    def __init__(self, epoch: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("position", "heartbeat_seconds", "snapshot", "changes", "heartbeat")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    position: Position
    heartbeat_seconds: float
    snapshot: Snapshot
    changes: Changes
    heartbeat: Heartbeat
    def __init__(self, position: _Optional[_Union[Position, _Mapping]] = ..., heartbeat_seconds: _Optional[float] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., changes: _Optional[_Union[Changes, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("processes", "first", "more", "executables")
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLES_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    first: bool
    more: bool
    executables: Executables
    def __init__(self, processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ..., first: bool = ..., more: bool = ..., executables: _Optional[_Union[Executables, _Mapping]] = ...) -> None: ...

class Executables(_message.Message):
    __slots__ = ("limited", "only", "never")
    LIMITED_FIELD_NUMBER: _ClassVar[int]
    ONLY_FIELD_NUMBER: _ClassVar[int]
    NEVER_FIELD_NUMBER: _ClassVar[int]
    limited: bool
    only: _containers.RepeatedScalarFieldContainer[str]
    never: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, limited: bool = ..., only: _Optional[_Iterable[str]] = ..., never: _Optional[_Iterable[str]] = ...) -> None: ...

class Changes(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("added", "updated", "removed")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    added: Process
    updated: Process
    removed: ProcessKey
    def __init__(self, added: _Optional[_Union[Process, _Mapping]] = ..., updated: _Optional[_Union[Process, _Mapping]] = ..., removed: _Optional[_Union[ProcessKey, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProcessKey(_message.Message):
    __slots__ = ("pid", "start_time")
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    pid: int
    start_time: int
    def __init__(self, pid: _Optional[int] = ..., start_time: _Optional[int] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("key", "exe", "cmdline", "pid_namespace", "cgroup_id", "container_id", "entities", "exited", "decided")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXE_FIELD_NUMBER: _ClassVar[int]
    CMDLINE_FIELD_NUMBER: _ClassVar[int]
    PID_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CGROUP_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    key: ProcessKey
    exe: str
    cmdline: _containers.RepeatedScalarFieldContainer[str]
    pid_namespace: int
    cgroup_id: int
    container_id: str
    entities: _containers.RepeatedCompositeFieldContainer[Entity]
    exited: bool
    decided: bool
    def __init__(self, key: _Optional[_Union[ProcessKey, _Mapping]] = ..., exe: _Optional[str] = ..., cmdline: _Optional[_Iterable[str]] = ..., pid_namespace: _Optional[int] = ..., cgroup_id: _Optional[int] = ..., container_id: _Optional[str] = ..., entities: _Optional[_Iterable[_Union[Entity, _Mapping]]] = ..., exited: bool = ..., decided: bool = ...) -> None: ...

class Entity(_message.Message):
    __slots__ = ("layer", "service", "instance", "process", "labels", "cluster", "namespace", "pod", "container")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    layer: str
    service: str
    instance: str
    process: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    cluster: str
    namespace: str
    pod: str
    container: str
    def __init__(self, layer: _Optional[str] = ..., service: _Optional[str] = ..., instance: _Optional[str] = ..., process: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., cluster: _Optional[str] = ..., namespace: _Optional[str] = ..., pod: _Optional[str] = ..., container: _Optional[str] = ...) -> None: ...
