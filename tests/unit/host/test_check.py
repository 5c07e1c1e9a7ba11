# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import structlog
from click.testing import CliRunner

from rover_plugin.capture import headers, plan, privileges, session
from rover_plugin.discovery.cgroup_tree import Hierarchy
from rover_plugin.errors import CaptureError
from rover_plugin.host import check
from rover_plugin.host.check import Finding, Status
from rover_plugin.host.cli import cli
from rover_plugin.host.commands import check as command
from rover_plugin.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONSOLE = load(environ={}, overrides=["access_log.outputs=console"])


@pytest.fixture(autouse=True)
def forget_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def kernel_release(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def pretend(release: str) -> None:
        names = os.uname()
        monkeypatch.setattr(
            os, "uname", lambda: os.uname_result((names.sysname, names.nodename, release, "", names.machine))
        )

    return pretend


@pytest.mark.parametrize(
    ("release", "status"),
    [("5.7.19-amd64", Status.FAIL), ("5.8", Status.OK), ("5.10.0-28", Status.OK), ("6.18.44-fc", Status.OK)],
)
def test_the_kernel_must_have_ring_buffers(kernel_release: Callable[[str], None], release: str, status: Status) -> None:
    kernel_release(release)
    (finding,) = check.kernel(CONSOLE)
    assert (finding.status, finding.detail) == (status, release)


@pytest.mark.parametrize(
    ("namespace", "own", "reason"),
    [
        (True, True, ""),
        (True, False, "is of another pid namespace"),
        (False, True, "in a pid namespace of its own"),
        (None, True, "is of another pid namespace"),
    ],
)
def test_a_pid_namespace_of_our_own_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: bool | None, own: bool, reason: str
) -> None:
    number = os.getpid() if own else os.getpid() + 1
    (tmp_path / f"{number}/ns").mkdir(parents=True)
    (tmp_path / f"{number}/ns/pid").touch()
    if namespace is not None:
        (tmp_path / "self").symlink_to(str(number))
    inode = (tmp_path / f"{number}/ns/pid").stat().st_ino
    monkeypatch.setattr(privileges, "_INITIAL_PID_NAMESPACE", inode if namespace else inode + 1)
    monkeypatch.setattr(check, "foreign_pid_namespace", lambda: privileges.foreign_pid_namespace(tmp_path))
    (finding,) = check.pid_namespace(CONSOLE)
    assert finding.status is (Status.FAIL if reason else Status.OK)
    assert reason in finding.detail
    assert ("hostPID" in finding.hint) == bool(reason)


@pytest.mark.parametrize(("trees", "status"), [((Hierarchy(0, "/sys/fs/cgroup"),), Status.OK), ((), Status.WARN)])
def test_cgroups_that_cannot_be_seen_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, trees: tuple[Hierarchy, ...], status: Status
) -> None:
    monkeypatch.setattr(check, "hierarchies", lambda: trees)
    (finding,) = check.cgroups(CONSOLE)
    assert finding.status is status
    assert bool(finding.hint) == (status is Status.WARN)


def test_missing_btf_fails_with_what_to_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_BTF", tmp_path / "vmlinux")
    (finding,) = check.btf(CONSOLE)
    assert finding.status is Status.FAIL
    assert "CONFIG_DEBUG_INFO_BTF" in finding.hint
    (tmp_path / "vmlinux").touch()
    assert [finding.status for finding in check.btf(CONSOLE)] == [Status.OK]


ADMIN, BPF, PERFMON, PTRACE = 1 << 21, 1 << 39, 1 << 38, 1 << 19


@pytest.mark.parametrize(
    ("effective", "statuses"),
    [
        (0, [Status.FAIL, Status.WARN]),
        (BPF | PTRACE, [Status.FAIL]),
        (PERFMON | PTRACE, [Status.FAIL]),
        (BPF | PERFMON | PTRACE, [Status.OK]),
        (BPF | PERFMON, [Status.OK, Status.WARN]),
        (ADMIN | PTRACE, [Status.OK]),
    ],
)
def test_capabilities_suffice_or_the_missing_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effective: int, statuses: list[Status]
) -> None:
    status_file = tmp_path / "status"
    status_file.write_text(f"Name:\tx\nCapEff:\t{effective:016x}\nCapBnd:\tffffffffffffffff\n")
    monkeypatch.setattr(privileges, "STATUS", status_file)
    findings = list(check.privileges(CONSOLE))
    assert [finding.status for finding in findings] == statuses
    assert all(("CAP_" in finding.hint) == (finding.status is not Status.OK) for finding in findings)


def test_what_is_kept_of_the_privileges_is_said_and_keeping_all_is_a_warning() -> None:
    (kept,) = check.kept_privileges(CONSOLE)
    assert kept.status is Status.OK
    assert "workers: bpf, seccomp" in kept.detail
    (everything,) = check.kept_privileges(load(environ={}, overrides=["privileges.drop=false"]))
    assert everything.status is Status.WARN
    assert "privileges.drop" in everything.hint


@pytest.mark.parametrize(
    ("mode", "count"), [("none integrity [confidentiality]", 1), ("none [integrity] confidentiality", 0)]
)
def test_only_a_confidential_lockdown_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, count: int
) -> None:
    (tmp_path / "lockdown").write_text(mode)
    monkeypatch.setattr(check, "_LOCKDOWN", tmp_path / "lockdown")
    assert [finding.status for finding in check.lockdown(CONSOLE)] == [Status.FAIL] * count


def test_a_kernel_without_lockdown_is_not_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_LOCKDOWN", tmp_path / "lockdown")
    assert list(check.lockdown(CONSOLE)) == []


def test_another_project_called_bcc_is_told_from_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc.py").write_text("__version__ = '1'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    (finding,) = check.bcc(CONSOLE)
    sys.modules.pop("bcc", None)
    assert finding.status is Status.FAIL
    assert "another project" in finding.detail
    assert "python3-bpfcc" in finding.hint


def test_the_right_bcc_is_shown_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc.py").write_text("__version__ = '0.26.0'\nclass BPF: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    (finding,) = check.bcc(CONSOLE)
    sys.modules.pop("bcc", None)
    assert (finding.status, finding.detail) == (Status.OK, f"0.26.0 at {tmp_path}/bcc.py")


@pytest.mark.parametrize(
    ("script", "status", "detail"),
    [
        ("echo bpftool v7.1.0; echo using libbpf", Status.OK, "bpftool v7.1.0"),
        ("echo not for this kernel >&2; exit 2", Status.FAIL, "not for this kernel"),
        ("exit 1", Status.FAIL, "does not run"),
    ],
)
def test_bpftool_must_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, status: Status, detail: str
) -> None:
    tool = tmp_path / "bpftool"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (finding,) = check.bpftool(CONSOLE)
    assert finding.status is status
    assert detail in finding.detail


def test_a_missing_bpftool_fails_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "program", lambda _: None)
    assert list(check.bpftool(CONSOLE)) == [
        Finding("bpftool", Status.FAIL, "bpftool is not installed", "apt install bpftool, or dnf install bpftool")
    ]


@pytest.mark.parametrize(
    ("release", "limit", "user", "status"),
    [
        ("5.11.0", 8 << 20, 1000, Status.OK),
        ("5.10.0", 8 << 20, 1000, Status.WARN),
        ("5.10.0", 64 << 20, 1000, Status.OK),
        ("5.10.0", resource.RLIM_INFINITY, 1000, Status.OK),
        ("5.10.0", 8 << 20, 0, Status.OK),
    ],
)
def test_locked_memory_matters_on_old_kernels_only(
    kernel_release: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    limit: int,
    user: int,
    status: Status,
) -> None:
    kernel_release(release)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert [finding.status for finding in check.memlock(CONSOLE)] == [status]


def test_a_missing_probe_tells_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    known = frozenset(probe.name for probe in plan.ACCESS_LOG_PROBES if probe.required)
    monkeypatch.setattr(plan, "available_tracepoints", lambda: known)
    findings = {finding.name: finding for finding in check.probes(CONSOLE)}
    for probe in plan.ACCESS_LOG_PROBES:
        finding = findings[f"probe {probe.name}"]
        assert finding.status is (Status.OK if probe.required else Status.WARN)
        assert probe.required or probe.lost in finding.detail


def test_a_missing_required_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "available_tracepoints", lambda: frozenset({"nothing"}))
    assert [finding for finding in check.probes(CONSOLE) if finding.status is Status.FAIL]


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def at(*addresses: str) -> list[Finding]:
    overrides = [f"core.backend.addr={','.join(addresses)}", "access_log.active=true"]
    return list(check.backend(load(environ={}, overrides=overrides)))


def test_a_backend_that_listens_is_fine(listening: str) -> None:
    assert at(listening) == [Finding("backend", Status.OK, f"{listening} accepts connections")]


def test_a_backend_that_refuses_fails_and_names_where_it_was_set(refusing: str) -> None:
    (finding,) = at(refusing)
    assert finding.status is Status.FAIL
    assert refusing in finding.detail
    assert "core.backend.addr (set by --set)" in finding.hint


def test_one_backend_of_several_suffices(listening: str, refusing: str) -> None:
    assert [finding.status for finding in at(refusing, listening)] == [Status.OK, Status.WARN]


@pytest.mark.parametrize(
    "used",
    [
        ["access_log.active=true", "access_log.outputs=console"],
        ["access_log.active=true", "access_log.outputs=jsonl,console", "process_discovery.local.active=true"],
        [],
    ],
)
def test_a_backend_that_is_not_used_need_not_be_there(refusing: str, used: list[str]) -> None:
    (finding,) = check.backend(load(environ={}, overrides=[*used, f"core.backend.addr={refusing}"]))
    assert (finding.status, finding.detail[:10]) == (Status.OK, "not needed")


@pytest.mark.parametrize("user", ["access_log.active", "process_discovery.local.active"])
def test_a_backend_that_access_logs_or_processes_go_to_must_be_there(refusing: str, user: str) -> None:
    (finding,) = check.backend(load(environ={}, overrides=[f"{user}=true", f"core.backend.addr={refusing}"]))
    assert finding.status is Status.FAIL


def test_programs_that_load_only_in_the_plain_form_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fallback:
        walk_reason = "the kernel refuses the BPF program tail_chunks"
        plain_reason = "bcc 0.31.0 does not compile the BPF source for this kernel"

        def __init__(self, _: object) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(check, "may_load_bpf", lambda _: True)
    monkeypatch.setattr(session, "Capture", Fallback)
    finding, walk = check.programs(CONSOLE)
    assert (walk.name, walk.status) == ("bpf walk", check.Status.WARN)
    assert "tail_chunks" in walk.detail
    assert finding.status is Status.WARN
    assert Fallback.plain_reason in finding.detail


def test_programs_that_do_not_load_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        refusal = "the kernel refuses the BPF program on_sys_exit"
        raise CaptureError(refusal, hint="report it")

    monkeypatch.setattr(check, "may_load_bpf", lambda _: True)
    monkeypatch.setattr(session, "Capture", refuse)
    assert list(check.programs(CONSOLE)) == [
        Finding("bpf programs", Status.FAIL, "the kernel refuses the BPF program on_sys_exit", "report it")
    ]


def test_programs_are_not_tried_without_the_right_to() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "may_load_bpf", lambda _: False)
        assert list(check.programs(CONSOLE)) == []


@pytest.mark.parametrize(
    ("statuses", "exit_code"),
    [([Status.OK, Status.WARN], 0), ([Status.FAIL, Status.OK], 1)],
)
def test_the_command_exits_1_only_if_something_fails(
    monkeypatch: pytest.MonkeyPatch, statuses: list[Status], exit_code: int
) -> None:
    findings = [Finding("part", status, "state", "do this") for status in statuses]
    monkeypatch.setattr(command, "check", lambda _: findings)
    as_text = CliRunner().invoke(cli, ["check"])
    assert as_text.exit_code == exit_code
    assert as_text.stdout.splitlines()[:2] == [f"{statuses[0]:4}  part: state", "      do this"]
    as_json = CliRunner().invoke(cli, ["check", "--json"])
    assert as_json.exit_code == exit_code
    assert json.loads(as_json.stdout) == [
        {"name": "part", "status": str(status), "detail": "state", "hint": "do this"} for status in statuses
    ]


def test_every_check_answers_on_this_host_whatever_it_is() -> None:
    findings = check.check(CONSOLE)
    assert {"kernel", "btf", "bpf privileges", "bcc", "bpftool", "memlock", "backend"} <= {
        finding.name for finding in findings
    }
    assert all(finding.hint or finding.status is not Status.FAIL for finding in findings)
