# SPDX-License-Identifier: Apache-2.0
"""Bytes lost or not copied, at every position of a conversation: no wrong field ever, what is not known is labelled.

Every request has its own path `/N`, every response N's own status and sizes, so that a wrong pair shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest

from rover_plugin.access_log.model import Completeness
from tests.support.http1 import REQUEST, RESPONSE, Conversation

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.access_log.model import Exchange, Side


@dataclass(frozen=True)
class Truth:
    """One exchange of the conversation as it really was."""

    number: int
    request: bytes
    response: bytes
    request_head: int
    request_body: int
    response_head: int
    response_body: int
    method: str

    @property
    def status(self) -> int:
        return 200 + self.number


def _truth(number: int) -> Truth:
    """Alternates between content-length, chunked, HEAD and no content at all."""
    kind = number % 4
    method = "HEAD" if kind == 2 else "POST" if kind in (0, 1) else "GET"
    content = b"q" * (number + 3)
    head = b"%s /%d HTTP/1.1\r\nHost: host-%d\r\n" % (method.encode(), number, number)
    if kind == 0:
        head += b"Content-Length: %d\r\n\r\n" % len(content)
        request = head + content
    elif kind == 1:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        request = head + b"%x\r\n%s\r\n1\r\nq\r\n0\r\n\r\n" % (len(content), content)
    else:
        head += b"\r\n"
        request = head
    request_body = {0: len(content), 1: len(content) + 1}.get(kind, 0)
    answer = b"s" * (number * 2 + 5)
    answer_head = b"HTTP/1.1 %d X\r\n" % (200 + number)
    if kind == 3:
        answer_head += b"Transfer-Encoding: chunked\r\n\r\n"
        response = answer_head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer), answer)
    else:
        answer_head += b"Content-Length: %d\r\n\r\n" % len(answer)
        response = answer_head + (b"" if kind == 2 else answer)
    response_body = 0 if kind == 2 else len(answer)
    return Truth(number, request, response, len(head), request_body, len(answer_head), response_body, method)


RUNS = 600
# Four is left out of the statuses: 204 would have no content.
NUMBERS = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
TRUTHS = {number: _truth(number) for number in NUMBERS}
Script = list[tuple["Side", bytes]]


def _sequential() -> Script:
    return [call for t in TRUTHS.values() for call in ((REQUEST, t.request), (RESPONSE, t.response))]


def _burst() -> Script:
    return [(REQUEST, t.request) for t in TRUTHS.values()] + [(RESPONSE, t.response) for t in TRUTHS.values()]


def _packed() -> Script:
    return [
        (REQUEST, b"".join(t.request for t in TRUTHS.values())),
        (RESPONSE, b"".join(t.response for t in TRUTHS.values())),
    ]


def _batches() -> Script:
    script: Script = []
    truths = list(TRUTHS.values())
    for at in range(0, len(truths), 3):
        batch = truths[at : at + 3]
        script += [(REQUEST, t.request) for t in batch]
        script += [(RESPONSE, b"".join(t.response for t in batch))]
    return script


def _split() -> Script:
    return [(side, part) for side, data in _sequential() for part in (data[: len(data) // 2], data[len(data) // 2 :])]


SCRIPTS: dict[str, Callable[[], Script]] = {
    "sequential": _sequential,
    "burst": _burst,
    "packed": _packed,
    "batches": _batches,
    "split": _split,
}


def check(exchanges: list[Exchange], where: str = "") -> None:
    """Each field of each exchange is right or unknown, and what is unknown is labelled."""
    for exchange in exchanges:
        asked = None
        if exchange.path is not None:
            asked = TRUTHS[int(exchange.path[1:])]
            assert exchange.method == asked.method
            assert exchange.host in (f"host-{asked.number}", None)
        if exchange.status is not None and asked is not None:
            assert exchange.status == asked.status, f"paired with another request's response {where}"
        answered = TRUTHS[exchange.status - 200] if exchange.status is not None else None
        whole = exchange.completeness is Completeness.COMPLETE
        counted = exchange.completeness in (Completeness.COMPLETE, Completeness.NO_RESPONSE)
        if whole:
            assert asked is not None
            assert answered is not None
        if asked is not None and counted:
            assert exchange.host == f"host-{asked.number}"
            assert exchange.request_header_bytes == asked.request_head
            assert exchange.request_body_bytes == asked.request_body
        if answered is not None and whole:
            assert exchange.response_header_bytes == answered.response_head
            assert exchange.response_body_bytes == answered.response_body
        if asked is not None:
            assert exchange.request_header_bytes <= asked.request_head
            assert exchange.request_body_bytes <= asked.request_body
        if answered is not None:
            assert exchange.response_header_bytes <= answered.response_head
            assert exchange.response_body_bytes <= answered.response_body
    paths = [exchange.path for exchange in exchanges if exchange.path is not None]
    assert len(paths) == len(set(paths)), "a request came out twice"
    statuses = [exchange.status for exchange in exchanges if exchange.status is not None]
    assert len(statuses) == len(set(statuses)), "a response came out twice"


def _complete(exchanges: list[Exchange]) -> int:
    return sum(exchange.completeness is Completeness.COMPLETE for exchange in exchanges)


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_lost_nothing_labelled(name: str) -> None:
    conversation = Conversation()
    for side, data in SCRIPTS[name]():
        conversation.feed(side, data)
    exchanges = conversation.close()
    check(exchanges)
    assert [exchange.path for exchange in exchanges] == [f"/{number}" for number in NUMBERS]
    assert _complete(exchanges) == len(NUMBERS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_any_one_call_lost(name: str) -> None:
    script = SCRIPTS[name]()
    for lost in range(len(script)):
        for unknown in (False, True):
            conversation = Conversation()
            for number, (side, data) in enumerate(script):
                if number == lost:
                    conversation.lose(side, len(data))
                else:
                    conversation.feed(side, data, size_known=not unknown)
            check(conversation.close())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_rest_of_any_one_call_not_copied(name: str) -> None:
    script = SCRIPTS[name]()
    for target in range(len(script)):
        for kept in range(len(script[target][1])):
            conversation = Conversation()
            for number, (side, data) in enumerate(script):
                if number == target:
                    conversation.feed(side, data[:kept], unseen=len(data) - kept)
                else:
                    conversation.feed(side, data)
            check(conversation.close())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_gap_inside_any_one_call(name: str) -> None:
    script = SCRIPTS[name]()
    for target, (_, whole) in enumerate(script):
        for start in range(0, len(whole), 3):
            for size in (1, 7, 40):
                conversation = Conversation()
                for number, (side, data) in enumerate(script):
                    if number != target:
                        conversation.feed(side, data)
                        continue
                    if data[:start]:
                        conversation.feed(side, data[:start])
                    conversation.lose(side, min(size, len(data) - start))
                    if data[start + size :]:
                        conversation.feed(side, data[start + size :])
                check(conversation.close())


@pytest.mark.parametrize("name", SCRIPTS)
def test_joining_late_at_any_call(name: str) -> None:
    script = SCRIPTS[name]()
    for join in range(len(script)):
        conversation = Conversation(late_join=True)
        for side, data in script[join:]:
            conversation.feed(side, data)
        check(conversation.close())


@pytest.mark.parametrize("name", ["sequential", "split"])
def test_joining_late_inside_any_call(name: str) -> None:
    script = SCRIPTS[name]()
    for join, (_, whole) in enumerate(script[:8]):
        for start in range(len(whole)):
            conversation = Conversation(late_join=True)
            conversation.feed(script[join][0], whole[start:])
            for side, data in script[join + 1 :]:
                conversation.feed(side, data)
            exchanges = conversation.close()
            check(exchanges)
            assert _complete(exchanges) >= len(NUMBERS) - 1 - join // (4 if name == "split" else 2) - 1


def test_one_lost_call_costs_one_exchange_of_a_client_that_waits() -> None:
    script = _sequential()
    for lost in range(len(script)):
        conversation = Conversation()
        for number, (side, data) in enumerate(script):
            if number == lost:
                conversation.lose(side, len(data))
            else:
                conversation.feed(side, data)
        assert _complete(conversation.close()) == len(NUMBERS) - 1, lost


def test_chunked_bodies_that_are_never_copied_whole_cost_no_other_exchange() -> None:
    conversation = Conversation()
    for number in range(50):
        conversation.request(b"GET /%d HTTP/1.1\r\n\r\n" % number)
        conversation.response(
            b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\nabc" % (400 + number), unseen=9000
        )
        conversation.response(b"more content", unseen=9000)
    exchanges = conversation.close()
    assert [(e.path, e.status) for e in exchanges] == [(f"/{number}", 400 + number) for number in range(50)]
    assert {e.completeness for e in exchanges} == {Completeness.TRUNCATED}
    assert [len(e.calls) for e in exchanges] == [3] * 50


def test_a_chunk_whose_rest_was_not_copied_is_counted_if_the_call_ends_with_it() -> None:
    conversation = Conversation()
    conversation.request(b"GET /0 HTTP/1.1\r\n\r\n")
    conversation.response(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc", unseen=13 + 2)
    conversation.response(b"0\r\n\r\n")
    (exchange,) = conversation.close()
    assert (exchange.response_body_bytes, exchange.completeness) == (16, Completeness.COMPLETE)


def test_a_request_head_that_is_not_copied_whole_keeps_what_was_seen() -> None:
    conversation = Conversation()
    conversation.request(b"GET /0?q HTTP/1.1\r\nHost: h\r\nCookie: abc", unseen=5000)
    conversation.response(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    (exchange,) = conversation.close()
    assert (exchange.method, exchange.path, exchange.host, exchange.status) == ("GET", "/0", "h", 200)
    assert exchange.completeness is Completeness.TRUNCATED


def _cuts(whole: bytes, chance: Random) -> list[bytes]:
    places = sorted(chance.sample(range(1, len(whole)), chance.randrange(4)))
    return [whole[start:end] for start, end in pairwise([0, *places, len(whole)])]


def _mangle(script: Script, chance: Random) -> list[Exchange]:
    """Plays a script with each side cut into calls at will, some of them lost, some only partly copied."""
    conversation = Conversation(late_join=chance.random() < 0.5, client=chance.random() < 0.5)
    rate = chance.choice([0.02, 0.1, 0.4, 0.8])
    for side, whole in script:
        for part in _cuts(whole, chance):
            if chance.random() >= rate:
                conversation.feed(side, part, size_known=chance.random() < 0.5)
            elif chance.random() < 0.5:
                conversation.lose(side, len(part))
            else:
                kept = chance.randrange(len(part))
                conversation.feed(side, part[:kept], unseen=len(part) - kept, size_known=chance.random() < 0.5)
    return conversation.close()


@pytest.mark.parametrize("name", SCRIPTS)
def test_many_losses_anywhere_never_give_a_wrong_pair(name: str) -> None:
    script = SCRIPTS[name]()
    for seed in range(RUNS):
        check(_mangle(script, Random(seed)), f"seed {seed}")


@pytest.mark.parametrize("name", ["sequential", "split"])
def test_after_many_losses_a_client_that_waits_is_whole_again_with_its_third_exchange(name: str) -> None:
    script = SCRIPTS[name]()
    for seed in range(RUNS // 4):
        chance = Random(seed)
        conversation = Conversation(late_join=chance.random() < 0.5, client=chance.random() < 0.5)
        for side, whole in script[: len(script) // 2]:
            for part in _cuts(whole, chance):
                if chance.random() < 0.6:
                    conversation.feed(side, part)
                else:
                    conversation.lose(side, len(part))
        for side, whole in script[len(script) // 2 :]:
            conversation.feed(side, whole)
        exchanges = conversation.close()
        check(exchanges, f"seed {seed}")
        whole_ones = {item.path for item in exchanges if item.completeness is Completeness.COMPLETE}
        assert whole_ones >= {f"/{number}" for number in NUMBERS[7:]}, seed


def _answer(number: int, size: int) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (400 + number, size)


def _sizes(exchanges: list[Exchange]) -> list[tuple[str | None, int | None, int, str]]:
    return [(e.path, e.status, e.response_body_bytes, e.completeness) for e in exchanges]


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize(
    ("size", "in_head_call"), [(5, 0), (200_000, 65_000), (200_000, 0), (0, 0)], ids=["small", "large", "file", "empty"]
)
def test_joined_late_content_that_is_never_copied_is_counted(client: bool, size: int, in_head_call: int) -> None:
    conversation = Conversation(late_join=True, client=client)
    for number in range(6):
        conversation.request(b"GET /%d HTTP/1.1\r\n\r\n" % number)
        conversation.response(
            _answer(number, size) + b"a" * in_head_call, unseen=size - in_head_call if number % 2 else 0
        )
        if not number % 2 and size > in_head_call:
            conversation.response(b"", unseen=size - in_head_call)
    assert _sizes(conversation.close()) == [(f"/{n}", 400 + n, size, "complete") for n in range(6)]


def test_joined_within_content_that_is_never_copied_costs_that_exchange() -> None:
    conversation = Conversation(late_join=True)
    conversation.response(b"", unseen=2_000_000)
    for number in range(6):
        conversation.request(b"GET /%d HTTP/1.1\r\n\r\n" % number)
        conversation.response(_answer(number, 70_000))
        conversation.response(b"", unseen=70_000)
    assert _sizes(conversation.close()) == [(f"/{n}", 400 + n, 70_000, "complete") for n in range(6)]


def test_content_cut_off_by_our_own_limit_costs_no_later_content() -> None:
    conversation = Conversation(client=True)
    chunked = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + b"2710\r\n" + b"c" * 10_000
    conversation.request(b"GET /chunked HTTP/1.1\r\n\r\n")
    conversation.response(chunked, unseen=200_000)
    for number in range(4):
        conversation.request(b"GET /%d HTTP/1.1\r\n\r\n" % number)
        conversation.response(_answer(number, 200_000) + b"l" * 60_000, unseen=140_000)
    first, *others = _sizes(conversation.close())
    assert first == ("/chunked", 200, 10_000, "truncated")
    assert others == [(f"/{n}", 400 + n, 200_000, "complete") for n in range(4)]


def test_in_doubt_content_that_looks_like_a_response_is_content() -> None:
    conversation = Conversation(late_join=True)
    inner = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
    for number in range(3):
        conversation.request(b"GET /%d HTTP/1.1\r\n\r\n" % number)
        conversation.response(_answer(number, len(inner)))
        conversation.response(inner)
    assert _sizes(conversation.close()) == [(f"/{n}", 400 + n, len(inner), "complete") for n in range(3)]


def test_in_doubt_head_responses_have_no_content() -> None:
    conversation = Conversation(late_join=True)
    for number in range(4):
        conversation.request(b"HEAD /%d HTTP/1.1\r\n\r\n" % number)
        conversation.response(_answer(number, 100_000))
    assert _sizes(conversation.close()) == [(f"/{n}", 400 + n, 0, "complete") for n in range(4)]
