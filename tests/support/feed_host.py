# SPDX-License-Identifier: Apache-2.0
"""A process that serves a process feed: `python -m tests.support.feed_host SOCKET`, until its standard input ends.

Reads one JSON array of `{"pid", "namespace", "service", "selected"}`; with "pad", so many made-up processes are added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rover_plugin.discovery.feed_server import FeedServer
from rover_plugin.discovery.model import Entity, Process, ProcessKey
from rover_plugin.discovery.procfs import read_process
from rover_plugin.discovery.table import ProcessTable
from rover_plugin.host.logs import configure_logs


def main() -> None:
    configure_logs("ERROR")
    table = ProcessTable()
    request = json.loads(sys.stdin.readline())
    for item in request["processes"]:
        facts = read_process(item["pid"])
        assert facts is not None
        entity = Entity("K8S_SERVICE", item["service"], "host-1", "target", namespace=item["namespace"])
        table.update([Process(facts.key, facts.exe, entities=(entity,) if item["selected"] else ())])
    made_up = Entity("OS_LINUX", "made-up", "host-1", "made-up")
    table.update(Process(ProcessKey(10_000_000 + n, 1), entities=(made_up,)) for n in range(request["pad"]))
    server = FeedServer(table, Path(sys.argv[1]))
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
