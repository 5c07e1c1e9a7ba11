# SPDX-License-Identifier: Apache-2.0
"""CPU of nginx for an answer of 2 MB with the kernel side walking, not walking and absent. As root.

The three take turns and the least time of each counts, so that other load on the machine is no cost of ours.
"""

from __future__ import annotations

import http.client
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil

from rover_plugin.capture.ring import RingReader
from rover_plugin.capture.session import Capture, CaptureOptions
from tests.support.servers import Nginx

ROUNDS = 12
_LOCATIONS = """
    location /write/ { sendfile off; alias WWW/files/; }
    location /chunked/ { sendfile off; ssi on; ssi_types *; alias WWW/files/; }
"""
LOADS = {"/write/2m": 30, "/chunked/2m": 30}


def _spent(worker: psutil.Process) -> float:
    # Nanoseconds on a CPU; what psutil says is counted in ticks of 10 ms.
    return int(Path(f"/proc/{worker.pid}/schedstat").read_text().split()[0])


def main(rounds: int) -> None:
    """Prints a row for each kind of answer."""
    captures = {
        name: Capture(CaptureOptions(ring_bytes=64 << 20, walk=name == "walking")) for name in ("copying", "walking")
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        locations = _LOCATIONS.replace("WWW", str(folder / "nginx" / "www"))
        nginx = Nginx(folder / "nginx", locations=locations)
        (nginx.files / "2m").write_bytes(bytes(2_000_000))
        stack.enter_context(nginx)
        (worker,) = psutil.Process(nginx.pid).children()
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(worker.pid, cpus[-1:])
        os.sched_setaffinity(0, cpus[:1])
        readers = {
            name: [RingReader(ring) for ring in capture.ring_descriptors()] for name, capture in captures.items()
        }
        least: dict[tuple[str, str], float] = {}
        for _ in range(rounds):
            for state in ("absent", "copying", "walking"):
                if state in captures:
                    captures[state].start()
                    captures[state].watch(worker.pid)
                for path, count in LOADS.items():
                    connection = http.client.HTTPConnection("127.0.0.1", nginx.port)
                    before = _spent(worker)
                    for _ in range(count):
                        connection.request("GET", path)
                        connection.getresponse().read()
                    spent = (_spent(worker) - before) / count / 1000
                    connection.close()
                    least[path, state] = min(least.get((path, state), spent), spent)
                    for reader in readers.get(state, ()):
                        reader.read(lambda *_: None)
                if state in captures:
                    captures[state].stop()
        for path in LOADS:
            bare = least[path, "absent"]
            copying, walking = (least[path, state] - bare for state in ("copying", "walking"))
            print(f"{path:12} {bare:8.1f} us a request, {copying:+7.1f} copying, {walking:+7.1f} walking")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
