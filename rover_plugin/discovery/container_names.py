# SPDX-License-Identifier: Apache-2.0
"""What runtimes keep on disk about a container's name: OCI bundles, docker's and podman's own files."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rover_plugin.discovery.foreign_files import member, name_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rover_plugin.discovery.foreign_files import ForeignFiles

_SHORT_ID = 12  # what `docker ps` shows
# A config.json of a large pod has some 30 KB, a containers.json 600 bytes a container.
_MAX_CONFIG_BYTES = 1 << 20
_MAX_INDEX_BYTES = 4 << 20
_MAX_INDEXES = 8
# github.com/containers/storage, containers.go: containers run with --rm are in the second.
_INDEXES = ("containers.json", "volatile-containers.json")
# Files docker puts into every container from its own directory, whatever its data-root (moby, daemon/container.go).
_DOCKER_MOUNTS = ("hostname", "hosts", "resolv.conf")


@dataclass(frozen=True, slots=True)
class Container:
    """A container as its runtime knows it.

    Attributes:
        id: 64 hexadecimal digits, or the name where the runtime has no other id.
        name: empty while nobody has told it.
        namespace: of Kubernetes, empty for other containers.
        pod: of Kubernetes, empty for other containers.
    """

    id: str
    name: str = ""
    namespace: str = ""
    pod: str = ""

    @property
    def shown(self) -> str:
        """The name, or as long as there is none the start of the id."""
        return self.name or self.id[:_SHORT_ID]

    @property
    def service(self) -> str:
        """What its processes are called together: `namespace/pod/container`, or the name alone."""
        return "/".join(filter(None, (self.namespace, self.pod, self.shown))) if self.pod else self.shown


@dataclass(frozen=True, slots=True)
class _Keys:
    """Under which keys of annotations or labels Kubernetes' names are."""

    container: str
    pod: str
    namespace: str


# containerd: internal/cri/annotations; cri-o: pkg/annotations; cri-dockerd and cri-o take the kubelet's own labels.
_KUBERNETES = (
    _Keys("io.kubernetes.cri.container-name", "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-namespace"),
    _Keys("io.kubernetes.container.name", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"),
)
_PLAIN = ("nerdctl/name",)


def _from_labels(container_id: str, labels: object) -> Container | None:
    for keys in _KUBERNETES:
        if pod := name_in(labels, keys.pod):
            return Container(container_id, name_in(labels, keys.container), name_in(labels, keys.namespace), pod)
    plain = next(filter(None, (name_in(labels, key) for key in _PLAIN)), "")
    return Container(container_id, plain) if plain else None


class ContainerFiles:
    """Looks a container up in one place at a time."""

    def __init__(self, files: ForeignFiles) -> None:
        self._files = files
        # Directory and file to its version, and names by id.
        self._indexes: OrderedDict[tuple[str, str], tuple[object, Mapping[str, str]]] = OrderedDict()

    def in_bundles(self, tasks: str, container_id: str) -> Container | None:
        """Below containerd's directory of tasks, `NAMESPACE/ID`, in whatever namespace."""
        found = (self.in_bundle(tasks, namespace, container_id) for namespace in self._files.names(tasks))
        return next(filter(None, found), None)

    def in_bundle(self, tasks: str, namespace: str, container_id: str) -> Container | None:
        """In a bundle's config.json (the OCI runtime specification, config)."""
        config = self._files.document(tasks, f"{namespace}/{container_id}/config.json", _MAX_CONFIG_BYTES)
        return _from_labels(container_id, member(config, "annotations")) or self._docker_of(config, container_id)

    def _docker_of(self, config: object, container_id: str) -> Container | None:
        mounts = member(config, "mounts")
        for mount in mounts if isinstance(mounts, list) else ():
            source = member(mount, "source")
            directory, _, file = source.rpartition("/") if isinstance(source, str) else ("", "", "")
            if file in _DOCKER_MOUNTS and directory.startswith("/") and directory.endswith(f"/{container_id}"):
                return self.in_docker(directory.removesuffix(f"/{container_id}"), container_id)
        return None

    def in_docker(self, containers: str, container_id: str) -> Container | None:
        """Below docker's `containers`, `ID/config.v2.json`."""
        config = self._files.document(containers, f"{container_id}/config.v2.json", _MAX_CONFIG_BYTES)
        pod = _from_labels(container_id, member(config, "Config", "Labels"))
        name = name_in(config, "Name").lstrip("/")
        return pod or (Container(container_id, name) if name else None)

    def in_storage(self, storage: str, container_id: str) -> Container | None:
        """Below a root of containers/storage, which podman and cri-o share, whatever its driver."""
        for kind in self._files.names(storage):
            if not kind.endswith("-containers"):
                continue
            directory = f"{storage}/{kind}"
            config = self._files.document(directory, f"{container_id}/userdata/config.json", _MAX_CONFIG_BYTES)
            found = _from_labels(container_id, member(config, "annotations"))
            if found is not None:
                return found
            for index in _INDEXES:
                if name := self._indexed(directory, index).get(container_id, ""):
                    return Container(container_id, name)
        return None

    def _indexed(self, directory: str, index: str) -> Mapping[str, str]:
        version = self._files.version(directory, index)
        if version is None:
            return {}
        key = (directory, index)
        known = self._indexes.get(key)
        if known is None or known[0] != version:
            known = version, _names_by_id(self._files.document(directory, index, _MAX_INDEX_BYTES))
        self._indexes[key] = known
        self._indexes.move_to_end(key)
        if len(self._indexes) > _MAX_INDEXES:
            self._indexes.popitem(last=False)
        return known[1]

    def has_task(self, tasks: str, namespace: str, container_id: str) -> bool:
        """Whether containerd runs this."""
        return self._files.version(tasks, f"{namespace}/{container_id}/config.json") is not None

    def has_state(self, states: str, container_id: str) -> bool:
        """Whether a low-level runtime (runc, crun) keeps the state of a container of this id."""
        return self._files.version(states, container_id) is not None


def _names_by_id(index: object) -> Mapping[str, str]:
    names = {}
    for entry in index if isinstance(index, list) else ():
        known = member(entry, "names")
        if isinstance(known, list) and known:
            names[name_in(entry, "id")] = name_in({"": known[0]}, "")
    return names
