# SPDX-License-Identifier: Apache-2.0
"""Replays made-up HTTP/1 keep-alive traffic: 1000 connections, every path another. `make bench`, or with --exchanges N.

Prints exchanges a second and microseconds an exchange: of the worker's part (record to encoded fragment, batched on the
link), and of the whole replay (with naming and the `jsonl` output).
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import tempfile
import time
from pathlib import Path

from rover_plugin.access_log.link import LinkWriter
from rover_plugin.access_log.model import Direction
from rover_plugin.access_log.outbox import Outbox
from rover_plugin.access_log.outputs.jsonl import JsonLinesOutput
from rover_plugin.access_log.replay import replay
from rover_plugin.access_log.schedule import Schedule
from rover_plugin.access_log.shard import Shard
from rover_plugin.access_log.worker_options import WorkerOptions
from rover_plugin.capture.recording import Batch, RecordingReader, RecordingWriter
from rover_plugin.discovery.table import Added
from rover_plugin.telemetry.counters import Counters
from tests.support.synthetic import CLOCK_OFFSET_NS, Kernel, header, made_batch, server_process

CONNECTIONS = 1000
BATCH = 2000
CLIENT_FIELDS = (
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: text/html,application/json\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\nCookie: session=0123456789abcdef0123456789abcdef\r\n\r\n"
)
SERVER_FIELDS = (
    b"Server: nginx/1.22.1\r\nDate: Tue, 24 Nov 2026 05:12:15 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: 27\r\nConnection: keep-alive\r\n\r\n"
    b'{"id":12345,"state":"done"}'
)


class Nowhere:
    """Takes datagrams and policies."""

    def send(self, datagram: bytes, /) -> int:
        return len(datagram)

    def fileno(self) -> int:
        return -1

    def set(self, key: bytes, value: bytes) -> None:
        pass


def write(path: Path, exchanges: int) -> None:
    """Records of a server's side, two an exchange, and the ends of all connections."""
    kernel = Kernel()
    writer = RecordingWriter(path, header())
    writer.processes(kernel.now_ns, [Added(server_process())])
    records = [kernel.open(connection) for connection in range(1, CONNECTIONS + 1)]
    for number in range(exchanges):
        connection = number % CONNECTIONS + 1
        request = b"GET /api/orders/%d/items?page=1 HTTP/1.1\r\nHost: shop.example.com\r\n" % number + CLIENT_FIELDS
        records.append(kernel.call(connection, Direction.INGRESS, request))
        records.append(kernel.call(connection, Direction.EGRESS, b"HTTP/1.1 200 OK\r\n" + SERVER_FIELDS))
        kernel.now_ns += 20_000
        if len(records) >= BATCH:
            writer.batch(made_batch(kernel.now_ns, records))
            records = []
    records += [kernel.close(connection) for connection in range(1, CONNECTIONS + 1)]
    writer.batch(made_batch(kernel.now_ns, records))
    writer.close(kernel.now_ns, {})


def worker_part(path: Path) -> tuple[int, float]:
    """Exchanges, and the CPU seconds of what a worker process does with them."""
    nowhere = Nowhere()
    link = LinkWriter(nowhere, 1 << 30)
    outbox = Outbox(link, nowhere, WorkerOptions(0, ("json",), 1 << 30, 65536, 60.0, grpc_status_as_http=True))
    shard = Shard(outbox)
    schedule = Schedule(shard, 60.0)
    outbox.set_clock(CLOCK_OFFSET_NS)
    used = 0.0
    with RecordingReader(path) as reader:
        for block in reader.blocks():
            if isinstance(block, Batch):
                began = time.process_time()
                block.each(shard.handle)
                schedule.pass_time(block.read_ns)
                outbox.hand_over()
                link.flush()
                used += time.process_time() - began
    return shard.exchanges_out, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=1_000_000)
    parser.add_argument("--profile", action="store_true", help="show where the worker's part spends its time")
    arguments = parser.parse_args()
    # As a worker has it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.rec"
        write(path, arguments.exchanges)
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(worker_part, path)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            return
        exchanges, used = worker_part(path)
        print(f"worker   {exchanges:>9} exchanges  {exchanges / used:>8.0f}/s  {used / exchanges * 1e6:5.1f} us each")
        counters = Counters()
        output = JsonLinesOutput("/dev/null", counters)
        with RecordingReader(path) as reader:
            summary = replay(reader, output, counters)
        output.close(1.0)
        seconds = summary.seconds
        print(
            f"replay   {summary.exchanges:>9} exchanges  {summary.exchanges / seconds:>8.0f}/s"
            f"  {seconds / summary.exchanges * 1e6:5.1f} us each   imbalance {summary.imbalance}"
        )


if __name__ == "__main__":
    main()
