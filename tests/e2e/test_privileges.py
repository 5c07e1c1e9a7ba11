# SPDX-License-Identifier: Apache-2.0
"""The agent keeps the privileges it needs and no others, and does its work with them, also as another user."""

from __future__ import annotations

import pwd
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import psutil
import pytest

from rover_plugin.capture.confinement import names_of
from rover_plugin.host.privileges import KEPT, kept_capabilities
from tests.support.agent import Agent, only_with
from tests.support.servers import tool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Nginx

USER = "nobody"


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """A folder of that user's, in one that it can reach."""
    folder = Path(mkdtemp(prefix="rover-privileges-"))
    entry = pwd.getpwnam(USER)
    shutil.chown(folder, entry.pw_uid, entry.pw_gid)
    yield folder
    shutil.rmtree(folder)


def status(pid: int, name: str) -> str:
    found = re.search(rf"^{name}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def assert_confined(agent: Agent, user: str) -> None:
    """The host holds what it keeps; each worker may use maps, and makes few system calls."""
    uid = str(pwd.getpwnam(user).pw_uid)
    workers = [
        child for child in psutil.Process(agent.pid).children() if "rover_plugin.access_log.worker" in child.cmdline()
    ]
    assert len(workers) >= 1
    host = set(names_of(int(status(agent.pid, "CapEff"), 16)))
    assert host == set(kept_capabilities()) & host
    assert {"bpf", "perfmon", "sys_ptrace"} <= host
    for worker in workers:
        assert names_of(int(status(worker.pid, "CapEff"), 16)) == ["bpf"]
        assert status(worker.pid, "Seccomp") == "2"
    for pid in (agent.pid, *(worker.pid for worker in workers)):
        assert status(pid, "NoNewPrivs") == "1"
        assert set(names_of(int(status(pid, "CapBnd"), 16))) <= {*kept_capabilities()}
        assert status(pid, "Uid").split() == [uid] * 4


def log_an_exchange(agent: Agent, nginx: Nginx, path: str) -> None:
    subprocess.run([tool("curl"), "-s", nginx.url(path)], check=True, capture_output=True)
    found = agent.wait_for_exchanges(lambda item: item["path"] == path, 2)
    assert {item["role"] for item in found} == {"client", "server"}
    assert {item["local"]["service"] for item in found} >= {"nginx"}


def test_root_keeps_what_it_needs_and_logs(tmp_path: Path, nginx: Nginx) -> None:
    with Agent(tmp_path, "jsonl", only_with(nginx.port)) as agent:
        assert_confined(agent, "root")
        log_an_exchange(agent, nginx, "/as-root")
        assert agent.stop() == 0, agent.text


def test_another_user_with_the_kept_capabilities_logs_other_users_servers(own_folder: Path, nginx: Nginx) -> None:
    with Agent(own_folder, "jsonl", f"privileges.user={USER}", only_with(nginx.port)) as agent:
        assert_confined(agent, USER)
        log_an_exchange(agent, nginx, "/as-nobody")
        assert agent.stop() == 0, agent.text


def test_what_is_kept_says_what_it_is_for() -> None:
    assert all(KEPT.values())
