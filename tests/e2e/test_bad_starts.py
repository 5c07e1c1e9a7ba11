# SPDX-License-Identifier: Apache-2.0
"""A host that cannot work says so in one clear line with what to do, exits with the documented code, has no traceback.

What is missing is really missing: in a mount namespace of its own, hidden behind an empty file system.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.agent import ROOT
from tests.support.servers import tool

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = str(Path(sys.executable).parent / "rover-host")
# Root without a capability may do what any user may, and reads this checkout wherever it lies.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def start(
    folder: Path, *settings: str, before: tuple[str, ...] = (), env: dict[str, str] | None = None, code: int = 1
) -> str:
    """Runs the host, which must give up with this exit code; returns its last line."""
    command = [*before, HOST, "--modules", "access_log", "--config", "contrib/standalone.toml"]
    for setting in (f"process_discovery.feed.socket={folder}/feed.sock", *settings):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def hiding(*paths: str, file: str = "") -> tuple[str, ...]:
    """A command prefix: the rest runs where these folders are empty, and `file` cannot be run."""
    mounts = [f"mount -t tmpfs none {path}" for path in paths]
    if file:
        mounts.append(f"mount --bind /dev/null {file}")
    return ("unshare", "--mount", "sh", "-e", "-c", "; ".join([*mounts, 'exec "$@"']), "sh")


def bcc_folder() -> str:
    return str(next(path for path in Path("/usr/lib").glob("python3*/*-packages/bcc")))


def test_without_privileges(tmp_path: Path) -> None:
    line = start(tmp_path, before=UNPRIVILEGED)
    assert line == (
        "rover-host: module access_log could not start: not allowed to use BPF: run as root, or with CAP_BPF, "
        "CAP_PERFMON and CAP_SYS_PTRACE (CAP_SYS_ADMIN before kernel 5.8)"
    )


@pytest.mark.parametrize("proc", [("--mount-proc",), ()])
def test_in_a_pid_namespace_of_its_own(tmp_path: Path, proc: tuple[str, ...]) -> None:
    """With a /proc of that namespace, and with the host's, where numbers mean yet other processes."""
    line = start(tmp_path, before=("unshare", "--pid", "--fork", *proc))
    assert "pid namespace of its own" in line
    assert "--pid=host" in line


def test_without_bcc(tmp_path: Path) -> None:
    line = start(tmp_path, before=hiding(bcc_folder()))
    assert "apt install python3-bpfcc" in line


def test_with_the_other_bcc(tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("'''PyPI has a project of this name.'''\n")
    line = start(tmp_path, before=("env", f"PYTHONPATH={tmp_path}", *hiding(bcc_folder())))
    assert "apt install python3-bpfcc" in line


def test_without_btf(tmp_path: Path) -> None:
    line = start(tmp_path, before=hiding("/sys/kernel/btf"))
    assert "no BTF" in line
    assert "CONFIG_DEBUG_INFO_BTF" in line


def test_without_bpftool(tmp_path: Path) -> None:
    line = start(tmp_path, before=hiding("/var/cache", file=tool("bpftool")))
    assert "bpftool" in line


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("access_log.protocol_analyze.parallels", "9", "9 is more than 8"),
        ("access_log.protocol_analyze.per_cpu_buffer", "100GB", "100GB is more than 64MB"),
        ("access_log.connections.max", "2000000000", "2000000000 is more than 4194304"),
        ("access_log.feed", "localhost:0", "has a port that is not 1-65535"),
        ("core.backend.addr", "a:1,127.0.0.1:99999", "'127.0.0.1:99999' has a port that is not 1-65535"),
        ("process_discovery.feed.tcp", "127.0.0.1:70000", "has a port that is not 1-65535"),
        ("telemetry.listen", ":65536", "has a port that is not 0-65535"),
    ],
)
def test_with_a_value_that_can_never_work(tmp_path: Path, key: str, value: str, said: str) -> None:
    line = start(tmp_path, f"{key}={value}", code=2)
    assert line.startswith(f"rover-host: --set: bad value for {key}: ")
    assert said in line


@pytest.fixture
def memory_limit() -> Iterator[Path]:
    """A memory cgroup (v1, or v2) with less than a start needs; its `cgroup.procs`."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"rover-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
        if (group / limit).exists():
            (group / limit).write_text(str(110 << 20))
            yield group / "cgroup.procs"
            group.rmdir()
            return
        with contextlib.suppress(OSError):
            group.rmdir()
    pytest.skip("no memory cgroup can be made")


def test_with_less_memory_than_the_build_needs(tmp_path: Path, memory_limit: Path) -> None:
    """The compiler is the largest of all that starts, so it is what the kernel ends."""
    line = start(tmp_path, before=("sh", "-c", f'echo $$ > {memory_limit}; exec "$@"', "sh"))
    assert "want of memory" in line
    assert "raise the memory limit" in line


def test_with_an_output_file_that_cannot_be_written(tmp_path: Path) -> None:
    line = start(tmp_path, "access_log.outputs=jsonl", f"access_log.jsonl.path={tmp_path}/missing/log")
    assert "access_log.jsonl.path" in line


def test_with_a_rule_that_is_none(tmp_path: Path) -> None:
    line = start(tmp_path, "process_discovery.local.include=nginx")
    assert "process_discovery.local.include" in line
    assert "--set" in line
