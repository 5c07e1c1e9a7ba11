# SPDX-License-Identifier: Apache-2.0
"""The ledger balances to 0 whatever happens to a log, and does not when one is swallowed or counted twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from rover_plugin.access_log import resolver as resolver_module
from rover_plugin.access_log.model import Direction
from rover_plugin.access_log.resolver import FOREVER_NS
from rover_plugin.telemetry import ledger as ledger_module
from tests.support.pipeline import Pipeline

if TYPE_CHECKING:
    from tests.support.pipeline import Worker

REQUEST = b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def exchange(worker: Worker, connection: int, *, opened: bool = False) -> None:
    """One exchange, on a new connection unless it is `opened`."""
    kernel = worker.kernel
    if not opened:
        worker.read(kernel.open(connection))
    worker.read(kernel.call(connection, Direction.INGRESS, REQUEST))
    worker.read(kernel.call(connection, Direction.EGRESS, RESPONSE))


def test_every_stage_a_log_can_be_in_is_open_until_it_is_exported() -> None:
    subject = Pipeline(known=False)
    (worker,) = subject.workers
    worker.read(worker.kernel.open(1), worker.kernel.call(1, Direction.INGRESS, REQUEST))
    worker.report()
    balance = subject.balance()
    assert (balance.read, balance.open, balance.imbalance) == (2, {"worker": 2, "hub": 0, "output": 0}, 0)

    worker.read(worker.kernel.call(1, Direction.EGRESS, RESPONSE))
    worker.shard.flush(FOREVER_NS)
    worker.report()
    balance = subject.balance()
    assert (balance.read, balance.open, balance.imbalance) == (3, {"worker": 0, "hub": 3, "output": 0}, 0)

    subject.name_process()
    worker.report()
    balance = subject.balance()
    assert (balance.read, balance.open, balance.imbalance) == (3, {"worker": 0, "hub": 0, "output": 3}, 0)

    subject.settle()
    worker.report()
    balance = subject.balance()
    assert (balance.read, balance.exported, balance.imbalance) == (3, 3, 0)
    assert (subject.balance("protocol").read, subject.balance("protocol").exported) == (1, 1)
    assert not any(balance.open.values())


def test_what_another_worker_handed_over_since_its_report_is_ahead_and_balanced() -> None:
    subject = Pipeline(workers=2)
    first, second = subject.workers
    exchange(first, 1)
    exchange(second, 2)
    first.report()
    second.report()
    exchange(second, 2, opened=True)
    second.hand_over()
    first.report()
    balance = subject.balance()
    assert (balance.ahead, balance.imbalance) == (2, 0)
    second.report()
    balance = subject.balance()
    assert (balance.ahead, balance.read, balance.imbalance) == (0, 8, 0)


def test_records_missing_in_the_ring_are_read_and_lost() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    exchange(worker, 1)
    worker.kernel.lose(1, Direction.INGRESS, 100)
    worker.kernel.lose(1, Direction.EGRESS, 100)
    exchange(worker, 1, opened=True)
    worker.report()
    balance = subject.balance()
    assert balance.lost == {("ring", "ring_full"): 2}
    assert (balance.read, balance.imbalance) == (7, 0)


def test_records_kept_out_of_a_ring_with_room_are_told_apart_and_no_reason_ever_becomes_less() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    kernel_side = [0]
    subject.ledger.refused = lambda: kernel_side[0]
    exchange(worker, 1)
    seen = []
    # The kernel side's count is ahead of what workers have noticed, by any number.
    for missing, refused_by_now in ((3, 1), (2, 9), (4, 9), (0, 9), (5, 9)):
        kernel_side[0] = refused_by_now
        for _ in range(missing):
            worker.kernel.lose(1, Direction.INGRESS, 100)
        exchange(worker, 1, opened=True)
        worker.report()
        balance = subject.balance()
        assert balance.imbalance == 0
        seen.append((balance.lost.get(("ring", "share"), 0), balance.lost.get(("ring", "ring_full"), 0)))
    assert seen == [(1, 2), (3, 2), (7, 2), (7, 2), (9, 5)]


def test_records_lost_after_the_last_one_read_are_counted_at_the_end() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    exchange(worker, 1)
    worker.kernel.lose(1, Direction.INGRESS, 100)
    worker.report()
    assert subject.ledger.lost_ring() == 0
    subject.ledger.settle_ring({0: worker.kernel.sequence})
    subject.ledger.check(subject.resolver.waiting_logs())
    assert subject.ledger.lost_ring() == 1
    assert subject.balance().imbalance == 0


def test_what_a_full_queue_refuses_is_lost_for_every_output_that_wanted_it() -> None:
    subject = Pipeline(encodings=("json", "protobuf"), queue_size=3)
    (worker,) = subject.workers
    worker.socket.full = True
    for connection in range(1, 5):
        exchange(worker, connection)
        worker.hand_over()
    worker.socket.full = False
    worker.report()
    subject.settle()
    worker.report()
    lost = {output.name: subject.balance("kernel", output.name).lost for output in subject.outputs}
    assert lost["keep_json"]["queue", "queue_full"] > 0
    assert lost["keep_protobuf"]["queue", "queue_full"] > 0
    assert [line.imbalance for line in subject.ledger.balances] == [0, 0, 0, 0]


def test_processes_nobody_names_are_filtered_with_the_reason() -> None:
    subject = Pipeline(known=False)
    (worker,) = subject.workers
    exchange(worker, 1)
    worker.read(worker.kernel.close(1))
    worker.hand_over()
    subject.settle()
    worker.report()
    assert subject.balance().filtered == {"unknown_process": 4}
    assert subject.balance("protocol").filtered == {"unknown_process": 1}
    assert subject.ledger.imbalance() == 0


def test_exchanges_of_which_the_encoder_makes_no_log_are_filtered_for_that_output_only() -> None:
    subject = Pipeline(encodings=("json", "protobuf"))
    (worker,) = subject.workers
    worker.read(worker.kernel.open(1), worker.kernel.call(1, Direction.INGRESS, REQUEST), worker.kernel.close(1))
    subject.settle()
    worker.report()
    assert subject.balance("protocol", "keep_json").filtered == {}
    assert subject.balance("protocol", "keep_protobuf").filtered == {"no_status": 1}
    assert subject.ledger.imbalance() == 0


def test_what_the_hub_has_no_room_for_is_lost_before_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "_MAX_WAITING", 2)
    subject = Pipeline(known=False)
    (worker,) = subject.workers
    for connection in range(1, 6):
        exchange(worker, connection)
    worker.report()
    assert subject.balance().lost["queue", "hub_full"] > 0
    assert subject.ledger.imbalance() == 0


def test_records_of_unknown_connections_are_unparsed() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    worker.read(worker.kernel.call(9, Direction.INGRESS, REQUEST))
    worker.report()
    assert subject.balance().unparsed == {"unknown_connection": 1}
    assert subject.ledger.imbalance() == 0


def test_the_calls_of_a_long_transfer_go_alone_beyond_what_an_exchange_carries() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1), kernel.call(1, Direction.INGRESS, REQUEST))
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 6000000\r\n\r\n"
    worker.read(kernel.call(1, Direction.EGRESS, head))
    for _ in range(6000):
        worker.read(kernel.call(1, Direction.EGRESS, b"", unseen=1000))
    worker.read(kernel.close(1))
    worker.hand_over()
    subject.settle()
    worker.report()
    balance = subject.balance()
    assert (balance.read, balance.exported, balance.lost) == (6004, 6004, {})
    (logged,) = subject.messages("exchange")
    assert len(logged["calls"]) == 256  # type: ignore[arg-type]
    assert subject.ledger.imbalance() == 0


@pytest.mark.parametrize("unit", ["kernel", "protocol"])
def test_a_log_swallowed_on_its_way_is_an_imbalance_that_is_logged_once_in_a_while(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    take = subject.outputs[0].write
    swallowed = (1, 0) if unit == "kernel" else (0, 1)

    def swallow(message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        take(message, kernel_logs - swallowed[0], protocol_logs - swallowed[1])

    worker.read(worker.kernel.open(1))
    worker.shard.flush(FOREVER_NS)
    worker.hand_over()
    monkeypatch.setattr(subject.outputs[0], "write", swallow)
    exchange(worker, 1, opened=True)
    with capture_logs() as logs:
        worker.report()
        worker.report()
    assert subject.balance(unit).imbalance == 1
    assert [(line["event"], line["unit"], line["imbalance"]) for line in logs] == [
        ("ledger_out_of_balance", "kernel", int(unit == "kernel")),
        ("ledger_out_of_balance", "protocol", int(unit == "protocol")),
    ]
    monkeypatch.setattr(ledger_module, "_LOG_PERIOD_S", 0.0)
    with capture_logs() as logs:
        worker.report()
    assert logs


def test_a_fragment_that_never_arrives_is_the_workers_imbalance() -> None:
    subject = Pipeline(workers=2)
    first, second = subject.workers
    exchange(first, 1)
    exchange(second, 2)
    second.outbox.hand_over()
    second.link._parts.clear()
    first.report()
    second.report()
    assert subject.ledger.worker_imbalance[0, 0] == (0, 0)
    assert subject.ledger.worker_imbalance[1, 0] == (2, 1)
    assert subject.balance().imbalance == 2


def test_a_call_given_out_twice_is_an_imbalance() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    worker.read(worker.kernel.open(1))
    connection = worker.shard.connections[1]
    connection.conversation.loose.append(connection.conversation.loose[0])
    worker.shard.flush(FOREVER_NS)
    worker.report()
    assert subject.balance().imbalance == 0  # one more out, one fewer held: only the connection's end shows it
    worker.read(worker.kernel.close(1))
    worker.report()
    assert subject.balance().imbalance == -1
    assert subject.ledger.imbalance() > 0


def test_losses_before_the_outputs_are_said_in_sums_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    exchange(worker, 1)
    with capture_logs() as logs:
        worker.report()
        for _ in range(3):
            worker.kernel.lose(1, Direction.INGRESS, 10)
            exchange(worker, 1, opened=True)
            worker.report()
    assert [(line["event"], line["ring_records"]) for line in logs] == [("logs_lost_before_output", 1)]
    monkeypatch.setattr(ledger_module, "_LOG_PERIOD_S", 0.0)
    with capture_logs() as logs:
        worker.report()
        worker.report()
    assert [line["ring_records"] for line in logs] == [2]
