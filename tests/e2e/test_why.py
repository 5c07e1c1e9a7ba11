# SPDX-License-Identifier: Apache-2.0
"""`rover-host why PID`: each reason, shown on a real process; asked of a real host, of a feed, and of settings."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from click.testing import CliRunner

from rover_plugin.capture.session import MAX_PROCESSES
from rover_plugin.host.cli import cli
from rover_plugin.host.why import TLS_PORTS
from tests.support.agent import ROOT, ROVER_HOST, Agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Nginx

_NOBODY = 65534
_TCP = "import socket; s = socket.create_server(('127.0.0.1', 0))"
_ACTIVE = ("access_log.active=true", "process_discovery.local.active=true")


def ask(pid: int, folder: Path, *settings: str, **options: Any) -> dict[str, Any]:
    """The answer, by settings whose feed socket is `folder`'s; with options, as another process gives it."""
    command = ["why", str(pid), "--json"]
    for setting in (f"process_discovery.feed.socket={folder}/feed.sock", *_ACTIVE, *settings):
        command += ["--set", setting]
    if options:
        done = subprocess.run([ROVER_HOST, *command], capture_output=True, text=True, check=False, **options)
        code, said, errors = done.returncode, done.stdout, done.stderr
    else:
        result = CliRunner().invoke(cli, command)
        code, said, errors = result.exit_code, result.stdout, result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert said, errors
    answer: dict[str, Any] = json.loads(said)
    assert code == (0 if answer["logged"] else 1)
    return answer


def reason(pid: int, folder: Path, *settings: str, **options: Any) -> str:
    """The reason alone."""
    return str(ask(pid, folder, *settings, **options)["reason"])


@contextmanager
def running(code: str) -> Iterator[int]:
    """A Python process that has done `code` and waits; its pid."""
    program = f"import sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def feed(
    folder: Path, pid: int, *, namespace: str = "", service: str = "shop", selected: bool = True, pad: int = 0
) -> Iterator[None]:
    """A host's feed, in another process, that lists `pid`."""
    item = {"pid": pid, "namespace": namespace, "service": service, "selected": selected}
    command = [sys.executable, "-m", "tests.support.feed_host", f"{folder}/feed.sock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"processes": [item], "pad": pad}) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield
        process.stdin.close()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    structlog.reset_defaults()


# -- what it is --


def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    with running("") as pid:
        pass
    assert reason(pid, tmp_path) == "no_such_process"


def test_a_thread_names_its_process(tmp_path: Path) -> None:
    code = "import threading\nt = threading.Thread(target=threading.Event().wait, daemon=True)\nt.start()"
    with running(code) as pid:
        thread = next(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir() if entry.name != str(pid))
        answer = ask(thread, tmp_path)
    assert (answer["reason"], answer["hint"]) == ("thread", f"ask for {pid}")


def test_a_thread_of_the_kernel(tmp_path: Path) -> None:
    if Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("this pid namespace has no threads of the kernel")
    assert reason(2, tmp_path) == "kernel_thread"


def test_a_process_that_has_ended_and_was_not_reaped(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert reason(process.pid, tmp_path) == "ended"
    process.wait()


def test_a_32_bit_program(tmp_path: Path) -> None:
    # pause(2) for ever, by the system calls of i386.
    code = bytes.fromhex("b81d000000cd80ebf7")
    base, size = 0x08048000, 52 + 32
    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + size, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    head += struct.pack("<IIIIIIII", 1, 0, base, base, size + len(code), size + len(code), 5, 0x1000)
    program = tmp_path / "small"
    program.write_bytes(head + code)
    program.chmod(0o755)
    try:
        process = subprocess.Popen([str(program)])
    except OSError:
        pytest.skip("this kernel runs no 32-bit programs")
    try:
        assert reason(process.pid, tmp_path) == "32_bit"
    finally:
        process.kill()
        process.wait()


# -- what it has open --


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", "no_sockets"),
        ("import socket; s = socket.socketpair()", "unix_sockets_only"),
        ("import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))", "no_tcp"),
        (_TCP, "would_be_logged"),
    ],
)
def test_what_a_process_has_open_towards_others(tmp_path: Path, code: str, expected: str) -> None:
    with running(code) as pid:
        assert reason(pid, tmp_path) == expected


def test_a_server_on_a_port_of_tls(tmp_path: Path) -> None:
    ports = sorted(TLS_PORTS, reverse=True)
    code = f"""
import socket
for port in {ports}:
    try:
        s = socket.create_server(("127.0.0.1", port))
        break
    except OSError:
        pass
"""
    with running(code) as pid:
        assert reason(pid, tmp_path) == "tls_only"


def test_a_process_with_an_io_uring(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(425, 2, ctypes.create_string_buffer(120))
    if descriptor < 0:
        pytest.skip(f"no io_uring here: {os.strerror(ctypes.get_errno())}")
    os.close(descriptor)
    code = f"import ctypes; {_TCP}; ctypes.CDLL(None).syscall(425, 2, ctypes.create_string_buffer(120))"
    with running(code) as pid:
        assert reason(pid, tmp_path) == "io_uring"


# -- what the settings say, where no host runs --


@pytest.mark.parametrize("rule", ["exclude=cmdline~=create_server", "include=exe=nginx"])
def test_a_rule_that_leaves_it_out_is_named_with_where_it_was_set(tmp_path: Path, rule: str) -> None:
    with running(_TCP) as pid:
        answer = ask(pid, tmp_path, f"process_discovery.local.{rule}")
    assert answer["reason"] == {"exclude": "excluded_by_rule", "include": "not_included"}[rule.partition("=")[0]]
    assert rule.partition("=")[2] in answer["detail"]
    assert "(set by --set" in answer["detail"]
    assert answer["asked"] == "settings"


def test_a_rule_that_includes_it(tmp_path: Path) -> None:
    with running(_TCP) as pid:
        assert reason(pid, tmp_path, "process_discovery.local.include=cmdline~=create_server") == "would_be_logged"


def test_settings_under_which_nothing_is_logged(tmp_path: Path) -> None:
    with running(_TCP) as pid:
        assert reason(pid, tmp_path, "access_log.active=false") == "access_log_inactive"
        assert reason(pid, tmp_path, "process_discovery.local.active=false") == "no_finder_active"


def test_a_user_who_may_not(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    with running(_TCP) as pid:
        user: dict[str, Any] = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        assert reason(pid, tmp_path, **user) == "not_root"
        with feed(tmp_path, pid):
            answer = ask(pid, tmp_path, **user)
    assert answer["reason"] == "not_root"
    assert "may not ask the running host" in answer["detail"]


# -- what a running host says --


def test_a_feed_that_was_named_and_is_not_there(tmp_path: Path) -> None:
    with running(_TCP) as pid:
        assert reason(pid, tmp_path, f"access_log.feed=unix:{tmp_path}/none.sock") == "feed_unreachable"
        assert reason(pid, tmp_path, "access_log.feed=127.0.0.1:1") == "feed_unreachable"


def test_a_process_the_feed_lists(tmp_path: Path) -> None:
    with running(_TCP) as pid, feed(tmp_path, pid):
        answer = ask(pid, tmp_path)
    assert (answer["reason"], answer["asked"]) == ("logged", f"{tmp_path}/feed.sock")
    assert "service shop" in answer["detail"]


def test_a_process_the_feed_does_not_list(tmp_path: Path) -> None:
    with running(_TCP) as pid, running("") as other, feed(tmp_path, other):
        assert reason(pid, tmp_path) == "not_listed"


def test_a_process_the_host_leaves_out_by_settings_not_given_here(tmp_path: Path) -> None:
    with running(_TCP) as pid, feed(tmp_path, pid, selected=False):
        assert reason(pid, tmp_path) == "not_selected"
        assert reason(pid, tmp_path, "process_discovery.local.exclude=cmdline~=create_server") == "excluded_by_rule"


def test_a_namespace_and_a_cluster_that_are_excluded(tmp_path: Path) -> None:
    with running(_TCP) as pid, feed(tmp_path, pid, namespace="kube-system"):
        answer = ask(pid, tmp_path)
    assert answer["reason"] == "excluded_namespace"
    assert "kube-system" in answer["detail"]
    with running(_TCP) as pid, feed(tmp_path, pid, service="east::shop"):
        assert reason(pid, tmp_path) == "logged"
        assert reason(pid, tmp_path, "access_log.exclude_cluster=east") == "excluded_cluster"


def test_a_table_of_processes_that_is_full(tmp_path: Path) -> None:
    with running(_TCP) as pid, feed(tmp_path, pid, pad=MAX_PROCESSES):
        assert reason(pid, tmp_path) == "process_table_full"


def test_a_running_agent_says_what_it_logs_and_what_not(tmp_path: Path, nginx: Nginx) -> None:
    with (
        running(_TCP) as left_out,
        Agent(tmp_path, "jsonl", "process_discovery.local.exclude=cmdline~=create_server") as agent,
    ):
        assert reason(nginx.pid, tmp_path) == "logged"
        assert reason(left_out, tmp_path) == "not_selected"
        assert (
            reason(left_out, tmp_path, "process_discovery.local.exclude=cmdline~=create_server") == "excluded_by_rule"
        )
        assert reason(agent.pid, tmp_path) == "rover_itself"
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        assert {reason(int(child), tmp_path) for child in children} == {"rover_itself"}


# -- for people --


def test_it_is_said_in_words_and_by_the_exit_code(tmp_path: Path) -> None:
    def say(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [ROVER_HOST, "why", *arguments, "--set", f"process_discovery.feed.socket={tmp_path}/feed.sock"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with running(_TCP) as pid, feed(tmp_path, pid):
        done = say(str(pid))
        assert (done.returncode, done.stdout) == (0, "logged  the running host watches it as service shop\n")
    done = say(str(pid))
    assert (done.returncode, done.stdout) == (1, f"not logged  there is no process {pid}\n")
    for wrong in ("nginx", "0", "-1"):
        assert say("--", wrong).returncode == 2
    assert say().returncode == 2
    assert say("1", "--set", "access_log.wrong=1").returncode == 2
