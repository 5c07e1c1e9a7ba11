# SPDX-License-Identifier: Apache-2.0
"""The probes, decided before anything is loaded: which this kernel has, and what is lost without each (design §5)."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from functools import cache

from rover_plugin.capture.btf import BTF_PATH
from rover_plugin.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Probe:
    """One hook.

    Attributes:
        name: raw tracepoint; its program is `on_<name>`.
        required: without it the agent cannot work at all.
        lost: what cannot be seen without it.
        since: first kernel whose structures the program knows.
    """

    name: str
    required: bool
    lost: str
    since: tuple[int, int] = (0, 0)


ACCESS_LOG_PROBES = (
    # Processes come before calls, so that nobody's first call is missed between two attachments.
    Probe("sched_process_exit", required=False, lost="state of ended threads lingers until its table is full"),
    Probe("sched_process_fork", required=False, lost="children are seen only when the process feed names them"),
    Probe("sched_process_exec", required=False, lost="new processes are seen only when the process feed names them"),
    Probe("tcp_destroy_sock", required=True, lost="ended connections could be mistaken for new ones"),
    Probe("inet_sock_set_state", required=True, lost="connects and closes"),
    Probe("io_uring_complete", required=False, lost="connections served by io_uring alone", since=(5, 19)),
    Probe("sys_enter", required=True, lost="all traffic"),
    Probe("sys_exit", required=True, lost="all traffic"),
)


@cache
def available_tracepoints() -> frozenset[str]:
    """Names of the kernel's raw tracepoints, by the type that BTF has for each; empty where there is no BTF.

    Source: __DEFINE_EVENT in include/trace/bpf_probe.h.
    """
    try:
        types = BTF_PATH.read_bytes()
    except OSError:
        return frozenset()
    return frozenset(name.decode() for name in re.findall(rb"\0btf_trace_(\w+)(?=\0)", types))


def kernel_version() -> tuple[int, int]:
    """Major and minor number of the running kernel."""
    major, minor = re.findall(r"\d+", platform.release())[:2]
    return int(major), int(minor)


def _has(probe: Probe) -> bool:
    known = available_tracepoints()
    return (not known or probe.name in known) and kernel_version() >= probe.since


def decide(probes: tuple[Probe, ...] = ACCESS_LOG_PROBES) -> tuple[list[Probe], list[Probe]]:
    """Splits probes into those that will attach and those the kernel does not have.

    Raises:
        CaptureError: a required one is missing.
    """
    present = [probe for probe in probes if _has(probe)]
    missing = [probe for probe in probes if probe not in present]
    for probe in missing:
        if probe.required:
            raise CaptureError(
                f"this kernel has no tracepoint {probe.name}, without which is lost: {probe.lost}",
                hint="use a kernel of 4.17 or newer with CONFIG_TRACEPOINTS",
                probe=probe.name,
            )
    return present, missing


def describe() -> list[tuple[str, bool, str]]:
    """(probe, whether this kernel has it, what is lost without it), for `rover-host check` and the docs."""
    return [(probe.name, _has(probe), probe.lost) for probe in ACCESS_LOG_PROBES]
