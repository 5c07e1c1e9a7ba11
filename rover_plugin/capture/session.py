# SPDX-License-Identifier: Apache-2.0
"""One running capture: the loaded object, its tables filled, its probes attached, its numbers readable."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import structlog

from rover_plugin.capture.bpf import Map, possible_cpus, program_runs
from rover_plugin.capture.loader import load
from rover_plugin.capture.plan import ACCESS_LOG_PROBES, decide
from rover_plugin.capture.records import MAX_SHARDS
from rover_plugin.capture.syscalls import call_classes
from rover_plugin.errors import BuildError, CaptureError, PrivilegeError

if TYPE_CHECKING:
    from rover_plugin.cancellation import Cancellation
    from rover_plugin.capture.loader import LoadedProgram

log = structlog.get_logger(__name__)

_U32 = struct.Struct("=I")
_FIRST = bytes(4)
_SYSCALLS = 512
MAX_PROCESSES = 16384
MAX_THREADS = 65536
# Calls up to this size are copied without asking for the connection's policy, which costs a look-up.
_ALWAYS_COPY = 1024
# Of a call that goes on with what an earlier one began: enough to stay in step where content has a framing of its own.
_CONTINUED_LIMIT = 16384


class Statistic(IntEnum):
    """`enum statistic` of bpf/maps.h."""

    RECORDS = 0
    RING_FULL = 1
    CONNECTIONS_FULL = 2
    THREADS_FULL = 3
    PROCESSES_FULL = 4
    NOT_TCP = 5
    COMPAT = 6
    FAULT = 7
    PROVISIONAL = 8
    PROVISIONAL_FULL = 9
    SHARE = 10


# Those that follow framing, and `enum tail` of bpf/maps.h.
_WALKS = ("tail_head", "tail_chunks", "tail_frames")
_TAILS = ("tail_messages", "tail_head", "tail_chunks", "tail_frames", "tail_message")

# enum watch
_WATCH_NOT = _U32.pack(0)
_WATCH_DECIDED = _U32.pack(1)
_WATCH_PROVISIONAL = _U32.pack(2)

# struct executable
EXECUTABLE_NAME = 64
MAX_EXECUTABLES = 1024

# Of a shard's ring, for processes that nobody has chosen yet; at least eight of the largest records.
_PROVISIONAL_SHARE = 8
# bcc counts bytes in an int.
_MOST_RING_BYTES = 1 << 30
_LEAST_PROVISIONAL_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """Sizes of a capture.

    Attributes:
        shards: ring buffers, one per worker process.
        ring_bytes: of all rings together; each gets its part, rounded up to a power of two pages, of 1 GB
            at most.
        capture_limit: bytes of one call that are copied at most.
        max_connections: connections held at a time.
        max_processes: processes watched at a time.
        max_threads: threads of theirs that have made a call.
        plain: read kernel memory by helper calls only, as kernels before 5.15 need it.
        walk: follow framing (bpf/walk.h), as far as the kernel's verifier agrees.
    """

    shards: int = 2
    ring_bytes: int = 1 << 20
    capture_limit: int = 16384
    max_connections: int = 65536
    max_processes: int = MAX_PROCESSES
    max_threads: int = MAX_THREADS
    plain: bool = False
    walk: bool = True

    def ring_pages(self) -> int:
        """Pages of one ring: a power of two."""
        page = os.sysconf("SC_PAGESIZE")
        return min(_power_of_two(-(-self.ring_bytes // (self.shards * page))), _MOST_RING_BYTES // page)

    def provisional_pages(self) -> int:
        """Pages of the ring beside it for processes that nobody has chosen yet: a power of two."""
        page = os.sysconf("SC_PAGESIZE")
        return max(self.ring_pages() // _PROVISIONAL_SHARE, _power_of_two(_LEAST_PROVISIONAL_BYTES // page))


def _executable(name: str) -> bytes:
    return os.fsencode(name)[: EXECUTABLE_NAME - 1].ljust(EXECUTABLE_NAME, b"\0")


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


class Capture:
    """The kernel side while it runs. `start` attaches; until then nothing is seen.

    Attributes:
        plain_reason: why the plain form was loaded though nobody asked for it; empty if it was not.
        walk_reason: the same for the form that does not follow framing (bpf/walk.h).
    """

    def __init__(self, options: CaptureOptions, cancellation: Cancellation | None = None) -> None:
        if not 1 <= options.shards <= MAX_SHARDS:
            raise CaptureError(
                f"{options.shards} shards are not possible",
                hint=f"set access_log.protocol_analyze.parallels to 1..{MAX_SHARDS}",
            )
        self.options = options
        self._cancellation = cancellation
        self._present, self._missing = decide()
        self.plain_reason = self.walk_reason = ""
        self._loaded = self._load_best()
        maps = self._loaded.maps
        self._processes = Map(maps["processes"])
        self._connections = Map(maps["connections"])
        self._statistics = Map(maps["statistics"])
        self._lanes = Map(maps["lanes"])
        self._tables = {name: Map(maps[name]) for name in ("connections", "policies", "processes", "threads")}
        classes = Map(maps["call_classes"])
        for number, kind in call_classes().items():
            classes.set(_U32.pack(number), bytes([kind]))
        tails = Map(maps["tail_programs"])
        for index, name in enumerate(_TAILS):
            if name in self._loaded.programs:
                tails.set(_U32.pack(index), _U32.pack(self._loaded.programs[name]))
        self._executables = Map(maps["executables"])
        self._other_executables = Map(maps["other_executables"])
        self._other_executables.set(_FIRST, _WATCH_PROVISIONAL)

    def _load_best(self) -> LoadedProgram:
        """Loads the form that costs least of those that this kernel takes."""
        plain, walk = self.options.plain, self.options.walk
        while True:
            try:
                return self._load(plain=plain, walk=walk)
            except (PrivilegeError, BuildError):
                raise  # of no form of the programs
            except CaptureError as error:
                # One that does not take what is quicker may take what every kernel takes; if not, that is the error.
                if walk and (plain or error.message.endswith(_WALKS)):
                    walk = False
                    self.walk_reason = error.message
                    log.warning("bpf_no_walk", reason=error.message)
                elif not plain:
                    plain = True
                    self.plain_reason = error.message
                    log.warning("bpf_plain", reason=error.message)
                else:
                    raise

    def _load(self, *, plain: bool, walk: bool) -> LoadedProgram:
        options = self.options
        missing = {probe.name for probe in self._missing}
        if not walk:
            missing |= set(_WALKS)
        page = os.sysconf("SC_PAGESIZE")
        pages = options.ring_pages()
        provisional_pages = options.provisional_pages()
        # A power of two, for the verifier's sake, and not more than a ring can ever take in one record.
        limit = 1 << (min(options.capture_limit, pages * page // 4) - 1).bit_length()
        return load(
            "access_log.c",
            {
                "SHARDS": options.shards,
                "RING_PAGES": pages,
                "RING_BYTES": pages * page,
                "WAKEUP_BYTES": pages * page // 8,
                "PROVISIONAL_PAGES": provisional_pages,
                "PROVISIONAL_WAKEUP_BYTES": provisional_pages * page // 8,
                "CPUS": possible_cpus(),
                "SYSCALLS": _SYSCALLS,
                "MAX_PROCESSES": options.max_processes,
                "MAX_EXECUTABLES": MAX_EXECUTABLES,
                "MAX_THREADS": options.max_threads,
                "MAX_CONNECTIONS": options.max_connections,
                "CAPTURE_LIMIT": limit,
                "CONTINUED_LIMIT": min(_CONTINUED_LIMIT, limit),
                "ALWAYS_COPY": min(_ALWAYS_COPY, limit),
                "AGENT_TGID": os.getpid(),
                "PLAIN": int(plain),
                "WALK": int(walk),
                "IO_URING": int("io_uring_complete" not in missing),
            },
            without=missing,
            attach=False,
            cancellation=self._cancellation,
        )

    def start(self) -> None:
        """Attaches every probe this kernel has; says once which are missing and what that costs."""
        for probe in self._missing:
            log.warning("probe_missing", probe=probe.name, lost=probe.lost)
        self._loaded.attach(probe.name for probe in self._present)

    def ring_descriptors(self) -> list[int]:
        """Map descriptor of each shard's ring."""
        return [self._loaded.maps[f"ring_{shard}"] for shard in range(self.options.shards)]

    def provisional_descriptors(self) -> list[int]:
        """Map descriptor of each shard's ring for processes that nobody has chosen yet."""
        return [self._loaded.maps[f"provisional_{shard}"] for shard in range(self.options.shards)]

    @property
    def policies_descriptor(self) -> int:
        """Map descriptor of the capture policies, which workers write."""
        return self._loaded.maps["policies"]

    @property
    def connections_descriptor(self) -> int:
        """Map descriptor of the connections, of which workers delete those they give up."""
        return self._loaded.maps["connections"]

    @property
    def program_descriptors(self) -> dict[str, int]:
        """Descriptor of each program, by name."""
        return dict(self._loaded.programs)

    def watch(self, tgid: int) -> bool:
        """Watches a process from its next call on; False if the table is full."""
        return self._watch_as(tgid, _WATCH_DECIDED)

    def watch_provisionally(self, tgid: int) -> bool:
        """As `watch`, but its records go apart until it is chosen, as those of a new process do."""
        return self._watch_as(tgid, _WATCH_PROVISIONAL)

    def _watch_as(self, tgid: int, watch: bytes) -> bool:
        try:
            self._processes.set(_U32.pack(tgid), watch)
        except OSError as error:
            if error.errno == errno.E2BIG:
                return False
            raise
        return True

    def unwatch(self, tgid: int) -> None:
        """Stops watching a process; harmless for one that was not watched."""
        self._processes.delete(_U32.pack(tgid))

    def is_watched(self, tgid: int) -> bool:
        """Whether a process is watched, provisionally or by decision."""
        return self._processes.get(_U32.pack(tgid)) is not None

    def expect_executables(self, only: frozenset[str] | None, never: frozenset[str]) -> None:
        """From the next exec on, watches a new process only if its program may be chosen, by its file's name.

        Args:
            only: names that may be chosen; None for all.
            never: names that may not.
        """
        named = {_executable(name): _WATCH_NOT for name in never if len(os.fsencode(name)) < EXECUTABLE_NAME}
        named |= {_executable(name): _WATCH_PROVISIONAL for name in (only or ()) if name not in never}
        others = _WATCH_PROVISIONAL if only is None else _WATCH_NOT
        if len(named) > MAX_EXECUTABLES:
            named, others = {}, _WATCH_PROVISIONAL
        # Meanwhile one too many is watched rather than one too few.
        self._other_executables.set(_FIRST, _WATCH_PROVISIONAL)
        for name in list(self._executables.keys()):
            self._executables.delete(name)
        for name, watch in named.items():
            self._executables.set(name, watch)
        self._other_executables.set(_FIRST, others)

    def watched(self) -> set[int]:
        """Process ids watched now, provisionally or by decision."""
        return {_U32.unpack(key)[0] for key in self._processes.keys()}  # noqa: SIM118 a Map is no dict

    def connection_count(self) -> int:
        """Connections the kernel side holds now; walks the table."""
        return sum(1 for _ in self._connections.keys())  # noqa: SIM118 a Map is no dict

    def map_fill(self) -> dict[str, tuple[int, int]]:
        """Entries now and at most of each table that grows, by name; reads the tables."""
        return {name: (table.count(), table.max_entries) for name, table in self._tables.items()}

    def probes(self) -> dict[str, bool]:
        """Whether each probe is attached."""
        return {probe.name: probe.name in self._loaded.links for probe in ACCESS_LOG_PROBES}

    def statistics(self) -> dict[Statistic, int]:
        """Counts of the kernel side since it was loaded, summed over the CPUs."""
        sums = {}
        for statistic in Statistic:
            slots = self._statistics.get(_U32.pack(statistic)) or b""
            sums[statistic] = sum(struct.unpack(f"={len(slots) // 8}Q", slots))
        return sums

    def missed_runs(self) -> dict[str, int]:
        """By program: runs that the kernel left out because the program was running on that CPU (since 6.1)."""
        return {name: program_runs(descriptor)[2] for name, descriptor in self._loaded.programs.items()}

    def sequences(self) -> dict[int, int]:
        """Records made for each shard, put into its ring or not, modulo 2^32: its lanes' last sequence numbers."""
        shards = self.options.shards
        sums = dict.fromkeys(range(shards), 0)
        for index in range(self._lanes.max_entries):
            sums[index % shards] += _U32.unpack_from(self._lanes.get(_U32.pack(index)) or bytes(4))[0]
        return {shard: total & 0xFFFFFFFF for shard, total in sums.items()}

    def stop(self) -> None:
        """Detaches the probes; what is in the rings can still be read."""
        self._loaded.detach()

    def close(self) -> None:
        """Frees everything."""
        self._loaded.close()
