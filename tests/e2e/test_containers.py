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

ONLY_CONTAINERS = "process_discovery.local.include=container~=."
FETCH = ("/bin/wget", "-q", "-O", "/dev/null")


@pytest.fixture
def folder() -> Iterator[Path]:
    """For runtimes: with a short path, as it is also that of sockets, and open to users."""
    path = Path(tempfile.mkdtemp(prefix="rover-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def clients(agent: Agent, count: int) -> dict[str, str | None]:
    """Path to the name of the client that asked for it."""
    found = agent.wait_for_exchanges(lambda item: item["role"] == "client", count)
    return {item["path"]: item["local"].get("service") for item in found}


def test_programs_that_run_10_ms_in_containers_of_containerd_are_all_named(
    folder: Path, tmp_path: Path, nginx: Nginx
) -> None:
    with Containerd(folder / "containerd") as containerd, Agent(tmp_path, "jsonl", ONLY_CONTAINERS) as agent:
        containerd.start("web", "/bin/sleep", "600")
        for number in range(90):
            containerd.execute("web", *FETCH, nginx.url(f"/exec/{number}"))
        for number in range(10):
            containerd.run(f"job{number}", *FETCH, nginx.url(f"/run/{number}"))
        expected = {f"/exec/{number}": "web" for number in range(90)} | {f"/run/{n}": f"job{n}" for n in range(10)}
        assert clients(agent, 100) == expected


@pytest.mark.parametrize("driver", ["vfs", "overlay"])
def test_programs_in_containers_of_podman_are_named(folder: Path, tmp_path: Path, nginx: Nginx, driver: str) -> None:
    with Podman(folder / "podman", driver) as podman, Agent(tmp_path, "jsonl", ONLY_CONTAINERS) as agent:
        podman.start("web", "/bin/sleep", "600")
        for number in range(5):
            podman.execute("web", *FETCH, nginx.url(f"/exec/{number}"))
            podman.run(f"job{number}", *FETCH, nginx.url(f"/run/{number}"))
        expected = {f"/exec/{n}": "web" for n in range(5)} | {f"/run/{n}": f"job{n}" for n in range(5)}
        assert clients(agent, 10) == expected


def test_programs_in_containers_of_a_users_podman_are_named(folder: Path, tmp_path: Path, nginx: Nginx) -> None:
    """With cgroups v1 these have no cgroup of their own."""
    for user in user_with_subordinate_ids():
        with Podman(folder / "podman", user=user) as podman, Agent(tmp_path, "jsonl", ONLY_CONTAINERS) as agent:
            podman.start("web", "/bin/sleep", "600")
            for number in range(5):
                podman.execute("web", *FETCH, nginx.url(f"/exec/{number}"))
                podman.run(f"job{number}", *FETCH, nginx.url(f"/run/{number}"))
            expected = {f"/exec/{n}": "web" for n in range(5)} | {f"/run/{n}": f"job{n}" for n in range(5)}
            assert clients(agent, 10) == expected


def test_programs_in_lxc_and_nspawn_are_named(folder: Path, tmp_path: Path, nginx: Nginx) -> None:
    root = unpacked(folder / "root")
    run_lxc(folder / "lxc", root, "try", "/bin/true")
    run_nspawn(root, "try", "/bin/true")
    with Agent(tmp_path, "jsonl", ONLY_CONTAINERS) as agent:
        for number in range(5):
            run_lxc(folder / "lxc", root, f"lxc{number}", *FETCH, nginx.url(f"/lxc/{number}"))
            run_nspawn(root, f"ns{number}", *FETCH, nginx.url(f"/nspawn/{number}"))
        expected = {f"/lxc/{n}": f"lxc{n}" for n in range(5)} | {f"/nspawn/{n}": f"ns{n}" for n in range(5)}
        assert clients(agent, 10) == expected
