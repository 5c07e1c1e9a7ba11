# SPDX-License-Identifier: Apache-2.0
"""Loads a BPF source and keeps what came of it: maps, programs and attachments, as file descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from rover_plugin.cancellation import Cancellation
from rover_plugin.capture.bpf import attach_raw_tracepoint
from rover_plugin.capture.privileges import require_bpf, require_initial_pid_namespace
from rover_plugin.capture.source import read_source
from rover_plugin.data import data_path
from rover_plugin.errors import CaptureError
from rover_plugin.host.children import python_command
from rover_plugin.host.stop_signals import spawn

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Container, Iterable, Mapping

log = structlog.get_logger(__name__)

_MAP = re.compile(r"^BPF_(?:(?:PERCPU_|PROG_)?ARRAY|HASH|RINGBUF_OUTPUT)\((\w+),", re.MULTILINE)
_TABLE = re.compile(r"^BPF_TABLE\([^;]*?,\s*(\w+),\s*\w+\);", re.MULTILINE)
_PROGRAM = re.compile(r"^int ((?:on|tail)_\w+)\(", re.MULTILINE)
_BUILD_TIMEOUT_S = 120.0


@dataclass(slots=True)
class LoadedProgram:
    """A loaded BPF object. Attachments last until `close`, or until this process ends.

    Attributes:
        maps: descriptor of each map, by name.
        programs: descriptor of each program, by function name (`on_<tracepoint>`, or `tail_<name>` for tail calls).
        links: descriptor of each attachment, by tracepoint.
    """

    maps: dict[str, int]
    programs: dict[str, int]
    links: dict[str, int] = field(default_factory=dict)

    def attach(self, tracepoints: Iterable[str]) -> None:
        """Attaches the program `on_<name>` to each raw tracepoint `name`, in order.

        Raises:
            CaptureError: the kernel has no such tracepoint, or refuses.
        """
        for name in tracepoints:
            self.links[name] = attach_raw_tracepoint(self.programs[f"on_{name}"], name)

    def detach(self) -> None:
        """Detaches everything; maps and what is in them stay."""
        while self.links:
            os.close(self.links.popitem()[1])

    def close(self) -> None:
        """Detaches and frees everything."""
        self.detach()
        for descriptor in [*self.maps.values(), *self.programs.values()]:
            os.close(descriptor)
        self.maps.clear()
        self.programs.clear()


def load(
    source_name: str,
    defines: Mapping[str, str | int],
    *,
    without: Container[str] = (),
    attach: bool = True,
    cancellation: Cancellation | None = None,
) -> LoadedProgram:
    """Compiles `bpf/<source_name>`, loads every function `on_<tracepoint>` of it and attaches them.

    Args:
        source_name: file below bpf/, with its local headers.
        defines: preprocessor constants the source asks for.
        without: tracepoints whose programs the defines leave out.
        attach: False leaves attaching to the caller, who may want to fill maps first.
        cancellation: ends the build.

    Raises:
        CancelledError: the build was cancelled.
        PrivilegeError: this process may not use BPF.
        CaptureError: bcc, BTF or bpftool is missing, compiler, verifier or kernel refuse, or this process is in a pid
            namespace of its own.
    """
    require_initial_pid_namespace()
    require_bpf()
    source = read_source(data_path("bpf"), source_name)
    shards = int(defines.get("SHARDS", 8))
    maps = [name for name in _MAP.findall(source) + _TABLE.findall(source) if not _beyond(name, shards)]
    programs = [name for name in _PROGRAM.findall(source) if name.removeprefix("on_") not in without]
    request: dict[str, object] = {"source": source, "defines": dict(defines), "maps": maps, "programs": programs}
    loaded = _build(request, cancellation or Cancellation())
    if attach:
        try:
            loaded.attach(name[3:] for name in loaded.programs if name.startswith("on_"))
        except CaptureError:
            loaded.close()
            raise
    return loaded


def _beyond(name: str, shards: int) -> bool:
    # Rings of shards that are not configured are not compiled.
    kind, _, number = name.rpartition("_")
    return kind in {"ring", "provisional"} and number.isdigit() and int(number) >= shards


def _build(request: dict[str, object], cancellation: Cancellation) -> LoadedProgram:
    ours, theirs = socket.socketpair()
    # Files and not pipes: nobody reads the compiler's words while it speaks, nor waits until it has read its task.
    with ours, theirs, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as task:
        task.write(json.dumps(request).encode())
        task.seek(0)
        process = spawn(
            python_command("rover_plugin.capture.build", str(theirs.fileno())),
            stdin=task,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
            process_group=0,
        )
        theirs.close()
        ours.settimeout(_BUILD_TIMEOUT_S)
        try:
            with cancellation.interrupting(lambda: _kill(process)):
                received, descriptors = _receive(ours)
        finally:
            _kill(process)
            process.wait()
        output.seek(0)
        words = output.read().decode(errors="replace")
    answer = json.loads(received or "{}")
    if words and "maps" not in answer:
        log.error("bpf_build_log", text=words)
    if not received:
        raise CaptureError("the BPF build process ended without an answer", hint="report it with the log above")
    if "error" in answer:
        raise CaptureError(answer["error"], hint=answer["hint"], cause=answer["cause"])
    maps = dict(zip(answer["maps"], descriptors, strict=False))
    programs = dict(zip(answer["programs"], descriptors[len(maps) :], strict=True))
    return LoadedProgram(maps, programs)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a helper that has not ended, and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """The answer's line and descriptors; no line if the helper ended without, or took too long."""
    received, descriptors = b"", list[int]()
    with contextlib.suppress(TimeoutError):
        while True:
            data, more, _, _ = socket.recv_fds(channel, 65536, 250)
            descriptors += more
            received += data
            if not data:
                break
    return received.partition(b"\n")[0], descriptors
