# SPDX-License-Identifier: Apache-2.0
"""Headers for bcc without kernel headers: the running kernel's own BTF, printed as C (design §5).

bcc compiles against a kernel source tree. We give it a small generated one in which `linux/kconfig.h`, the file bcc
includes first, holds every kernel type as `bpftool` prints it from BTF, and all other headers are empty. Struct
layouts are then exactly the running kernel's, on every distribution.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from rover_plugin.capture.btf import BTF_PATH, Kind, type_ids
from rover_plugin.errors import CaptureError
from rover_plugin.host.children import environment, is_private, program

_INSTALL = "apt install bpftool, or dnf install bpftool"

# bcc's helper header asks for these; everything in them is in the BTF dump or in KCONFIG below.
_EMPTY_HEADERS = (
    "linux/version.h",
    "linux/log2.h",
    "linux/types.h",
    "linux/sched.h",
    "linux/ptrace.h",
    "asm/page.h",
    "uapi/linux/bpf.h",
    "uapi/linux/if_packet.h",
    "uapi/linux/if_ether.h",
    "uapi/linux/ptrace.h",
)

# BPF_NO_PRESERVE_ACCESS_INDEX: bcc 0.26 cannot apply CO-RE relocations, and does not need them here.
# BPF_NO_KFUNC_PROTOTYPES: newer bpftools declare the kernel's functions too, under names that programs may define.
# The UAPI guards: bcc embeds its own copy of bpf.h, whose enums would clash with the BTF dump's.
_KCONFIG = """\
#ifndef ROVER_KCONFIG_H
#define ROVER_KCONFIG_H
#define BPF_NO_PRESERVE_ACCESS_INDEX
#define BPF_NO_KFUNC_PROTOTYPES
#define _UAPI__LINUX_BPF_H__
#define _UAPI__LINUX_BPF_COMMON_H__
#include "vmlinux.h"
#define CONFIG_BPF_SYSCALL 1
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE KERNEL_VERSION({version})
#define PAGE_SIZE {page_size}
#ifndef offsetof
#define offsetof(type, member) __builtin_offsetof(type, member)
#endif
#ifndef NULL
#define NULL ((void *)0)
#endif
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
{missing_helpers}
{type_numbers}
#endif
"""

# What programs name by number: bpf/typed.h.
_NUMBERED = (
    (Kind.FUNC, "bpf_rdonly_cast"),
    (Kind.STRUCT, "file"),
    (Kind.STRUCT, "socket"),
    (Kind.STRUCT, "tcp_sock"),
)

# Helpers bcc 0.26 .. 0.35 mention in their own header that an older kernel's BTF does not name yet. The numbers are
# the kernel's UAPI (include/uapi/linux/bpf.h) and never change; calling one that is missing fails at load time.
_HELPER_IDS = {
    "sock_from_file": 162,
    "check_mtu": 163,
    "for_each_map_elem": 164,
    "snprintf": 165,
    "sys_bpf": 166,
    "btf_find_by_name_kind": 167,
    "sys_close": 168,
    "timer_init": 169,
    "timer_set_callback": 170,
    "timer_start": 171,
    "timer_cancel": 172,
    "get_func_ip": 173,
    "get_attach_cookie": 174,
    "task_pt_regs": 175,
    "get_branch_snapshot": 176,
    "trace_vprintk": 177,
    "skc_to_unix_sock": 178,
    "kallsyms_lookup_name": 179,
    "find_vma": 180,
    "loop": 181,
    "strncmp": 182,
    "get_func_arg": 183,
    "get_func_ret": 184,
    "get_func_arg_cnt": 185,
    "get_retval": 186,
    "set_retval": 187,
    "xdp_get_buff_len": 188,
    "xdp_load_bytes": 189,
    "xdp_store_bytes": 190,
    "copy_from_user_task": 191,
    "skb_set_tstamp": 192,
    "ima_file_hash": 193,
    "kptr_xchg": 194,
    "map_lookup_percpu_elem": 195,
    "skc_to_mptcp_sock": 196,
    "dynptr_from_mem": 197,
    "ringbuf_reserve_dynptr": 198,
    "ringbuf_submit_dynptr": 199,
    "ringbuf_discard_dynptr": 200,
    "dynptr_read": 201,
    "dynptr_write": 202,
    "dynptr_data": 203,
    "tcp_raw_gen_syncookie_ipv4": 204,
    "tcp_raw_gen_syncookie_ipv6": 205,
    "tcp_raw_check_syncookie_ipv4": 206,
    "tcp_raw_check_syncookie_ipv6": 207,
    "ktime_get_tai_ns": 208,
    "user_ringbuf_drain": 209,
    "cgrp_storage_get": 210,
    "cgrp_storage_delete": 211,
}


def kernel_tree() -> Path:
    """Returns the path of a source tree for `BCC_KERNEL_SOURCE`, made from the running kernel's BTF and cached.

    Another kernel, another bpftool or another version of this file makes another tree.

    Raises:
        CaptureError: no BTF, no bpftool, or nowhere to write.
    """
    if not BTF_PATH.exists():
        raise CaptureError(
            f"this kernel has no BTF ({BTF_PATH} is missing)",
            hint="use a kernel built with CONFIG_DEBUG_INFO_BTF=y, or install its headers (linux-headers-$(uname -r))",
            path=str(BTF_PATH),
        )
    release = platform.release()
    tool = bpftool_path()
    identity = f"{release}-{platform.version()}-{BTF_PATH.stat().st_size}-{bpftool_version(tool)}-{_KCONFIG}"
    name = f"btf-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    for root in cache_roots():
        tree = root / name
        if _is_whole(tree):
            return tree
        # Written aside and renamed: two agents starting at once must not see half a tree.
        building = _private_folder(root, name)
        if building is None:
            continue
        _write_tree(building, release, tool)
        try:
            building.rename(tree)
        except OSError:  # somebody was quicker, or what is there is not to be trusted
            atexit.register(shutil.rmtree, building, ignore_errors=True)
            return building
        return tree
    return _for_once(release, tool)


def cache_roots() -> list[Path]:
    """Where generated headers may be kept, best first: never where others can write.

    `$CACHE_DIRECTORY` and `$RUNTIME_DIRECTORY` are systemd's (systemd.exec(5)), `$XDG_CACHE_HOME` the desktop's.
    """
    variables = os.environ
    named = [variables.get("CACHE_DIRECTORY", "").partition(":")[0], "/var/cache/rover"]
    home = variables.get("XDG_CACHE_HOME") or (f"{variables['HOME']}/.cache" if variables.get("HOME") else "")
    named += [f"{home}/rover" if home else "", variables.get("RUNTIME_DIRECTORY", "").partition(":")[0], "/run/rover"]
    return [Path(path) for path in dict.fromkeys(named) if path.startswith("/")]


def _is_whole(tree: Path) -> bool:
    """Whether a tree was finished by root or by us, and holds nothing else than it should."""
    if not (tree / "complete").exists() or tree.is_symlink() or not (is_private(tree) and is_private(tree.parent)):
        return False
    try:
        found = [path.lstat() for path in tree.rglob("*")]
    except OSError:
        return False
    return all(
        one.st_uid in {0, os.geteuid()}
        and not one.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and (stat.S_ISDIR(one.st_mode) or (stat.S_ISREG(one.st_mode) and one.st_nlink == 1))
        for one in found
    )


def _private_folder(root: Path, name: str) -> Path | None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root)) if is_private(root) else None
    except OSError:
        return None


def _for_once(release: str, tool: str) -> Path:
    """Nothing can be kept: a tree that goes with this process."""
    try:
        tree = Path(tempfile.mkdtemp(prefix="rover-headers."))
    except OSError as error:
        raise CaptureError(
            "no directory to write the generated kernel headers to",
            hint=f"make one of {', '.join(map(str, cache_roots()))} writable",
        ) from error
    atexit.register(shutil.rmtree, tree, ignore_errors=True)
    _write_tree(tree, release, tool)
    return tree


def kernel_functions(tree: Path) -> set[int]:
    """BTF numbers of the kernel functions (not helpers) that programs call."""
    text = (tree / "include" / "linux" / "kconfig.h").read_text()
    return {int(number) for number in re.findall(r"^#define BTF_FUNC_\w+ (\d+)$", text, re.MULTILINE)}


def _write_tree(tree: Path, release: str, tool: str) -> None:
    mask = os.umask(0o077)
    try:
        _write_files(tree, release, tool)
    finally:
        os.umask(mask)


def _write_files(tree: Path, release: str, tool: str) -> None:
    include = tree / "include"
    (include / "linux").mkdir(parents=True)
    for header in _EMPTY_HEADERS:
        path = include / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    vmlinux = _dump_btf(tool)
    (include / "linux" / "vmlinux.h").write_text(vmlinux)
    known = set(re.findall(r"\bBPF_FUNC_(\w+) =", vmlinux))
    unknown = {name: number for name, number in _HELPER_IDS.items() if name not in known}
    missing = "\n".join(f"#define BPF_FUNC_{name} {number}" for name, number in unknown.items())
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    version = ", ".join(part or "0" for part in numbers.groups()) if numbers else "0, 0, 0"
    numbers_of = type_ids(BTF_PATH.read_bytes(), _NUMBERED)
    kconfig = _KCONFIG.format(
        version=version,
        page_size=os.sysconf("SC_PAGESIZE"),
        missing_helpers=missing,
        type_numbers="\n".join(f"#define BTF_{kind.name}_{name} {id_}" for (kind, name), id_ in numbers_of.items()),
    )
    (include / "linux" / "kconfig.h").write_text(kconfig)
    (tree / "complete").touch()


def bpftool_path() -> str:
    """Path of bpftool, which may lie where only root's PATH leads, and which nobody but root may have put there.

    Raises:
        CaptureError: it is not installed.
    """
    tool = program("bpftool")
    if tool is None:
        raise CaptureError("bpftool is not installed", hint=_INSTALL)
    return tool


def bpftool_version(tool: str) -> str:
    """What a bpftool says of itself, its libbpf included.

    Raises:
        CaptureError: it does not run.
    """
    try:
        done = subprocess.run(
            [tool, "version"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
            env=environment(),
        )
    except OSError as error:
        raise CaptureError(f"{tool} does not run: {error.strerror}", hint=_INSTALL) from error
    if done.returncode != 0:
        raise CaptureError(f"{tool} does not run: {done.stderr.strip() or done.returncode}", hint=_INSTALL)
    return done.stdout


def _dump_btf(tool: str) -> str:
    command = [tool, "btf", "dump", "file", str(BTF_PATH), "format", "c"]
    done = subprocess.run(command, capture_output=True, check=False, cwd="/", env=environment())
    if done.returncode != 0 or not done.stdout:
        detail = done.stderr.decode(errors="replace").strip()
        raise CaptureError(f"bpftool could not read {BTF_PATH} ({detail})", hint="run as root with bpftool 5.10 or up")
    return done.stdout.decode()
