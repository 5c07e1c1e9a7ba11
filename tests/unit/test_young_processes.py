# SPDX-License-Identifier: Apache-2.0
"""A process is born as a copy of its parent; what it does before the feed knows its own program is not thrown away."""

from __future__ import annotations

from dataclasses import replace

from rover_plugin.access_log.model import Direction
from rover_plugin.discovery.table import Added, Removed, Updated
from tests.support.pipeline import Pipeline
from tests.support.synthetic import server_process

CHOSEN = server_process()
AS_PARENT = replace(CHOSEN, exe="/bin/sh", entities=())
PID = CHOSEN.key.pid
SECOND = 1_000_000_000


def exchange(subject: Pipeline) -> None:
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1), kernel.call(1, Direction.INGRESS, b"GET / HTTP/1.1\r\n\r\n"))
    worker.read(kernel.call(1, Direction.EGRESS, b"HTTP/1.1 204 No Content\r\n\r\n"))
    worker.report()


def test_a_process_whose_parent_is_not_chosen_stays_watched_until_its_program_is_known() -> None:
    subject = Pipeline(known=False)
    subject.resolver.change_process(Added(AS_PARENT), 0)
    exchange(subject)
    subject.resolver.change_process(Updated(CHOSEN), SECOND // 2)
    subject.resolver.settle(2 * SECOND)
    assert subject.unwatched == []
    subject.workers[0].report()
    assert subject.balance("protocol").open == {"hub": 0, "output": 1}


def test_one_that_is_not_chosen_after_a_second_is_let_go() -> None:
    subject = Pipeline(known=False)
    subject.resolver.change_process(Added(AS_PARENT), 0)
    exchange(subject)
    subject.resolver.settle(SECOND - 1)
    assert subject.unwatched == []
    subject.resolver.settle(SECOND)
    assert subject.unwatched == [PID]
    assert subject.resolver.settled
    subject.workers[0].report()
    exchange_logs = subject.balance("protocol")
    assert (exchange_logs.filtered, exchange_logs.imbalance) == ({"not_selected": 1}, 0)


def test_one_that_turns_out_to_run_what_is_not_chosen_is_let_go_at_once() -> None:
    subject = Pipeline(known=False)
    subject.resolver.change_process(Added(AS_PARENT), 0)
    subject.resolver.change_process(Updated(replace(AS_PARENT, exe="/bin/true")), 1)
    assert subject.unwatched == [PID]
    assert subject.resolver.settled


def test_one_that_ended_young_is_forgotten() -> None:
    subject = Pipeline(known=False)
    subject.resolver.change_process(Added(AS_PARENT), 0)
    subject.resolver.change_process(Removed(AS_PARENT.key), 1)
    assert subject.resolver.settled


def test_a_chosen_one_that_is_changed_to_another_is_let_go_at_once() -> None:
    subject = Pipeline(known=True)
    subject.resolver.change_process(Updated(AS_PARENT), 1)
    assert subject.unwatched == [PID]


def test_one_that_has_ended_is_not_watched_while_it_is_still_listed() -> None:
    subject = Pipeline(known=True)
    subject.resolver.change_process(Updated(replace(CHOSEN, exited=True)), 1)
    assert subject.unwatched == [PID]
    exchange(subject)
    subject.settle()
    subject.workers[0].report()
    assert subject.balance("protocol").exported == 1
