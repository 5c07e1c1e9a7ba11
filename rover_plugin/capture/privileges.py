# SPDX-License-Identifier: Apache-2.0
"""What this process is allowed to do: capabilities(7), and whether it counts processes as the kernel's events do."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rover_plugin.errors import CaptureError, PrivilegeError

HINT = "run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE (CAP_SYS_ADMIN before kernel 5.8)"

STATUS = Path("/proc/self/status")

PID_NAMESPACE_HINT = "run it in the host's: --pid=host (docker, podman), hostPID: true (Kubernetes)"
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h

# include/uapi/linux/capability.h
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_PERFMON = 38
CAP_BPF = 39


def effective_capabilities() -> int:
    """The effective set as a bit mask."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", STATUS.read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def holds(effective: int, capability: int) -> bool:
    """Whether a capability is in a set."""
    return bool(effective >> capability & 1)


def may_load_bpf(effective: int) -> bool:
    """Whether a set suffices to load and attach tracing programs."""
    return holds(effective, CAP_SYS_ADMIN) or (holds(effective, CAP_BPF) and holds(effective, CAP_PERFMON))


def require_bpf() -> None:
    """Refuses at once what the kernel would refuse later and less clearly.

    Raises:
        PrivilegeError: a capability is missing.
    """
    if not may_load_bpf(effective_capabilities()):
        raise PrivilegeError("not allowed to use BPF", hint=HINT)


def foreign_pid_namespace(proc: Path = Path("/proc")) -> str:
    """Why numbers of processes mean others here than in the kernel's events, or an empty string if they do not.

    Events name processes as the initial pid namespace does; /proc, and with it the process feed, as the namespace it
    was mounted in (pid_namespaces(7)). Where the two differ, one process would be logged under another's name.
    """
    try:
        own = (proc / "self").readlink().name
        namespace = (proc / "self/ns/pid").stat().st_ino
    except OSError:
        return f"{proc} is of another pid namespace than this process"
    if namespace != _INITIAL_PID_NAMESPACE:
        return "this process is in a pid namespace of its own, so processes have other numbers here than in the kernel"
    return "" if own == str(os.getpid()) else f"{proc} is of another pid namespace than this process"


def require_initial_pid_namespace() -> None:
    """Refuses to work where processes would be mistaken for each other.

    Raises:
        CaptureError: see `foreign_pid_namespace`.
    """
    if reason := foreign_pid_namespace():
        raise CaptureError(reason, hint=PID_NAMESPACE_HINT)
