# SPDX-License-Identifier: Apache-2.0
"""Who ended an exchange, and whether nobody answered it, from a connection's records to the line that is written."""

from __future__ import annotations

import pytest

from rover_plugin.access_log.model import Direction
from rover_plugin.capture.records import CLOSE_BY_PEER, CLOSE_PEER_ENDED, CLOSE_SHUT_FIRST, OpenCause
from tests.support.pipeline import Pipeline, Worker

REQUEST = b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc"
IN, OUT = Direction.INGRESS, Direction.EGRESS


def lines(subject: Pipeline, worker: Worker) -> list[tuple[object, object, object]]:
    worker.hand_over()
    subject.settle()
    return [(item["status"], item["completeness"], item.get("ended_by")) for item in subject.messages("exchange")]


@pytest.mark.parametrize(
    ("flags", "by"),
    [
        (0, "local"),
        (CLOSE_BY_PEER, "reset"),
        (CLOSE_PEER_ENDED, "remote"),
        (CLOSE_PEER_ENDED | CLOSE_SHUT_FIRST, "local"),  # it had ended what it wrote before the peer ended its part
    ],
)
def test_a_close_says_who_ended_a_response(flags: int, by: str) -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1), kernel.call(1, IN, REQUEST), kernel.call(1, OUT, CUT), kernel.close(1, flags=flags))
    assert lines(subject, worker) == [(200, "truncated", by)]


@pytest.mark.parametrize("cut", [b"", CUT])
def test_an_agent_that_stops_ends_what_is_under_way_itself(cut: bytes) -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1), kernel.call(1, IN, REQUEST))
    if cut:
        worker.read(kernel.call(1, OUT, cut))
    worker.shard.finish(kernel.now_ns)
    assert lines(subject, worker) == [(200 if cut else None, "truncated", "agent")]


@pytest.mark.parametrize("met", [False, True])
def test_an_answer_lost_before_the_close_is_a_gap(met: bool) -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1, OpenCause.MET if met else OpenCause.ACCEPT), kernel.call(1, IN, REQUEST))
    kernel.lose(1, OUT, 500)
    worker.read(kernel.close(1))
    assert lines(subject, worker) == [(None, "gap", None)]


@pytest.mark.parametrize("lost", ["nothing", "before", "since"])
def test_a_time_out_is_no_missing_answer_while_records_were_lost(lost: str) -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1), kernel.open(2))
    if lost == "before":
        kernel.lose(2, OUT, 500)
    worker.read(kernel.call(2, IN, b"x"), kernel.call(1, IN, REQUEST))
    if lost == "since":
        kernel.lose(2, OUT, 500)
    worker.read(kernel.call(2, IN, b"y"))
    worker.shard.expire(kernel.now_ns + 1)
    assert lines(subject, worker) == [(None, "gap" if lost == "since" else "no_response", None)]
