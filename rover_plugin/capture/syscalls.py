# SPDX-License-Identifier: Apache-2.0
"""Numbers of the system calls we watch, by architecture (the kernel's arch/*/entry/syscalls tables)."""

from __future__ import annotations

import platform

from rover_plugin.capture.records import CallClass
from rover_plugin.errors import CaptureError

_X86_64 = {
    0: CallClass.READ,
    1: CallClass.WRITE,
    3: CallClass.CLOSE,
    19: CallClass.READV,
    20: CallClass.WRITEV,
    33: CallClass.CLOSE,  # dup2 closes its target
    40: CallClass.SENDFILE,
    42: CallClass.CONNECT,
    43: CallClass.ACCEPT,
    44: CallClass.SENDTO,
    45: CallClass.RECVFROM,
    46: CallClass.SENDMSG,
    47: CallClass.RECVMSG,
    48: CallClass.SHUTDOWN,
    275: CallClass.SPLICE,
    288: CallClass.ACCEPT,  # accept4
    292: CallClass.CLOSE,  # dup3
    299: CallClass.RECVMMSG,
    307: CallClass.SENDMMSG,
    327: CallClass.PREADV2,
    328: CallClass.PWRITEV2,
    436: CallClass.CLOSE,  # close_range
}

_AARCH64 = {
    24: CallClass.CLOSE,  # dup3 closes its target
    57: CallClass.CLOSE,
    63: CallClass.READ,
    64: CallClass.WRITE,
    65: CallClass.READV,
    66: CallClass.WRITEV,
    71: CallClass.SENDFILE,
    76: CallClass.SPLICE,
    202: CallClass.ACCEPT,
    203: CallClass.CONNECT,
    206: CallClass.SENDTO,
    207: CallClass.RECVFROM,
    210: CallClass.SHUTDOWN,
    211: CallClass.SENDMSG,
    212: CallClass.RECVMSG,
    242: CallClass.ACCEPT,  # accept4
    243: CallClass.RECVMMSG,
    269: CallClass.SENDMMSG,
    286: CallClass.PREADV2,
    287: CallClass.PWRITEV2,
    436: CallClass.CLOSE,  # close_range
}

_TABLES = {"x86_64": _X86_64, "aarch64": _AARCH64}


def call_classes() -> dict[int, CallClass]:
    """System call number to class, for this machine.

    Raises:
        CaptureError: an architecture whose numbers and registers we do not know.
    """
    table = _TABLES.get(platform.machine())
    if table is None:
        raise CaptureError(f"{platform.machine()} is not supported", hint="run on x86-64 or arm64")
    return table
