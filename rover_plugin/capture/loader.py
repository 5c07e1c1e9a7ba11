# SPDX-License-Identifier: Apache-2.0
"""Loads a BPF source and keeps what came of it: maps, programs and attachments, as file descriptors."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from rover_plugin.cancellation import Cancellation
from rover_plugin.capture.bpf import attach_raw_tracepoint
from rover_plugin.capture.privileges import require_bpf, require_initial_pid_namespace
from rover_plugin.capture.source import read_source
from rover_plugin.data import data_path
from rover_plugin.errors import BuildError, CaptureError
from rover_plugin.host.children import python_command
from rover_plugin.host.stop_signals import spawn

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Container, Iterable, Mapping

log = structlog.get_logger(__name__)

_MAP = re.compile(r"^BPF_(?:(?:PERCPU_|PROG_)?ARRAY|HASH|RINGBUF_OUTPUT)\((\w+),", re.MULTILINE)
_TABLE = re.compile(r"^BPF_TABLE\([^;]*?,\s*(\w+),\s*\w+\);", re.MULTILINE)
_PROGRAM = re.compile(r"^int ((?:on|tail)_\w+)\(", re.MULTILINE)
# What bcc's library writes of a map that the kernel does not make.
_NO_ROOM = re.compile(r"could not open bpf map: (\w+), error: (Cannot allocate memory|Argument list too long)")
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_LOG_HINT = "report it with the log above"
# Ends that are the memory's: the kernel's killer, and compilers that get none.
_STARVED = frozenset({signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS})
# ru_maxrss of the helper for access_log.c on 6.18 with clang 14.
_MEMORY_MB = 170


@dataclass(frozen=True, slots=True)
class BuildPatience:
    """How long a build may take, in seconds. It takes 7 s of CPU time, and minutes where cores are shared or slow.

    Attributes:
        idle: without using any CPU time.
        total: for everything.
        notice: after which the log says that it still runs, again and again.
    """

    idle: float = 120.0
    total: float = 1800.0
    notice: float = 60.0


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


def _build(
    request: dict[str, object],
    cancellation: Cancellation,
    patience: BuildPatience = BuildPatience(),
) -> LoadedProgram:
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
        ours.settimeout(1.0)
        try:
            with cancellation.interrupting(lambda: _kill(process)):
                received, descriptors = _receive(ours, _Watch(process.pid, patience))
            if not received:
                process.wait()  # all that held the socket have closed it
        finally:
            _kill(process)
            process.wait()
        output.seek(0)
        words = output.read().decode(errors="replace")
    answer = json.loads(received or "{}")
    if words and "maps" not in answer:
        log.error("bpf_build_log", text=words)
    if not received:
        raise _ended(process.returncode)
    if "error" in answer:
        raise _refused(answer, words)
    maps = dict(zip(answer["maps"], descriptors, strict=False))
    programs = dict(zip(answer["programs"], descriptors[len(maps) :], strict=True))
    return LoadedProgram(maps, programs)


def _refused(answer: dict[str, str], words: str) -> CaptureError:
    """What a helper that answers with an error, and its library's words, say."""
    if no_room := _NO_ROOM.search(words):
        return BuildError(
            f"the kernel has no room for the BPF map {no_room[1]} ({no_room[2]})",
            hint="raise the memory limit, or lower access_log.connections.max or protocol_analyze.per_cpu_buffer",
        )
    return CaptureError(answer["error"], hint=answer["hint"], cause=answer["cause"])


def _ended(code: int) -> BuildError:
    """What became of a helper that ended without an answer."""
    if -code in _STARVED:
        return BuildError(
            f"the BPF build process was ended by {signal.Signals(-code).name}, most likely for want of memory",
            hint=f"it needs {_MEMORY_MB} MB beside the agent, while it starts: raise the memory limit",
        )
    return BuildError(f"the BPF build process ended without an answer (exit code {code})", hint=_LOG_HINT)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a helper that has not ended, and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _receive(channel: socket.socket, watch: _Watch) -> tuple[bytes, list[int]]:
    """The answer's line and descriptors; no line if the helper ended without.

    Raises:
        BuildError: it took too long.
    """
    received, descriptors = b"", list[int]()
    while True:
        try:
            data, more, _, _ = socket.recv_fds(channel, 65536, 250)
        except TimeoutError:
            watch.look()
            continue
        descriptors += more
        received += data
        if not data:
            return received.partition(b"\n")[0], descriptors


class _Watch:
    """Tells a helper that is slow, as on a small or busy node, from one that has stopped working."""

    def __init__(self, pid: int, patience: BuildPatience) -> None:
        self._pid = pid
        self._patience = patience
        self._began = self._worked = self._noticed = time.monotonic()
        self._cpu_ticks = 0

    def look(self) -> None:
        """Looks how far it is.

        Raises:
            BuildError: the patience is at its end.
        """
        now = time.monotonic()
        ticks = _cpu_ticks(self._pid)
        if ticks != self._cpu_ticks:
            self._cpu_ticks, self._worked = ticks, now
        used = f"{ticks / _CLOCK_TICKS:.0f} s of CPU time"
        if now - self._worked > self._patience.idle:
            raise BuildError(
                f"the BPF build process has not worked for {self._patience.idle:.0f} s (after {used})",
                hint="something stopped it, or its disk does not answer: start the agent again",
            )
        if now - self._began > self._patience.total:
            raise BuildError(
                f"the BPF build took longer than {self._patience.total:.0f} s (and {used})",
                hint="this node is too slow or its CPU limit too low: give the agent more CPU while it starts",
            )
        if now - self._noticed > self._patience.notice:
            self._noticed = now
            log.info("bpf_build_slow", seconds=round(now - self._began), cpu_seconds=round(ticks / _CLOCK_TICKS))


def _cpu_ticks(pid: int) -> int:
    """CPU time of a process and of the children that it has waited for (utime to cstime in /proc/pid/stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))
