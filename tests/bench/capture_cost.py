# SPDX-License-Identifier: Apache-2.0
"""What the kernel side costs a process, call by call: its own time without probes, unwatched and watched. As root.

Watched it is twice: by a kernel side that follows framing and by one that does not. All take turns within one run and
the least CPU time of each counts, so that other load on the machine is no cost of ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rover_plugin.capture.ring import RingReader
from rover_plugin.capture.session import Capture, CaptureOptions
from tests.support.mover import build

ROUNDS = 60
KINDS = {"tcp": 300, "answer": 300, "head": 300, "file": 1000, "other": 1000}
SOURCE = Path(__file__).parents[1] / "support" / "pingpong.c"


def main(rounds: int) -> None:
    """Prints a row for each kind of call."""
    # The rings take a whole round, so that no reader runs beside it: on a virtual machine it would share the core.
    captures = {walk: Capture(CaptureOptions(ring_bytes=16 << 20, walk=walk)) for walk in (False, True)}
    readers = [RingReader(ring) for capture in captures.values() for ring in capture.ring_descriptors()]
    cpus = sorted(os.sched_getaffinity(0))
    least: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = build(SOURCE, Path(folder))
        with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as victim:
            assert victim.stdin
            assert victim.stdout
            os.sched_setaffinity(victim.pid, cpus[-1:])
            os.sched_setaffinity(0, cpus[:1])
            for _ in range(rounds):
                for state in ("without", "unwatched", "watched", "walked"):
                    capture = captures[state == "walked"]
                    if state in {"unwatched", "walked"}:
                        captures[state != "walked"].stop()
                        capture.start()
                        capture.unwatch(victim.pid)
                    if state in {"watched", "walked"}:
                        capture.watch(victim.pid)
                    for kind, count in KINDS.items():
                        victim.stdin.write(f"{kind} {count}\n")
                        spent = float(victim.stdout.readline())
                        least[kind, state] = min(least.get((kind, state), spent), spent)
                        for reader in readers:
                            reader.read(lambda *_: None)
                capture.stop()
            victim.stdin.close()
    for reader in readers:
        reader.close()
    for capture in captures.values():
        capture.close()
    for kind in KINDS:
        bare = least[kind, "without"]
        unwatched, watched, walked = (least[kind, state] - bare for state in ("unwatched", "watched", "walked"))
        print(
            f"{kind:8} {bare:8.1f} ns a round without probes, {unwatched:+8.1f} unwatched,"
            f" {watched:+8.1f} watched, {walked:+8.1f} watched and walked"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
