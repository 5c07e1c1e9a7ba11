# SPDX-License-Identifier: Apache-2.0
"""What `rover-host check` looks at: everything this host must offer before access logs can be had.

Each check is a function of the settings that yields findings. It never raises for what it finds wrong.
"""

from __future__ import annotations

import os
import re
import resource
import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rover_plugin.capture.confinement import CAPABILITIES
from rover_plugin.capture.privileges import (
    CAP_SYS_PTRACE,
    HINT,
    PID_NAMESPACE_HINT,
    effective_capabilities,
    foreign_pid_namespace,
    holds,
    may_load_bpf,
)
from rover_plugin.discovery.cgroup_tree import hierarchies
from rover_plugin.errors import RoverError
from rover_plugin.host.privileges import kept_capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rover_plugin.settings import Settings

_KERNEL_NEEDED = (5, 8)  # BPF ring buffers; bpf_probe_read_user and raw tracepoints are older
_KERNEL_WITHOUT_MEMLOCK = (5, 11)  # BPF memory counts for the memory cgroup instead
_MEMLOCK_NEEDED = 64 << 20
_BACKEND_TIMEOUT_S = 2.0

_BTF = Path("/sys/kernel/btf/vmlinux")
# What sends to the backend, if `skywalking` is among the outputs.
_REPORTING = ("access_log.active", "process_discovery.local.active", "process_discovery.kubernetes.active")

_LOCKDOWN = Path("/sys/kernel/security/lockdown")


class Status(StrEnum):
    """How a finding is to be taken: `warn` costs something, `fail` means there would be no access logs."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, how it stands, and what to do if it does not stand well."""

    name: str
    status: Status
    detail: str
    hint: str = ""


def kernel(_: Settings) -> Iterator[Finding]:
    """The kernel is new enough."""
    release = os.uname().release
    if _kernel_version(release) >= _KERNEL_NEEDED:
        yield Finding("kernel", Status.OK, release)
    else:
        yield Finding("kernel", Status.FAIL, release, "boot a kernel of 5.8 or newer")


def btf(_: Settings) -> Iterator[Finding]:
    """The kernel describes its own types."""
    if os.access(_BTF, os.R_OK):
        yield Finding("btf", Status.OK, str(_BTF))
    else:
        hint = "boot a kernel with CONFIG_DEBUG_INFO_BTF=y (the distributions' own have it), and run as root"
        yield Finding("btf", Status.FAIL, f"{_BTF} cannot be read", hint)


def privileges(_: Settings) -> Iterator[Finding]:
    """This process may load BPF programs and look at other processes."""
    effective = effective_capabilities()
    if may_load_bpf(effective):
        yield Finding("bpf privileges", Status.OK, f"effective capabilities {effective:#x}")
    else:
        yield Finding("bpf privileges", Status.FAIL, f"effective capabilities {effective:#x}", HINT)
    if not holds(effective, CAP_SYS_PTRACE):
        hint = "add CAP_SYS_PTRACE"
        yield Finding("process privileges", Status.WARN, "other users' processes cannot be looked at", hint)


def kept_privileges(settings: Settings) -> Iterator[Finding]:
    """What the host keeps of this user's privileges."""
    effective = effective_capabilities()
    user = settings.text("privileges.user")
    if settings.flag("privileges.drop") or user:
        held = [name for name in kept_capabilities() if holds(effective, CAPABILITIES[name])]
        as_user = f" as {user}" if user else ""
        yield Finding("kept privileges", Status.OK, f"{', '.join(held) or 'none'}{as_user}; workers: bpf, seccomp")
    else:
        hint = "set privileges.drop to true"
        yield Finding("kept privileges", Status.WARN, "everything this user has, in the workers too", hint)


def pid_namespace(_: Settings) -> Iterator[Finding]:
    """Processes have the same numbers here as in the kernel's events."""
    reason = foreign_pid_namespace()
    if reason:
        yield Finding("pid namespace", Status.FAIL, reason, PID_NAMESPACE_HINT)
    else:
        yield Finding("pid namespace", Status.OK, "the host's")


def cgroups(_: Settings) -> Iterator[Finding]:
    """The trees of cgroups can be seen, so that the ids in the kernel's events have paths."""
    found = hierarchies()
    if found:
        yield Finding("cgroups", Status.OK, ", ".join(tree.mount for tree in found))
    else:
        detail = "no hierarchy can be seen whole; processes of a few milliseconds may lose their container's name"
        yield Finding("cgroups", Status.WARN, detail, "mount the host's /sys/fs/cgroup, or let us see process 1's root")


def lockdown(_: Settings) -> Iterator[Finding]:
    """The kernel is not locked down against reading its memory (kernel_lockdown(7))."""
    if _LOCKDOWN.exists() and "[confidentiality]" in _LOCKDOWN.read_text():
        hint = "boot with lockdown=integrity or without"
        yield Finding("lockdown", Status.FAIL, "confidentiality mode keeps BPF from reading", hint)


def bcc(_: Settings) -> Iterator[Finding]:
    """The BPF Compiler Collection's Python module is there, and is not PyPI's project of the same name."""
    from rover_plugin.capture.build import import_bcc  # noqa: PLC0415 - loading it takes long, and only this needs it

    try:
        module = import_bcc()
    except RoverError as error:
        yield Finding("bcc", Status.FAIL, error.message, error.hint)
    else:
        yield Finding("bcc", Status.OK, f"{getattr(module, '__version__', 'unknown version')} at {module.__file__}")


def bpftool(_: Settings) -> Iterator[Finding]:
    """The command bpftool is there; it prints the kernel's types for the compiler."""
    from rover_plugin.capture.headers import bpftool_path, bpftool_version  # noqa: PLC0415 - as in `probes`

    try:
        version = bpftool_version(bpftool_path())
    except RoverError as error:
        yield Finding("bpftool", Status.FAIL, error.message, error.hint)
    else:
        yield Finding("bpftool", Status.OK, version.partition("\n")[0])


def memlock(_: Settings) -> Iterator[Finding]:
    """Locked memory suffices for BPF maps, on kernels that count them there."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    detail = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard >> 10} KiB"
    if _kernel_version(os.uname().release) >= _KERNEL_WITHOUT_MEMLOCK:
        yield Finding("memlock", Status.OK, f"{detail}, which this kernel does not count BPF maps against")
    elif hard == resource.RLIM_INFINITY or hard >= _MEMLOCK_NEEDED or os.geteuid() == 0:
        yield Finding("memlock", Status.OK, detail)
    else:
        yield Finding("memlock", Status.WARN, detail, "ulimit -l unlimited, or LimitMEMLOCK=infinity in systemd")


def probes(_: Settings) -> Iterator[Finding]:
    """Which hooks the running kernel has, and what cannot be seen without the others."""
    from rover_plugin.capture.plan import decide, describe  # noqa: PLC0415 - checks do without what others need

    try:
        decide()
    except RoverError as error:
        yield Finding("probes", Status.FAIL, error.message, error.hint)
    for name, attachable, lost in describe():
        if attachable:
            yield Finding(f"probe {name}", Status.OK, "can be attached")
        else:
            yield Finding(f"probe {name}", Status.WARN, f"missing, lost without it: {lost}")


def programs(settings: Settings) -> Iterator[Finding]:
    """The BPF programs compile and load, and in the form that costs watched processes least."""
    from rover_plugin.access_log.options import capture_options  # noqa: PLC0415 - as in `probes`
    from rover_plugin.capture.session import Capture  # noqa: PLC0415 - as in `probes`

    if not may_load_bpf(effective_capabilities()):
        return  # `privileges` says what is missing
    try:
        capture = Capture(capture_options(settings))
    except RoverError as error:
        yield Finding("bpf programs", Status.FAIL, error.message, error.hint)
        return
    capture.close()
    if capture.plain_reason:
        detail = f"only in the plain form, which costs watched processes more: {capture.plain_reason}"
        yield Finding("bpf programs", Status.WARN, detail, "report it with what standard error says")
    else:
        yield Finding("bpf programs", Status.OK, "compile and load")
    if capture.walk_reason:
        detail = f"do not follow framing: large calls cost more, and sizes may be unknown: {capture.walk_reason}"
        yield Finding("bpf walk", Status.WARN, detail, "report it with what standard error says")
    else:
        yield Finding("bpf walk", Status.OK, "follows the framing of HTTP/1 and HTTP/2 in calls of any size")


def backend(settings: Settings) -> Iterator[Finding]:
    """The OAP accepts connections, if access logs or processes are reported to it."""
    if "skywalking" not in settings.items("access_log.outputs"):
        yield Finding("backend", Status.OK, "not needed: access_log.outputs is without skywalking")
        return
    if not any(settings.flag(key) for key in _REPORTING):
        yield Finding("backend", Status.OK, f"not needed: none of {', '.join(_REPORTING)} is true")
        return
    reachable = False
    findings = []
    for address in settings.items("core.backend.addr"):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _BACKEND_TIMEOUT_S).close()
        except OSError as error:
            hint = f"check core.backend.addr (set by {settings.origin('core.backend.addr')}) and that the OAP runs"
            findings.append((f"{address}: {error}", hint))
        else:
            reachable = True
            yield Finding("backend", Status.OK, f"{address} accepts connections")
    for detail, hint in findings:
        yield Finding("backend", Status.WARN if reachable else Status.FAIL, detail, hint)


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    kernel,
    btf,
    privileges,
    kept_privileges,
    pid_namespace,
    cgroups,
    lockdown,
    bcc,
    bpftool,
    memlock,
    probes,
    programs,
    backend,
)


def check(settings: Settings) -> list[Finding]:
    """Runs all checks, in order."""
    return [finding for function in CHECKS for finding in function(settings)]


def _kernel_version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])
