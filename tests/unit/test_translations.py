# SPDX-License-Identifier: Apache-2.0
"""Few connections are asked about, answers name addresses only, and a recording holds them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from rover_plugin.access_log import questions
from rover_plugin.access_log.link import ConnectionFacts
from rover_plugin.access_log.model import Direction
from rover_plugin.access_log.questions import Questions
from rover_plugin.capture.recording import RecordingReader, RecordingWriter, Translation, Translations
from tests.support.pipeline import Pipeline
from tests.support.synthetic import header

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000
REAL = socket.inet_aton("172.30.0.2")


def facts(identity: int, remote: str = "10.96.0.1", port: int = 80, role: str = "client") -> ConnectionFacts:
    ends = {"local": socket.inet_aton("10.0.0.1"), "remote": socket.inet_aton(remote)}
    return ConnectionFacts(identity, 1, 1, role, tls=False, ipv6=False, local_port=5, remote_port=port, **ends)


def test_what_was_not_translated_is_not_asked_again_for_a_while() -> None:
    seen: list[int] = []
    subject = Questions(lambda one: seen.append(one.id))
    assert subject.ask(facts(1), 0)
    subject.answered(1, facts(1), Translation(1), 0)
    assert not subject.ask(facts(2), SECOND)
    assert subject.ask(facts(3, port=81), SECOND)
    assert subject.ask(facts(4), 31 * SECOND)
    assert seen == [1, 3, 4]


def test_each_client_of_a_server_is_asked_about_since_a_router_s_address_may_be_anybody_s() -> None:
    subject = Questions(lambda _: None)
    assert subject.ask(facts(1, port=5000, role="server"), 0)
    subject.answered(1, facts(1, port=5000, role="server"), Translation(1), 0)
    assert subject.ask(facts(2, port=5001, role="server"), 0)


def test_what_was_translated_is_asked_each_time() -> None:
    subject = Questions(lambda _: None)
    for number in range(3):
        assert subject.ask(facts(number), 0)
        subject.answered(number, facts(number), Translation(number, REAL, 80), 0)


def test_a_hundred_a_second_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_A_SECOND", 3)
    subject = Questions(lambda _: None)
    assert [subject.ask(facts(number, port=number), 0) for number in range(1, 6)] == [True] * 3 + [False] * 2
    assert subject.ask(facts(9), SECOND)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_MOST_PLAIN", 10)
    subject = Questions(lambda _: None)
    for number in range(100):
        subject.answered(number, facts(number, port=number), Translation(number), 0)
    assert len(subject._plain) == 10


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    subject = Questions(lambda _: None)
    subject.ask(facts(1), 0)
    subject.ask(facts(2, port=81), SECOND // 4)
    assert subject.overdue(SECOND // 2) == [1]
    assert list(subject.open) == [2]


@pytest.mark.parametrize("answered", [True, False])
def test_an_exchange_waits_for_the_answer_and_goes_without_it(*, answered: bool) -> None:
    asked: list[int] = []
    subject = Pipeline(translate=lambda one: asked.append(one.id))
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1), kernel.call(1, Direction.INGRESS, b"GET / HTTP/1.1\r\n\r\n"))
    worker.read(kernel.call(1, Direction.EGRESS, b"HTTP/1.1 204 No Content\r\n\r\n"))
    worker.report()
    assert asked == [1]
    assert subject.balance("protocol").open["hub"] == 1
    if answered:
        subject.resolver.translated([Translation(1, REAL, 81)], 0)
    subject.resolver.settle(SECOND)
    assert subject.resolver.settled
    worker.report()
    assert subject.balance("protocol").open["hub"] == 0
    remote = subject.outputs[0].resolved[-1].remote
    assert (remote.host, remote.pid) == ("172.30.0.2" if answered else "10.0.0.2", None)
    assert (remote.seen is not None) == answered
    assert subject.counters.value("peers", result="elsewhere") == 1


def test_an_answer_in_a_recording(tmp_path: Path) -> None:
    said = (Translation(1, REAL, 80), Translation(2), Translation(3, bytes(16), 65535))
    writer = RecordingWriter(tmp_path / "a.rec", header())
    writer.translations(5, said)
    writer.close(6, {})
    with RecordingReader(tmp_path / "a.rec") as reader:
        assert next(reader.blocks()) == Translations(5, said)
