# SPDX-License-Identifier: Apache-2.0
"""The helper process that compiles and loads BPF with bcc, hands over the descriptors and exits.

A process of its own because clang leaves 150 MB behind (measured), which no agent should carry for its life.
Run as `rover_plugin.capture.build` (`children`); the request comes as JSON on standard input, the answer goes as JSON
with the descriptors attached (SCM_RIGHTS) over the socket whose number is the only argument.
"""

from __future__ import annotations

import ctypes
import glob
import importlib
import json
import os
import resource
import socket
import struct
import sys
from typing import Any

from rover_plugin.capture.headers import kernel_functions, kernel_tree
from rover_plugin.errors import CaptureError

# Where distributions put their bcc, for an interpreter that is not theirs. It is pure Python, any 3.x can import it.
_DISTRIBUTION_PATHS = (
    "/usr/lib/python3/dist-packages",
    "/usr/lib/python3*/site-packages",
    "/usr/lib64/python3*/site-packages",
)
_INSTALL = "install the distribution's package: apt install python3-bpfcc, or dnf install python3-bcc"
# The kernel takes 253 descriptors in one message at most (SCM_MAX_FD).
_DESCRIPTORS_PER_MESSAGE = 250
# struct bpf_insn (include/uapi/linux/bpf.h): code, registers (source in the upper half on little-endian), off, imm.
_INSTRUCTION = struct.Struct("=BBhi")
_CALL = 0x85
_PSEUDO_KFUNC_CALL = 2


def import_bcc() -> Any:
    """Imports the BPF Compiler Collection's Python module, wherever the distribution keeps it.

    Raises:
        CaptureError: it is missing, or another project's `bcc` is in its place.
    """
    paths = [path for pattern in _DISTRIBUTION_PATHS for path in sorted(glob.glob(pattern))]  # noqa: PTH207 absolute globs
    sys.path.extend(path for path in paths if path not in sys.path)
    try:
        module = importlib.import_module("bcc")
    except (ImportError, OSError) as error:
        raise CaptureError("the Python module bcc is not installed", hint=_INSTALL) from error
    if not hasattr(module, "BPF"):
        raise CaptureError(
            f"{module.__file__} is not the BPF Compiler Collection but another project named bcc",
            hint=f"pip uninstall bcc, then {_INSTALL}",
        )
    return module


def _raise_memlock() -> None:
    # Kernels before 5.11 charge BPF memory to this limit.
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return  # said by `rover-host check`; on newer kernels it does not matter


def _mark_kernel_functions(bcc: Any, module: Any, name: str, functions: set[int]) -> None:
    # bcc's clang knows calls of helpers only. A kernel function's differs in one field: who numbers it is the BTF.
    library = bcc.libbcc.lib
    library.bpf_function_start.restype = ctypes.c_void_p
    size = library.bpf_function_size(module.module, name.encode())
    code = (ctypes.c_char * size).from_address(library.bpf_function_start(module.module, name.encode()))
    for at in range(0, size, _INSTRUCTION.size):
        opcode, registers, _, immediate = _INSTRUCTION.unpack_from(code, at)
        if (opcode, registers) == (_CALL, 0) and immediate in functions:
            _INSTRUCTION.pack_into(code, at, _CALL, _PSEUDO_KFUNC_CALL << 4, 0, immediate)


def compile_and_load(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Compiles `request["source"]` and loads the `on_*` programs it lists.

    Returns:
        The answer (map and program names, in the order of the descriptors) and the descriptors.

    Raises:
        CaptureError: with the compiler's or verifier's words in `context["log"]`.
    """
    tree = kernel_tree()
    os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    bcc = import_bcc()
    _raise_memlock()
    flags = [f"-D{name}={value}" for name, value in request["defines"].items()]
    flags += ["-Wno-macro-redefined", "-Wno-unused-function", "-Wno-address-of-packed-member", "-O2"]
    try:
        module = bcc.BPF(text=request["source"], cflags=flags)
    except Exception as error:
        version = getattr(bcc, "__version__", "?")
        raise CaptureError(
            f"bcc {version} does not compile the BPF source for this kernel", hint="report it with the log above"
        ) from error
    maps = {name: module[name].map_fd for name in request["maps"]}
    programs = {}
    functions = kernel_functions(tree)
    for name in request["programs"]:
        _mark_kernel_functions(bcc, module, name, functions)
        try:
            programs[name] = module.load_func(name, bcc.BPF.RAW_TRACEPOINT).fd
        except Exception as error:
            raise CaptureError(
                f"the kernel refuses the BPF program {name}", hint="report it with the log above"
            ) from error
    descriptors = [*maps.values(), *programs.values()]
    # bcc closes its descriptors when the object goes; it must live until they are sent.
    request["keep"] = module
    return {"maps": list(maps), "programs": list(programs)}, descriptors


def main() -> int:
    """Serves one request; exit code 0 also when the answer is an error."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    request = json.load(sys.stdin)
    descriptors: list[int] = []
    try:
        answer, descriptors = compile_and_load(request)
    except CaptureError as error:
        answer = {
            "error": error.message,
            "hint": error.hint,
            "cause": str(error.__cause__ or ""),
        }
    channel.sendall(json.dumps(answer).encode() + b"\n")
    for start in range(0, len(descriptors), _DESCRIPTORS_PER_MESSAGE):
        socket.send_fds(channel, [b"+"], descriptors[start : start + _DESCRIPTORS_PER_MESSAGE])
    channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
