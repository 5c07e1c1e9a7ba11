# SPDX-License-Identifier: Apache-2.0
"""Processes of real containers go by the container's name, however short they live."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.agent import Agent
from tests.support.runtimes import Containerd, Podman, run_lxc, run_nspawn, unpacked, user_with_subordinate_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Nginx

FETCH = ("/bin/wget", "-q", "-O", "/dev/null")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Watches containers only; every test asks for other paths."""
    only_containers = "process_discovery.local.include=container~=."
    with Agent(tmp_path_factory.mktemp("agent"), "jsonl", only_containers) as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    """For runtimes: with a short path, as it is also that of sockets, and open to users."""
    path = Path(tempfile.mkdtemp(prefix="rover-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def assert_named(agent: Agent, names: dict[str, str]) -> None:
    """Every path was asked for by a client of this name."""
    found = agent.wait_for_exchanges(lambda item: item["role"] == "client" and item["path"] in names, len(names))
    assert {item["path"]: item["local"].get("service") for item in found} == names


def test_programs_that_run_10_ms_in_containers_of_containerd_are_all_named(
    folder: Path, agent: Agent, nginx: Nginx
) -> None:
    names = {}
    with Containerd(folder / "containerd") as containerd:
        containerd.start("web", "/bin/sleep", "600")
        for number in range(90):
            containerd.execute("web", *FETCH, nginx.url(f"/containerd/exec/{number}"))
            names[f"/containerd/exec/{number}"] = "web"
        for number in range(10):
            containerd.run(f"job{number}", *FETCH, nginx.url(f"/containerd/run/{number}"))
            names[f"/containerd/run/{number}"] = f"job{number}"
    assert_named(agent, names)


def fetch_in_podman(podman: Podman, nginx: Nginx, prefix: str) -> dict[str, str]:
    names = {}
    podman.start("web", "/bin/sleep", "600")
    for number in range(5):
        podman.execute("web", *FETCH, nginx.url(f"{prefix}/exec/{number}"))
        podman.run(f"job{number}", *FETCH, nginx.url(f"{prefix}/run/{number}"))
        names |= {f"{prefix}/exec/{number}": "web", f"{prefix}/run/{number}": f"job{number}"}
    return names


@pytest.mark.parametrize("driver", ["vfs", "overlay"])
def test_programs_in_containers_of_podman_are_named(folder: Path, agent: Agent, nginx: Nginx, driver: str) -> None:
    with Podman(folder / "podman", driver) as podman:
        names = fetch_in_podman(podman, nginx, f"/{driver}")
    assert_named(agent, names)


def test_programs_in_containers_of_a_users_podman_are_named(folder: Path, agent: Agent, nginx: Nginx) -> None:
    """With cgroups v1 these have no cgroup of their own."""
    with user_with_subordinate_ids() as user, Podman(folder / "podman", user=user) as podman:
        names = fetch_in_podman(podman, nginx, "/user")
    assert_named(agent, names)


def test_programs_in_lxc_and_nspawn_are_named(folder: Path, agent: Agent, nginx: Nginx) -> None:
    root, names = unpacked(folder / "root"), {}
    for number in range(5):
        run_lxc(folder / "lxc", root, f"lxc{number}", *FETCH, nginx.url(f"/lxc/{number}"))
        run_nspawn(root, f"ns{number}", *FETCH, nginx.url(f"/nspawn/{number}"))
        names |= {f"/lxc/{number}": f"lxc{number}", f"/nspawn/{number}": f"ns{number}"}
    assert_named(agent, names)
