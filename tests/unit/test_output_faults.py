# SPDX-License-Identifier: Apache-2.0
"""A log that an output cannot take is counted and shown once; the hub, the other logs and the other outputs go on."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from rover_plugin.access_log.address_book import AddressBook
from rover_plugin.access_log.encoders.protobuf import ProtobufEncoder
from rover_plugin.access_log.hub import Hub
from rover_plugin.access_log.link import LinkWriter, read_items
from rover_plugin.access_log.model import Direction, Exchange
from rover_plugin.access_log.outputs.console import ConsoleOutput
from rover_plugin.access_log.resolver import FOREVER_NS
from rover_plugin.discovery.table import Added
from rover_plugin.telemetry.counters import Counters
from tests.support.pipeline import Keep, Pipeline
from tests.support.synthetic import server_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.access_log.outputs.base import Output

REQUEST = b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n"
POISON = b"GET /poison HTTP/1.1\r\nHost: shop\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Allergic(Keep):
    """Cannot take a message that has `poison` in it."""

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        if b"poison" in message:
            raise KeyError("stream")
        super().write(message, kernel_logs, protocol_logs)


class Prefixless(Keep):
    """Cannot take any connection."""

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        raise UnicodeError(str(connection.id))


def feed(subject: Pipeline, requests: Sequence[bytes]) -> None:
    (worker,) = subject.workers
    worker.read(worker.kernel.open(1))
    for request in requests:
        worker.read(worker.kernel.call(1, Direction.INGRESS, request))
        worker.read(worker.kernel.call(1, Direction.EGRESS, RESPONSE))
    worker.shard.flush(FOREVER_NS)
    worker.report()


def test_a_log_that_cannot_be_taken_costs_itself_alone_and_is_shown_once() -> None:
    subject = Pipeline(more_outputs=lambda counters: [Allergic(counters, "allergic")])
    with capture_logs() as logs:
        feed(subject, [REQUEST, POISON, REQUEST, POISON])
    subject.settle()
    lost = subject.balance("protocol", "allergic").lost
    assert lost == {("send", "output_failed"): 2}
    assert subject.balance("kernel", "allergic").lost == {("send", "output_failed"): 4}
    assert len(subject.messages("exchange")) == 4
    assert subject.ledger.imbalance() == 0
    (shown,) = [line for line in logs if line["event"] == "output_failed"]
    assert (shown["output"], shown["log_level"]) == ("allergic", "error")
    assert "/poison" in shown["log"]


def test_a_connection_that_cannot_be_taken_costs_its_logs_of_that_output() -> None:
    subject = Pipeline(more_outputs=lambda counters: [Prefixless(counters, "prefixless")], known=False)
    with capture_logs() as logs:
        feed(subject, [REQUEST])
        subject.name_process()
        (worker,) = subject.workers
        worker.report()
    assert subject.balance("kernel", "prefixless").lost == {("send", "output_failed"): 3}
    assert subject.balance("kernel", "prefixless").imbalance == 0
    assert len(subject.messages("exchange")) == 1
    assert [line["output"] for line in logs if line["event"] == "output_failed"] == ["prefixless"]


def test_an_exchange_that_an_encoder_cannot_take_costs_itself_alone_and_is_shown_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Pipeline(encodings=("json", "protobuf"))
    (worker,) = subject.workers
    encode = ProtobufEncoder.exchange

    def fail(encoder: ProtobufEncoder, exchange: Exchange) -> tuple[bytes, int]:
        if exchange.path == "/poison":
            raise UnicodeError("\x1b[2J")
        return encode(encoder, exchange)

    monkeypatch.setattr(ProtobufEncoder, "exchange", fail)
    feed(subject, [REQUEST, POISON, REQUEST, POISON])
    subject.settle()
    worker.report()
    balance = subject.balance("protocol", "keep_protobuf")
    assert (balance.exported, balance.lost) == (2, {("queue", "encoder_failed"): 2})
    assert subject.balance("protocol", "keep_json").exported == 4
    assert subject.ledger.imbalance() == 0
    shown = capfd.readouterr().err
    assert shown.count("Traceback") == 1
    assert "\x1b" not in shown


JUNK = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"}", b'"kind":"exchange"}', b'"kind":"exchange","protocol":"http/2","status":1e999}']),
    st.just(b'"kind":"exchange","protocol":"http/2","time":"x","status":null}'),
)


@settings(max_examples=60, deadline=None)
@given(fragments=st.lists(st.tuples(JUNK, st.integers(0, 1)), max_size=6))
def test_whatever_a_fragment_holds_the_hub_goes_on_and_every_log_is_accounted_for(
    fragments: list[tuple[bytes, int]],
) -> None:
    counters = Counters()
    outputs: list[Output] = [ConsoleOutput(counters, open("/dev/null", "w")), Keep(counters)]  # noqa: SIM115, PTH123
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    failures: list[BaseException] = []
    hub = Hub([ours], ["json"], outputs, AddressBook(), counters, lambda _: True, lambda _: None, failures.append)
    hub.process_changed(Added(server_process()))
    hub.start()
    theirs.settimeout(0)
    link = LinkWriter(theirs, 1000)
    subject = Pipeline()
    (worker,) = subject.workers
    worker.read(worker.kernel.open(1))
    link.connection(worker.shard.connections[1], 2, tls=False)
    for payload, protocol_logs in fragments:
        link.fragment(1, 0, 1, protocol_logs, payload)
    link.drain(10)
    hub.expect_end()
    theirs.close()
    assert hub.finish(10)
    ours.close()
    assert failures == []
    for output in outputs:
        output.close(1)
        stands = output.standing()
        ends = [stands.exported, *stands.lost.values(), *stands.filtered.values()]
        kernel, protocol = sum(both.kernel for both in ends), sum(both.protocol for both in ends)
        assert (kernel, protocol) == (len(fragments), sum(logs for _, logs in fragments))


def test_a_worker_that_ends_waits_for_a_main_process_that_is_slow_and_not_for_ever() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    theirs.settimeout(0)
    link = LinkWriter(theirs, 100_000)
    for _ in range(200):
        link.fragment(1, 0, 1, 0, bytes(30_000))
    link.flush()
    assert link.waiting_messages
    link.drain(0.05)
    assert link.broken

    link.broken = False
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(iter(lambda: ours.recv(1 << 16), b"")))
    reader.start()
    link.drain(10)
    assert (link.broken, link.waiting_messages) == (False, 0)
    theirs.close()
    reader.join()
    ours.close()
    assert sum(len(list(read_items(datagram))) for datagram in received) == 200


def test_an_output_whose_tick_fails_ends_neither_hub_nor_others() -> None:
    class Tickless(Keep):
        def tick(self) -> None:
            raise OSError(28, "No space left on device")

    counters = Counters()
    ticked = threading.Event()

    class Ticks(Keep):
        def tick(self) -> None:
            super().tick()
            ticked.set()

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    failures: list[BaseException] = []
    outputs = [Tickless(counters, "tickless"), Ticks(counters, "ticks")]
    hub = Hub([ours], ["json"], outputs, AddressBook(), counters, lambda _: True, lambda _: None, failures.append)
    with capture_logs() as logs:
        hub.start()
        for _ in range(2):
            assert ticked.wait(10)
            ticked.clear()
        hub.expect_end()
        theirs.close()
        assert hub.finish(10)
    ours.close()
    assert failures == []
    assert [line["part"] for line in logs if line["event"] == "hub_part_failed"] == ["tickless"]
