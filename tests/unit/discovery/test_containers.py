# SPDX-License-Identifier: Apache-2.0
"""Containers are named from what each runtime keeps on disk, laid out here as the runtimes do."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.discovery import containers as containers_module
from rover_plugin.discovery.cgroups import Cgroup, parse_path
from rover_plugin.discovery.container_names import Container
from rover_plugin.discovery.containers import Containers, contained
from rover_plugin.discovery.model import ProcessKey
from rover_plugin.discovery.naming import service_name
from rover_plugin.discovery.procfs import ProcessFacts, read_process
from rover_plugin.telemetry.counters import Counters

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
CONTAINERD = "run/containerd/io.containerd.runtime.v2.task"
POD_PATH = f"/kubepods/pod0a1b2c3d-4e5f-6789-abcd-ef0123456789/{ID}"
CRI = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.container-name": "app",
    "io.kubernetes.cri.sandbox-name": "web-7f9-x2",
    "io.kubernetes.cri.sandbox-namespace": "shop",
}
CRIO = {
    "io.container.manager": "cri-o",
    "io.kubernetes.container.name": "app",
    "io.kubernetes.pod.name": "web-7f9-x2",
    "io.kubernetes.pod.namespace": "shop",
}


class Host:
    """A root directory with what runtimes leave in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.counters = Counters()

    def write(self, path: str, content: object) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    def containers(self) -> Containers:
        return Containers(self.counters, str(self.root), str(self.root / "proc"))

    def container(self, path: str) -> Container | None:
        return self.containers().of(in_cgroup(path))

    def refused(self) -> dict[str, int]:
        return {labels[0][1]: count for (_, labels), count in self.counters.snapshot().items()}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def in_cgroup(path: str, pid: int = 42, **facts: Any) -> ProcessFacts:
    return ProcessFacts(ProcessKey(pid, 1), cgroup=parse_path(path), **facts)


def bundle(**config: object) -> dict[str, object]:
    return {"ociVersion": "1.0.2", "process": {"args": ["/bin/app"]}, **config}


def test_docker_tells_the_name_of_a_container(host: Host) -> None:
    host.write(f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/shop", "Config": {"Labels": {}}})
    assert host.container(f"/docker/{ID}") == Container(ID, "shop")


def test_docker_tells_it_wherever_its_data_root_is_configured(host: Host) -> None:
    host.write("etc/docker/daemon.json", {"data-root": "/srv/docker"})
    host.write(f"srv/docker/containers/{ID}/config.v2.json", {"Name": "/shop"})
    assert host.container(f"/docker/{ID}") == Container(ID, "shop")


def test_the_bundle_of_a_docker_container_leads_to_the_data_root(host: Host) -> None:
    mounts = [{"source": "proc"}, "?", {"source": f"/data/d/containers/{ID}/hostname", "destination": "/etc/hostname"}]
    host.write(f"{CONTAINERD}/moby/{ID}/config.json", bundle(mounts=mounts))
    host.write(f"data/d/containers/{ID}/config.v2.json", {"Name": "/shop"})
    assert host.container(f"/system.slice/docker-{ID}.scope") == Container(ID, "shop")


def test_the_command_line_of_dockerd_leads_to_the_data_root(host: Host) -> None:
    host.write(f"data/d/containers/{ID}/config.v2.json", {"Name": "/shop"})
    containers = host.containers()
    assert containers.of(in_cgroup(f"/docker/{ID}")) == Container(ID)
    containers.notice(in_cgroup("/", 7, exe="/usr/bin/dockerd", cmdline=("dockerd", "--data-root=/data/d")))
    assert containers.of(in_cgroup(f"/docker/{ID}")) == Container(ID, "shop")


def test_a_pod_of_docker_is_named_by_its_labels(host: Host) -> None:
    config = {"Name": "/k8s_app_web", "Config": {"Labels": CRIO}}
    host.write(f"var/lib/docker/containers/{ID}/config.v2.json", config)
    assert host.container(POD_PATH) == Container(ID, "app", "shop", "web-7f9-x2")


def test_containerd_names_the_containers_of_pods(host: Host) -> None:
    host.write(f"{CONTAINERD}/k8s.io/{ID}/config.json", bundle(annotations=CRI))
    found = host.container(POD_PATH)
    assert found == Container(ID, "app", "shop", "web-7f9-x2")
    assert found.service == "shop/web-7f9-x2/app"


@pytest.mark.parametrize(
    "state", ["run/k3s/containerd", "run/k0s/containerd", "var/snap/microk8s/common/run/containerd"]
)
def test_containerd_is_found_where_distributions_put_it(host: Host, state: str) -> None:
    host.write(f"{state}/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json", bundle(annotations=CRI))
    assert host.container(POD_PATH) == Container(ID, "app", "shop", "web-7f9-x2")


def test_nerdctl_names_a_container_by_an_annotation(host: Host) -> None:
    host.write(f"{CONTAINERD}/default/{ID}/config.json", bundle(annotations={"nerdctl/name": "cart"}))
    assert host.container(f"/system.slice/nerdctl-{ID}.scope") == Container(ID, "cart")


def test_a_container_whose_id_its_user_chose_is_called_so(host: Host) -> None:
    host.write(f"{CONTAINERD}/default/web/config.json", bundle())
    assert host.container("/default/web") == Container("web", "web")
    assert host.container("/default/web/below") == Container("web", "web")
    assert host.container("/default/other") is None
    assert host.container("/system.slice/web.service") is None


@pytest.mark.parametrize("states", ["run/runc", "run/crun"])
def test_a_container_of_a_low_level_runtime_alone_is_called_by_its_id(host: Host, states: str) -> None:
    host.write(f"{states}/job/state.json", {})
    assert host.container("/user.slice/job") == Container("job", "job")


@pytest.mark.parametrize("storage", ["var/lib/containers/storage", "run/containers/storage"])
def test_cri_o_names_the_containers_of_pods(host: Host, storage: str) -> None:
    host.write(f"{storage}/overlay-containers/{ID}/userdata/config.json", bundle(annotations=CRIO))
    assert host.container(POD_PATH) == Container(ID, "app", "shop", "web-7f9-x2")


@pytest.mark.parametrize("driver", ["overlay", "vfs", "btrfs", "zfs"])
@pytest.mark.parametrize("index", ["containers.json", "volatile-containers.json"])
def test_podman_names_a_container_whatever_its_storage_driver(host: Host, driver: str, index: str) -> None:
    entries = [{"id": OTHER, "names": ["x"]}, "?", {"id": "y"}, {"id": ID, "names": ["cart"]}]
    host.write(f"var/lib/containers/storage/{driver}-containers/{index}", entries)
    annotations = {"io.container.manager": "libpod"}
    path = f"var/lib/containers/storage/{driver}-containers/{ID}/userdata/config.json"
    host.write(path, bundle(annotations=annotations))
    assert host.container(f"/machine.slice/libpod-{ID}.scope/container") == Container(ID, "cart")


def test_podman_is_asked_where_its_configuration_puts_the_storage(host: Host) -> None:
    host.write("etc/containers/storage.conf", '[storage]\ndriver = "overlay"\ngraphroot = "/srv/pods"\n')
    host.write("srv/pods/overlay-containers/containers.json", [{"id": ID, "names": ["cart"]}])
    assert host.container(f"/machine.slice/libpod-{ID}.scope") == Container(ID, "cart")


def test_a_users_podman_is_asked_in_the_home_directory(host: Host) -> None:
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
    storage = "home/ann/.local/share/containers/storage"
    host.write(f"{storage}/vfs-containers/containers.json", [{"id": ID, "names": ["mine"]}])
    user = "/user.slice/user-1000.slice/user@1000.service/user.slice"
    assert host.container(f"{user}/libpod-{ID}.scope/container") == Container(ID, "mine")
    assert host.container(f"/user.slice/user-1001.slice/libpod-{ID}.scope") == Container(ID)


def test_a_users_docker_and_containerd_are_asked_too(host: Host) -> None:
    host.write("etc/passwd", "ann:x:1000:1000::/home/ann:/bin/sh\n")
    host.write(f"home/ann/.local/share/docker/containers/{ID}/config.v2.json", {"Name": "/mine"})
    annotations = {"nerdctl/name": "cart"}
    task = f"run/user/1000/containerd/io.containerd.runtime.v2.task/default/{OTHER}/config.json"
    host.write(task, bundle(annotations=annotations))
    user = "/user.slice/user-1000.slice/user@1000.service"
    assert host.container(f"{user}/docker-{ID}.scope") == Container(ID, "mine")
    assert host.container(f"{user}/nerdctl-{OTHER}.scope") == Container(OTHER, "cart")


def conmon(storage: str, name: str = "cart", **facts: Any) -> ProcessFacts:
    bundle_path = f"{storage}/vfs-containers/{ID}/userdata"
    command = ("/usr/bin/conmon", "-c", ID, "-u", ID, "-r", "/usr/bin/crun", "-b", bundle_path, "-n", name)
    return in_cgroup("/", 7, exe="/usr/bin/conmon", cmdline=command, **facts)


def test_a_monitor_leads_to_the_storage_wherever_it_is(host: Host) -> None:
    host.write("mnt/pods/vfs-containers/containers.json", [{"id": ID, "names": ["renamed"]}])
    containers = host.containers()
    containers.notice(conmon("/mnt/pods"))
    assert containers.of(in_cgroup(f"/libpod_parent/libpod-{ID}")) == Container(ID, "renamed")


def test_a_monitor_names_the_container_where_files_do_not(host: Host) -> None:
    containers = host.containers()
    containers.notice(conmon("/mnt/pods"))
    assert containers.of(in_cgroup(f"/libpod_parent/libpod-{ID}")) == Container(ID, "cart")


def test_a_shim_shows_a_containerd_in_a_mount_namespace_of_its_own(host: Host) -> None:
    """As of a Kubernetes node that is itself a container, or of a user."""
    tasks = "run/containerd/io.containerd.runtime.v2.task/k8s.io"
    host.write(f"proc/9/root/{tasks}/{ID}/config.json", bundle(annotations=CRI))
    host.write("proc/9/ns/mnt", "")
    (host.root / "proc/9/cwd").symlink_to(f"/{tasks}/{OTHER}")
    containers = Containers(host.counters, "", str(host.root / "proc"))
    path = f"/docker/{OTHER}/kubelet{POD_PATH}"
    assert containers.of(in_cgroup(path)) == Container(ID)
    containers.notice(in_cgroup("/", 9, exe="/usr/bin/containerd-shim-runc-v2"))
    assert containers.of(in_cgroup(path)) == Container(ID, "app", "shop", "web-7f9-x2")


def test_a_shim_leads_to_its_containerds_state(host: Host) -> None:
    host.write(f"srv/cd/io.containerd.runtime.v2.task/default/{ID}/config.json", bundle(annotations=CRI))
    (host.root / "proc/9").mkdir(parents=True)
    host.write(f"srv/cd/io.containerd.runtime.v2.task/default/{OTHER}/config.json", bundle())
    (host.root / "proc/9/cwd").symlink_to(f"/srv/cd/io.containerd.runtime.v2.task/default/{OTHER}")
    containers = host.containers()
    containers.notice(in_cgroup("/", 9, exe="/usr/bin/containerd-shim-runc-v2"))
    assert containers.of(in_cgroup(POD_PATH)) == Container(ID, "app", "shop", "web-7f9-x2")


def test_a_rootless_container_without_a_cgroup_is_known_by_its_pid_namespace(host: Host) -> None:
    containers = host.containers()
    found = {
        7: conmon("/mnt/pods", pid_namespace=1),
        8: in_cgroup("/", 8, parent=7, pid_namespace=2),
        9: in_cgroup("/", 9, parent=8, pid_namespace=2),
        10: in_cgroup("/", 10, parent=7, pid_namespace=1),
    }
    placed = containers.place(found)
    assert {pid: facts.container for pid, facts in placed.items()} == {
        7: None,
        8: Container(ID, "cart"),
        9: Container(ID, "cart"),
        10: None,
    }
    containers.ended(ProcessKey(8, 1))  # and the kernel gives the namespace's number to another
    assert containers.of(in_cgroup("/", 11, pid_namespace=2)) is None


@pytest.mark.parametrize(
    "options", [("-M", "db"), ("--machine=db", "-D", "/srv/x"), ("-D", "/var/lib/machines/db"), ("--directory=/m/db/",)]
)
def test_a_machine_started_by_hand_is_known_by_its_supervisor(host: Host, options: tuple[str, ...]) -> None:
    command = ("systemd-nspawn", *options, "/sbin/init")
    supervisor = in_cgroup("/supervisor", 7, exe="/usr/bin/systemd-nspawn", cmdline=command, pid_namespace=1)
    placed = host.containers().place({7: supervisor, 8: in_cgroup("/payload", 8, parent=7, pid_namespace=2)})
    assert [facts.container for facts in placed.values()] == [None, Container("db", "db")]


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/lxc.payload.web/system.slice/nginx.service", "web/nginx"),
        ("/lxc.payload.web", "web"),
        ("/machine.slice/systemd-nspawn@db.service/payload/system.slice/nginx.service", "db/nginx"),
        ("/system.slice/nginx.service", "nginx"),
        (f"/docker/{ID}/system.slice/nginx.service", "shop/nginx"),
        (f"/docker/{ID}/init.scope", "shop"),
    ],
)
def test_a_unit_of_a_container_is_another_service_than_the_hosts(host: Host, path: str, service: str) -> None:
    host.write(f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/shop"})
    facts = in_cgroup(path, exe="/usr/sbin/nginx")
    assert service_name(replace(facts, container=host.containers().of(facts))) == service


def test_a_container_nobody_names_is_called_by_the_start_of_its_id(host: Host) -> None:
    found = host.container(f"/docker/{ID}")
    assert found is not None
    assert (found.name, found.service) == ("", ID[:12])


def test_a_name_that_comes_late_is_taken(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers_module, "_UNKNOWN_S", 0.0)
    containers = host.containers()
    assert containers.of(in_cgroup(f"/docker/{ID}")) == Container(ID)
    host.write(f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/shop"})
    assert containers.of(in_cgroup(f"/docker/{ID}")) == Container(ID, "shop")


def test_a_name_stays_when_the_container_is_gone(host: Host) -> None:
    config = host.write(f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/shop"})
    containers = host.containers()
    assert containers.of(in_cgroup(f"/docker/{ID}")) == Container(ID, "shop")
    config.unlink()
    assert containers.of(in_cgroup(f"/docker/{ID}")) == Container(ID, "shop")


def test_what_is_known_of_containers_is_bounded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers_module, "MAX_KNOWN", 3)
    containers = host.containers()
    for number in range(10):
        container_id = f"{number:064x}"
        host.write(f"var/lib/docker/containers/{container_id}/config.v2.json", {"Name": f"/c{number}"})
        assert containers.of(in_cgroup(f"/docker/{container_id}")) == Container(container_id, f"c{number}")
        containers.of(in_cgroup(f"/docker/{number + 100:064x}"))
        containers.of(in_cgroup(f"/nothing/{number}"))
    sizes = {name: len(kept) for name, kept in vars(containers).items() if name in {"_known", "_by_path", "_unknown"}}
    assert sizes == {"_known": 3, "_by_path": 0, "_unknown": 3}


# -- files are foreign input --


def test_broken_files_are_counted_and_name_nothing(host: Host) -> None:
    config = f"var/lib/docker/containers/{ID}/config.v2.json"
    for content in ("not json", "[" * 100_000, '{"Name": '):
        host.write(config, content)
        assert host.container(f"/docker/{ID}") == Container(ID)
    assert host.refused() == {"malformed": 3}


@pytest.mark.parametrize(
    "content", ["null", "7", "[]", '"/shop"', "{}", '{"Name": 7}', '{"Name": null, "Config": [1]}', '{"Config": null}']
)
def test_json_of_another_shape_names_nothing(host: Host, content: str) -> None:
    host.write(f"var/lib/docker/containers/{ID}/config.v2.json", content)
    host.write(f"{CONTAINERD}/k8s.io/{ID}/config.json", content)
    host.write("var/lib/containers/storage/overlay-containers/containers.json", content)
    host.write(f"var/lib/containers/storage/overlay-containers/{ID}/userdata/config.json", content)
    assert host.container(f"/docker/{ID}") == Container(ID)
    assert host.refused() == {}


def test_a_path_no_file_can_have_is_refused(host: Host) -> None:
    mounts = [{"source": f"/a\0b/{ID}/hostname"}]
    host.write(f"{CONTAINERD}/moby/{ID}/config.json", bundle(mounts=mounts))
    assert host.container(f"/docker/{ID}") == Container(ID)
    assert host.refused() == {"unreadable": 1}


def test_a_file_too_large_is_not_used(host: Host) -> None:
    host.write(f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/shop", "x": "y" * (1 << 20)})
    assert host.container(f"/docker/{ID}") == Container(ID)
    assert host.refused() == {"too_large": 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_a_file_of_a_user_may_be_smaller_only(host: Host) -> None:
    index = host.write("var/lib/containers/storage/vfs-containers/containers.json", [{"id": ID, "names": ["cart"]}])
    index.write_text(index.read_text() + " " * (1 << 20))
    path = f"/machine.slice/libpod-{ID}.scope"
    assert host.container(path) == Container(ID, "cart")
    os.chown(index, 1000, 1000)
    assert host.container(path) == Container(ID)
    assert host.refused() == {"too_large": 1}


def test_a_symbolic_link_is_not_followed(host: Host) -> None:
    secret = host.write("root/secret.json", {"Name": "/secret"})
    config = host.root / f"var/lib/docker/containers/{ID}/config.v2.json"
    config.parent.mkdir(parents=True)
    config.symlink_to(secret)
    assert host.container(f"/docker/{ID}") == Container(ID)
    config.unlink()
    config.parent.rmdir()
    (host.root / "elsewhere").mkdir()
    host.write("elsewhere/config.v2.json", {"Name": "/secret"})
    config.parent.symlink_to(host.root / "elsewhere")
    assert host.container(f"/docker/{ID}") == Container(ID)
    assert host.refused() == {"symlink": 2}


def test_a_fifo_holds_nobody_up(host: Host) -> None:
    directory = host.root / f"var/lib/docker/containers/{ID}"
    directory.mkdir(parents=True)
    os.mkfifo(directory / "config.v2.json")
    assert host.container(f"/docker/{ID}") == Container(ID)
    assert host.refused() == {"irregular": 1}


def test_a_name_is_made_fit_to_be_shown(host: Host) -> None:
    host.write(f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/a\x1b[31m\nb" + "c" * 1000})
    found = host.container(f"/docker/{ID}")
    assert found is not None
    assert found.name.startswith("a?[31m?bc")
    assert len(found.name) < 254


def test_a_name_out_of_a_path_is_made_fit_to_be_shown(host: Host) -> None:
    found = host.container("/lxc.payload.a\x1b[31m\nb")
    assert found == Container("a?[31m?b", "a?[31m?b")


def test_a_process_without_a_container_is_the_hosts() -> None:
    assert Containers(root="/nowhere").of(ProcessFacts(ProcessKey(1, 1), cgroup=Cgroup("/user.slice"))) is None


_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just(f"/a\0b/{ID}/hostname")
_KEYS = st.sampled_from(
    ["Name", "Config", "Labels", "annotations", "mounts", "source", "id", "names", "data-root", *CRI, *CRIO]
)
ANYTHING = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6), max_leaves=20
)
FILES = [
    "etc/docker/daemon.json",
    f"var/lib/docker/containers/{ID}/config.v2.json",
    f"{CONTAINERD}/k8s.io/{ID}/config.json",
    "var/lib/containers/storage/overlay-containers/containers.json",
    f"var/lib/containers/storage/overlay-containers/{ID}/userdata/config.json",
]


@given(st.sampled_from(FILES), ANYTHING | st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_whatever_is_in_a_file_a_container_has_a_name_fit_to_be_shown(path: str, content: object) -> None:
    with tempfile.TemporaryDirectory() as root:
        host = Host(Path(root))
        host.write(path, content.decode(errors="replace") if isinstance(content, bytes) else json.dumps(content))
        found = host.container(f"/docker/{ID}")
    assert found is not None
    assert found.service.isprintable()
    assert found.id == ID


def test_one_process_can_be_looked_at_alone() -> None:
    facts = read_process(os.getpid())
    assert facts is not None
    assert replace(contained(facts), container=None) == facts
