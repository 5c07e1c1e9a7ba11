# SPDX-License-Identifier: Apache-2.0
"""What this process is allowed to do: capabilities(7)."""

from __future__ import annotations

import re
from pathlib import Path

from rover_plugin.errors import PrivilegeError

HINT = "run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE (CAP_SYS_ADMIN before kernel 5.8)"

STATUS = Path("/proc/self/status")

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
