# SPDX-License-Identifier: Apache-2.0
"""Workers, link, resolver and outputs in one process, fed with made-up records: the agent without kernel and clock."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rover_plugin.access_log.account import NO_LIMIT
from rover_plugin.access_log.address_book import AddressBook
from rover_plugin.access_log.link import LinkWriter
from rover_plugin.access_log.outbox import Outbox
from rover_plugin.access_log.resolver import FOREVER_NS, Resolver
from rover_plugin.access_log.shard import Shard
from rover_plugin.access_log.worker import shard_counts
from rover_plugin.access_log.worker_options import WorkerOptions
from rover_plugin.discovery.table import Added
from rover_plugin.telemetry.counters import Counters
from rover_plugin.telemetry.ledger import Logs, Standing, standing
from tests.support.synthetic import Kernel, server_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rover_plugin.access_log.link import ConnectionFacts
    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.telemetry.ledger import Balance


class Keep:
    """An output that keeps what it is given until `tick`."""

    def __init__(self, counters: Counters, name: str = "keep", encoding: str = "json") -> None:
        self.name, self.encoding = name, encoding
        self._counters = counters
        self.messages: list[bytes] = []
        self.resolved: list[ResolvedConnection] = []
        self._held = [0, 0]

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        self.resolved.append(connection)
        return b"{" if self.encoding == "json" else str(connection.id).encode()

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        self.messages.append(message)
        self._held[0] += kernel_logs
        self._held[1] += protocol_logs

    def standing(self) -> Standing:
        return standing(self._counters, self.name, Logs(*self._held))

    def tick(self) -> None:
        for unit, count in zip(("kernel", "protocol"), self._held, strict=True):
            self._counters.add("logs_exported", count, output=self.name, unit=unit)
        self._held = [0, 0]

    def close(self, deadline_s: float) -> None:
        del deadline_s
        self.tick()


class Socket:
    """A link's socket that takes nothing while it is `full`."""

    def __init__(self, resolver: Resolver, worker: int) -> None:
        self._resolver, self._worker = resolver, worker
        self.full = False

    def send(self, datagram: bytes, /) -> int:
        if self.full:
            raise BlockingIOError
        self._resolver.take(datagram, 0, self._worker)
        return len(datagram)

    def fileno(self) -> int:
        return -1  # nobody waits for it


class Policies:
    """What the kernel side was told, by key."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def set(self, key: bytes, value: bytes) -> None:
        self.values[key] = value

    def delete(self, key: bytes) -> bool:
        return self.values.pop(key, None) is not None


class Worker:
    """One worker's parts; `kernel` makes its records."""

    def __init__(self, number: int, resolver: Resolver, options: WorkerOptions) -> None:
        self.number = number
        self.kernel = Kernel()
        self.socket = Socket(resolver, number)
        self.link = LinkWriter(self.socket, options.queue_size)
        self.policies = Policies()
        self.outbox = Outbox(self.link, self.policies, options)
        self.shard = Shard(self.outbox, options.max_connections, max_bytes=options.max_bytes)

    def read(self, *records: bytes) -> None:
        for record in records:
            self.shard.handle(memoryview(record), 0, len(record))

    def hand_over(self) -> None:
        self.outbox.hand_over()
        self.link.reached(1)
        self.link.flush()

    def report(self) -> None:
        self.outbox.hand_over()
        self.link.reached(1)
        self.link.report(shard_counts(self.number, self.shard, self.outbox, self.link))
        self.link.flush()


class Pipeline:
    """Everything behind the rings.

    Args:
        encodings: what workers make, each for an output `keep_<encoding>` of its own.
        known: the feed has named the process already.
        more_outputs: those that take the same beside the ones above.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        encodings: Iterable[str] = ("json",),
        known: bool = True,
        queue_size: int = 5000,
        max_connections: int = 65536,
        max_bytes: int = NO_LIMIT,
        more_outputs: Callable[[Counters], Sequence[Output]] = lambda _: (),
        translate: Callable[[ConnectionFacts], None] | None = None,
    ) -> None:
        self.counters = Counters()
        encodings = tuple(encodings)
        self.outputs = [Keep(self.counters, f"keep_{encoding}", encoding) for encoding in encodings]
        outputs = [*self.outputs, *more_outputs(self.counters)]
        book = AddressBook(local_addresses=frozenset)
        self.unwatched: list[int] = []
        self.resolver = Resolver(
            encodings, outputs, book, self.counters, lambda _: True, self.unwatched.append, workers, translate
        )
        self.ledger = self.resolver.ledger
        self.workers = [
            Worker(
                number,
                self.resolver,
                WorkerOptions(
                    number,
                    encodings,
                    queue_size,
                    max_connections,
                    60.0,
                    grpc_status_as_http=True,
                    max_bytes=max_bytes,
                ),
            )
            for number in range(workers)
        ]
        if known:
            self.name_process()

    def name_process(self) -> None:
        self.resolver.change_process(Added(server_process()), 0)
        self.resolver.settle(0)

    def settle(self) -> None:
        self.resolver.settle(FOREVER_NS)
        for output in self.outputs:
            output.tick()

    def balance(self, unit: str = "kernel", output: str = "keep_json") -> Balance:
        (found,) = (line for line in self.ledger.balances if (line.output, line.unit) == (output, unit))
        return found

    def messages(self, kind: str) -> list[dict[str, object]]:
        """What the output for JSON was given."""
        objects = [json.loads(message) for message in self.outputs[0].messages]
        return [item for item in objects if item["kind"] == kind]
