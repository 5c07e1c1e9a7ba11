# SPDX-License-Identifier: Apache-2.0
"""Random HTTP/1 dialogues with their truth, and what a watched end of them sees: calls, limits of copying, losses.

Every request has its own path, every response its own status, so that a wrong pair shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from rover_plugin.access_log.connection import Connection
from rover_plugin.access_log.model import Call, Completeness, Direction, Operation, Side
from rover_plugin.capture.records import CLOSE_BY_PEER, CLOSE_PEER_ENDED, CallClass, OpenCause

if TYPE_CHECKING:
    from random import Random

    from rover_plugin.access_log.model import Exchange

REQUEST, RESPONSE = Side.REQUEST, Side.RESPONSE
_MASK = (1 << 32) - 1
_WORDS = (b"\r\n\r\n", b"0\r\n\r\n", b"5\r\n", b"x" * 40, b"abc\n")
_LOOK_ALIKES = (b"HTTP/1.1 200 OK\r\n", b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n")
ALL_COPIED = 1 << 30


@dataclass
class Truth:
    """One exchange as it really was; `_from` and `_to` are places in the stream of requests or of responses."""

    number: int
    method: str
    status: int = 0
    request_head: int = 0
    request_body: int = 0
    response_head: int = 0
    response_body: int = 0
    answered_from: int = -1  # first byte of its final response
    request_from: int = -1
    request_to: int = -1
    response_to: int = -1
    until_close: bool = False
    unasked: bool = False  # its content was declined, and sent all the same

    @property
    def path(self) -> str:
        return f"/{self.number}"


@dataclass
class Dialogue:
    """What both sides say: `turns` in the order in which it is said."""

    chance: Random
    words: tuple[bytes, ...] = _WORDS
    truths: list[Truth] = field(default_factory=list)
    turns: list[tuple[Side, bytes]] = field(default_factory=list)
    said: dict[Side, int] = field(default_factory=lambda: {REQUEST: 0, RESPONSE: 0})

    def say(self, side: Side, data: bytes) -> None:
        if data:
            self.turns.append((side, data))
            self.said[side] += len(data)

    def content(self, most: int = 300) -> bytes:
        """Bytes that may look like a message, but do not begin like a request."""
        size = self.chance.randrange(most)
        data = b"."
        while len(data) < size:
            data += self.chance.choice(self.words)
        return data[:size]

    def chunked(self, content: bytes) -> bytes:
        wire, at = b"", 0
        while at < len(content):
            size = self.chance.randrange(1, 120)
            part = content[at : at + size]
            extension = self.chance.choice([b"", b"", b';a="b"'])
            wire += b"%x" % len(part) + extension + b"\r\n" + part + b"\r\n"
            at += size
        trailer = self.chance.choice([b"", b"", b"X-Sum: 1\r\n"])
        return wire + b"0\r\n" + trailer + b"\r\n"

    def exchange(self, *, last: bool = False) -> tuple[Truth, bytes, bytes, bytes, bytes]:
        """A new exchange: head and content of its request as on the wire, interim responses, and its response."""
        chance = self.chance
        truth = Truth(len(self.truths), chance.choice(["GET", "GET", "HEAD", "DELETE", "POST", "PUT", "POST"]))
        self.truths.append(truth)
        head = b"%s %s HTTP/1.1\r\nHost: h\r\n" % (truth.method.encode(), truth.path.encode())
        body = b""
        if truth.method in ("POST", "PUT"):
            content = self.content()
            truth.request_body = len(content)
            if chance.random() < 0.5:
                head += b"Transfer-Encoding: chunked\r\n"
                body = self.chunked(content)
            else:
                head += b"Content-Length: %d\r\n" % len(content)
                body = content
        interim = chance.choice([b"", b"", b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"])
        return truth, head, body, interim, self.response(truth, last=last)

    def response(self, truth: Truth, *, last: bool = False, status: int = 0) -> bytes:
        chance = self.chance
        truth.status = status or 210 + truth.number
        if not status and chance.random() < 0.1:
            free = {204, 304} - {other.status for other in self.truths if other is not truth}
            truth.status = chance.choice([*sorted(free), truth.status])
        head = b"HTTP/1.1 %d X\r\nServer: s\r\n" % truth.status
        content = self.content()
        if last and chance.random() < 0.3 and truth.method != "HEAD" and truth.status not in (204, 304):
            truth.until_close = True
            wire = content
        elif chance.random() < 0.4 and truth.status != 204:
            head += b"Transfer-Encoding: chunked\r\n"
            wire = self.chunked(content)
        else:
            head += b"Content-Length: %d\r\n" % len(content)
            wire = content
        if truth.method == "HEAD" or truth.status in (204, 304):
            content = wire = b""
        head += b"\r\n"
        truth.response_head, truth.response_body = len(head), len(content)
        return head + wire

    def ask(self, truth: Truth, head: bytes, body: bytes) -> None:
        truth.request_head = len(head) + 2
        truth.request_from = self.said[REQUEST]
        self.say(REQUEST, head + b"\r\n" + body)
        truth.request_to = self.said[REQUEST]

    def answer(self, truth: Truth, data: bytes, interim: bytes = b"") -> None:
        self.say(RESPONSE, interim)
        truth.answered_from = self.said[RESPONSE]
        self.say(RESPONSE, data)
        truth.response_to = self.said[RESPONSE]

    # What two ends may do with an exchange or several.

    def plain(self, *, last: bool = False) -> None:
        truth, head, body, interim, response = self.exchange(last=last)
        self.ask(truth, head, body)
        self.answer(truth, response, interim)

    def pipelined(self) -> None:
        group = [self.exchange() for _ in range(self.chance.randrange(2, 5))]
        for truth, head, body, _, _ in group:
            self.ask(truth, head, body)
        for truth, _, _, interim, response in group:
            self.answer(truth, response, interim)

    def early(self) -> None:
        """The response comes while the request is under way."""
        truth, head, body, interim, response = self.exchange()
        seen = self.chance.randrange(1, len(body)) if len(body) > 1 else len(body)
        self.ask(truth, head, body[:seen])
        self.answer(truth, response, interim)
        self.say(REQUEST, body[seen:])
        truth.request_to = self.said[REQUEST]

    def expecting(self) -> None:
        """Content that is accepted, declined, or sent unasked."""
        truth, head, body, interim, response = self.exchange()
        head += b"Expect: 100-continue\r\n"
        way = self.chance.choice(["accepted", "declined", "sent all the same"])
        if not body or way == "accepted":
            self.ask(truth, head, b"")
            if body:
                self.say(RESPONSE, b"HTTP/1.1 100 Continue\r\n\r\n")
                self.say(REQUEST, body)
                truth.request_to = self.said[REQUEST]
            self.answer(truth, response, interim)
            return
        self.ask(truth, head, b"")
        self.answer(truth, self.response(truth, status=410 + truth.number), interim)
        if way == "declined":
            truth.request_body = 0
        else:
            truth.unasked = True
            self.say(REQUEST, body)
            truth.request_to = self.said[REQUEST]

    def upgrade(self) -> None:
        """Another protocol from here on; what it says is nobody's business."""
        truth = Truth(len(self.truths), "GET", 101)
        self.truths.append(truth)
        self.ask(truth, b"GET %s HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" % truth.path.encode(), b"")
        response = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        truth.response_head = len(response)
        self.answer(truth, response)
        self.say(RESPONSE, b"\x81\x05hello")
        self.say(REQUEST, b"\x81\x85\0\0\0\0" + self.content())


def dialogue(chance: Random, *, pipelining: bool = False, look_alikes: bool = False) -> Dialogue:
    """A dialogue of up to 8 turns; `look_alikes`: its content is full of what begins messages."""
    made = Dialogue(chance, _WORDS + _LOOK_ALIKES if look_alikes else _WORDS)
    ways = [made.plain, made.plain, made.early, made.expecting]
    if pipelining:
        ways.append(made.pipelined)
    for _ in range(chance.randrange(1, 8)):
        chance.choice(ways)()
    end = chance.randrange(4)
    if end == 0:
        made.plain(last=True)
    elif end == 1:
        made.upgrade()
    return made


@dataclass
class View:
    """How a watched end sees a dialogue.

    Attributes:
        limit: bytes of a call that are copied.
        skipping: how often the kernel side knows in time which bytes need not be copied.
        lossy: how often a call's record is lost.
        join: the first call that is seen, of a connection older than the agent if that is not the first.
        flags: of the close record.
    """

    client: bool = False
    limit: int = ALL_COPIED
    skipping: float = 0.0
    lossy: float = 0.0
    join: int = 0
    flags: int = 0


def calls_of(made: Dialogue, chance: Random, cuts: int = 4) -> list[tuple[Side, bytes]]:
    """Each side's bytes as calls of any size: what one side says in a row may come together."""
    merged: list[tuple[Side, bytes]] = []
    for side, data in made.turns:
        if merged and merged[-1][0] is side and chance.random() < 0.5:
            merged[-1] = (side, merged[-1][1] + data)
        else:
            merged.append((side, data))
    calls = []
    for side, data in merged:
        places = sorted(chance.sample(range(1, len(data)), min(len(data) - 1, chance.randrange(cuts + 1))))
        calls += [(side, data[start:end]) for start, end in pairwise([0, *places, len(data)])]
    return calls


@dataclass
class Outcome:
    """What came of a view: exchanges, and how far each side's stream had moved when the connection ended."""

    exchanges: list[Exchange]
    moved: dict[Side, int]


def watch(calls: list[tuple[Side, bytes]], view: View, chance: Random) -> Outcome:
    """Gives calls to a connection as its records would."""
    cause = OpenCause.MET if view.join else OpenCause.CONNECT if view.client else OpenCause.ACCEPT
    connection = Connection(1, 1, cause, (b"\x7f\0\0\1", 80), (b"\x7f\0\0\1", 5), 1, 1)
    directions = {
        REQUEST: Direction.EGRESS if view.client else Direction.INGRESS,
        RESPONSE: Direction.INGRESS if view.client else Direction.EGRESS,
    }
    starts = {REQUEST: 2**32 - 300, RESPONSE: 2**32 - 150}
    positions = dict(starts)
    if not view.join:
        connection.begin(starts[REQUEST if view.client else RESPONSE], starts[RESPONSE if view.client else REQUEST])
    conversation = connection.conversation
    given, out, now_ns = [], [], 1_000_000
    for number, (side, data) in enumerate(calls):
        direction = directions[side]
        now_ns += 2_000
        other = RESPONSE if side is REQUEST else REQUEST
        position = positions[side] & _MASK
        positions[side] += len(data)
        if number < view.join or chance.random() < view.lossy:
            continue
        operation = Operation.READ if direction is Direction.INGRESS else Operation.WRITE
        kind = CallClass.READ if operation is Operation.READ else CallClass.WRITE
        opposite = positions[other] & _MASK
        call = Call(operation, kind, now_ns - 1_000, now_ns, len(data), position=position, opposite=opposite)
        offset = 0
        if chance.random() < view.skipping:
            unneeded = conversation.unneeded(direction)
            offset = len(data) if unneeded < 0 else min(unneeded, len(data))
        copied = data[offset : offset + view.limit]
        given.append(id(call))
        connection.receive(direction, call, position, offset if copied else 0, copied)
    written = positions[REQUEST if view.client else RESPONSE]
    read = positions[RESPONSE if view.client else REQUEST]
    connection.close(written & _MASK, read & _MASK, now_ns, view.flags)
    out += [id(call) for call in conversation.loose]
    out += [id(call) for _, earlier in conversation.earlier for call in earlier]
    out += [id(call) for exchange in conversation.exchanges for call in exchange.calls]
    assert sorted(out) == sorted(given)
    assert "analyzer_failed" not in conversation.errors
    return Outcome(conversation.exchanges, {side: positions[side] - starts[side] for side in Side})


def check(made: Dialogue, outcome: Outcome, view: View) -> None:
    """Each exchange is right, or says why it may not be."""
    by_path = {truth.path: truth for truth in made.truths}
    by_status = {truth.status: truth for truth in made.truths}
    for seen in outcome.exchanges:
        assert seen.path is not None or seen.status is not None, "an exchange of nothing"
        asked = by_path[seen.path] if seen.path is not None else None
        answered = by_status[seen.status] if seen.status is not None else None
        if asked is not None and answered is not None:
            assert asked is answered, f"{asked} has the response of {answered}"
        if asked is not None:
            assert seen.method == asked.method
            assert seen.request_header_bytes <= asked.request_head
            assert seen.request_body_bytes <= asked.request_body
        if answered is not None:
            assert seen.response_header_bytes <= answered.response_head
        if seen.completeness is Completeness.NO_RESPONSE:
            assert asked is not None
            # A single byte at the very end may be the FIN's sequence number.
            assert not 0 <= asked.answered_from < outcome.moved[RESPONSE] - 1, "its response moved"
        if seen.completeness is Completeness.COMPLETE:
            assert asked is answered is not None
            check_whole(asked, seen, outcome, view)
    for values in (
        [seen.path for seen in outcome.exchanges if seen.path is not None],
        [seen.status for seen in outcome.exchanges if seen.status is not None],
    ):
        assert len(values) == len(set(values)), f"one came out twice: {values}"


def check_whole(truth: Truth, seen: Exchange, outcome: Outcome, view: View) -> None:
    """What is said to be complete is exact."""
    assert seen.ended_by is None
    asked = truth.request_body
    if truth.unasked and outcome.moved[REQUEST] <= truth.request_from + truth.request_head:
        asked = 0  # nobody knows that content would have followed
    else:
        assert truth.request_to <= outcome.moved[REQUEST], "its request was cut"
    content = truth.response_body
    if truth.until_close:
        # Whoever writes it ends it wherever it likes; only a reset, or a reader that leaves, tells that it is cut.
        assert not view.flags & CLOSE_BY_PEER
        assert not view.client or view.flags & CLOSE_PEER_ENDED
        content = min(content, outcome.moved[RESPONSE] - truth.answered_from - truth.response_head)
    else:
        assert truth.response_to <= outcome.moved[RESPONSE], "its response was cut"
    assert sizes(seen) == (truth.request_head, asked, truth.response_head, content), truth


def sizes(seen: Exchange) -> tuple[int, int, int, int]:
    return (
        seen.request_header_bytes,
        seen.request_body_bytes,
        seen.response_header_bytes,
        seen.response_body_bytes,
    )
