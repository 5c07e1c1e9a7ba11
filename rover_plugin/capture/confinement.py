# SPDX-License-Identifier: Apache-2.0
"""Gives up what this process is allowed to do and does not need: capabilities(7), a user's identity, seccomp(2).

What is given up is gone for every process that is started later, too: the bounding set shrinks and no_new_privs is set.
All of it is done by one thread for itself, so it must be done while there is only one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import pwd
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rover_plugin.errors import PrivilegeError

if TYPE_CHECKING:
    from collections.abc import Iterable

# include/uapi/linux/capability.h
CAPABILITIES: Final = {
    "chown": 0,
    "dac_override": 1,
    "dac_read_search": 2,
    "kill": 5,
    "setgid": 6,
    "setuid": 7,
    "setpcap": 8,
    "net_admin": 12,
    "ipc_lock": 14,
    "sys_ptrace": 19,
    "sys_admin": 21,
    "sys_resource": 24,
    "perfmon": 38,
    "bpf": 39,
    "checkpoint_restore": 40,
}
_NAMES: Final = {number: name for name, number in CAPABILITIES.items()}
_VERSION_3: Final = 0x20080522

# include/uapi/linux/prctl.h
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_SECCOMP: Final = 22
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_AMBIENT_RAISE: Final = 2
_AMBIENT_CLEAR_ALL: Final = 4
_MOST_CAPABILITIES: Final = 64

# include/uapi/linux/seccomp.h, bpf_common.h: a classic BPF program over struct seccomp_data
_SECCOMP_MODE_FILTER: Final = 2
_RET_KILL_PROCESS: Final = 0x80000000
_RET_ERRNO: Final = 0x00050000
_RET_ALLOW: Final = 0x7FFF0000
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_AT_NUMBER: Final = 0
_AT_ARCHITECTURE: Final = 4
_AT_ARGUMENT_0: Final = 16
_INSTRUCTION: Final = struct.Struct("=HBBI")
# include/uapi/linux/audit.h
_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# What a worker does once it reads its ring: read and write descriptors it has, wait, manage memory, look at clocks.
# No new descriptors, processes, sockets or files. (x86-64, arm64); 0 where an architecture lacks the call.
_WORKER_CALLS: Final = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "poll": (7, 0),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "select": (23, 0),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "times": (100, 153),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, 0),
    "epoll_ctl": (233, 21),
    "tgkill": (234, 131),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "epoll_pwait": (281, 22),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
}
_BPF_CALL: Final = (321, 280)
# include/uapi/linux/bpf.h: BPF_MAP_LOOKUP_ELEM, UPDATE_ELEM, DELETE_ELEM; nothing that loads or attaches.
_WORKER_BPF_COMMANDS: Final = (1, 2, 3)

_libc = ctypes.CDLL(None, use_errno=True)


def names_of(mask: int) -> list[str]:
    """The capabilities in a set, by name, or number where it has no name here."""
    return [_NAMES.get(number, str(number)) for number in range(_MOST_CAPABILITIES) if mask >> number & 1]


def keep_capabilities(names: Iterable[str], *, user: str = "") -> None:
    """Gives up every capability that is not named, for this process and all it will start, and becomes `user` if given.

    Capabilities that this process does not have stay missing. Programs that it starts keep what is named.

    Raises:
        PrivilegeError: there is more than one thread, there is no such user, or the kernel refuses.
    """
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        raise PrivilegeError("privileges can only be given up by a process of one thread", threads=threads)
    kept = sum(1 << CAPABILITIES[name] for name in names)
    for number in range(_MOST_CAPABILITIES):
        if not kept >> number & 1 and _prctl(_PR_CAPBSET_READ, number, optional=True) == 1:
            # Without CAP_SETPCAP the bounding set stays, and no_new_privs alone has to do.
            _prctl(_PR_CAPBSET_DROP, number, optional=True)
    if user:
        _become(user)
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, optional=True)
    kept &= _permitted()
    _set_capabilities(kept)
    for number in range(_MOST_CAPABILITIES):
        if os.geteuid() and kept >> number & 1:
            _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def confine_worker(*, kill: bool = False) -> bool:
    """Leaves a worker CAP_BPF (its policies are a map), and the system calls that reading and handing on need.

    Any other call fails with EPERM, or with `kill` ends the process: for tests.

    Returns:
        Whether the system calls are confined; not on an architecture whose numbers are not known here.
    """
    keep_capabilities(["bpf"])
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    program = _filter(machine, _RET_KILL_PROCESS if kill else _RET_ERRNO | errno.EPERM)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    header = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)))
    return True


def _filter(machine: str, otherwise: int) -> bytes:
    column = list(_ARCHITECTURES).index(machine)
    pack = _INSTRUCTION.pack
    code = [
        pack(_LOAD, 0, 0, _AT_ARCHITECTURE),
        pack(_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        pack(_RETURN, 0, 0, _RET_KILL_PROCESS),
        pack(_LOAD, 0, 0, _AT_NUMBER),
    ]
    for numbers in _WORKER_CALLS.values():
        if numbers[column] or column == 0:
            code += [pack(_EQUAL, 0, 1, numbers[column]), pack(_RETURN, 0, 0, _RET_ALLOW)]
    code += [
        pack(_EQUAL, 1, 0, _BPF_CALL[column]),
        pack(_RETURN, 0, 0, otherwise),
        pack(_LOAD, 0, 0, _AT_ARGUMENT_0),
    ]
    for command in _WORKER_BPF_COMMANDS:
        code += [pack(_EQUAL, 0, 1, command), pack(_RETURN, 0, 0, _RET_ALLOW)]
    code.append(pack(_RETURN, 0, 0, otherwise))
    return b"".join(code)


def _become(user: str) -> None:
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise PrivilegeError(f"there is no user {user}", hint=f"make one: useradd --system {user}") from error
    try:
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except OSError as error:
        raise PrivilegeError(f"cannot become user {user} ({error.strerror})", hint="start as root") from error
    os.environ.update(USER=user, LOGNAME=user, HOME=entry.pw_dir)


def _permitted() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapPrm:"):
            return int(line.split()[1], 16)
    return 0


def _set_capabilities(mask: int) -> None:
    """Effective, permitted and inheritable, as struct __user_cap_data_struct has them: two words of 32 bits."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, low, high, high, high), 24)
    if _libc.capset(header, data):
        _refused("capset")


def _prctl(option: int, *arguments: object, optional: bool = False) -> int:
    padded = [*arguments, *[0] * (4 - len(arguments))]
    result: int = _libc.prctl(option, *(ctypes.c_ulong(item) if isinstance(item, int) else item for item in padded))
    if result < 0 and not optional:
        _refused(f"prctl {option}")
    return result


def _refused(what: str) -> None:
    code = ctypes.get_errno()
    raise PrivilegeError(f"the kernel refuses to give up privileges ({what}: {os.strerror(code)})", errno=code)
