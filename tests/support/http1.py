# SPDX-License-Identifier: Apache-2.0
"""Conversations for the HTTP/1 analyser: scripts of calls, and what every run of it must hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from rover_plugin.access_log.model import Call, Exchange, Operation, Side
from rover_plugin.access_log.protocols.analyzer import NOBODY
from rover_plugin.access_log.protocols.http1 import Http1Analyzer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rover_plugin.access_log.protocols.analyzer import Ends

REQUEST, RESPONSE = Side.REQUEST, Side.RESPONSE

FRAMING_FIELDS = (
    "method",
    "path",
    "host",
    "status",
    "request_header_bytes",
    "request_body_bytes",
    "response_header_bytes",
    "response_body_bytes",
    "trace",
    "completeness",
)
"""What must not depend on how bytes are cut into calls."""


@dataclass
class Conversation:
    """Feeds an analyser from a server's point of view: requests are read, responses written, a microsecond apart.

    Calls carry stream positions as the kernel side tells them; both wrap soon.
    """

    late_join: bool = False
    client: bool = False
    now_ns: int = 1_000_000
    given: list[Call] = field(default_factory=list)
    positions: dict[Side, int] = field(default_factory=lambda: {REQUEST: 2**32 - 300, RESPONSE: 2**32 - 150})
    lost: dict[Side, int] = field(default_factory=lambda: {REQUEST: 0, RESPONSE: 0})

    def __post_init__(self) -> None:
        self.analyzer = Http1Analyzer(late_join=self.late_join)

    def call(self, side: Side, size: int) -> Call:
        """A call of its own, one microsecond long."""
        operation = Operation.READ if (side is REQUEST) != self.client else Operation.WRITE
        self.now_ns += 2_000
        other = RESPONSE if side is REQUEST else REQUEST
        call = Call(
            operation,
            0,
            self.now_ns - 1_000,
            self.now_ns,
            size,
            position=self.positions[side] % 2**32,
            opposite=self.positions[other] % 2**32,
        )
        self.positions[side] += size
        self.given.append(call)
        return call

    def lose(self, side: Side, size: int) -> None:
        """Bytes that move without a record; told, as always, before the next bytes of that side, or at the end."""
        self.now_ns += 2_000
        self.positions[side] += size
        self.lost[side] += size

    def tell_lost(self, side: Side, *, size_known: bool = True) -> None:
        if self.lost[side]:
            self.analyzer.gap(side, self.lost[side] if size_known else -1)
            self.lost[side] = 0

    def feed(self, side: Side, data: bytes, unseen: int = 0, *, size_known: bool = True) -> Call:
        self.tell_lost(side, size_known=size_known)
        call = self.call(side, len(data) + unseen)
        self.analyzer.receive(side, call, data, unseen)
        return call

    def request(self, data: bytes, unseen: int = 0) -> Call:
        return self.feed(REQUEST, data, unseen)

    def response(self, data: bytes, unseen: int = 0) -> Call:
        return self.feed(RESPONSE, data, unseen)

    def close(self, ended_by: Ends = NOBODY) -> list[Exchange]:
        """Ends the connection, checks that every call came out exactly once, and returns all exchanges."""
        for side in (REQUEST, RESPONSE):
            self.tell_lost(side)
        self.analyzer.close(self.now_ns, ended_by)
        check_calls(self.analyzer, self.given)
        return self.analyzer.exchanges


def check_calls(analyzer: Http1Analyzer, given: list[Call]) -> None:
    """Every call given to an analyser comes out exactly once."""
    out = Counter(id(call) for exchange in analyzer.exchanges for call in exchange.calls)
    out.update(id(call) for call in analyzer.loose)
    if analyzer.handover is not None:
        out.update(id(piece.call) for piece in analyzer.handover.rest)
        if analyzer.handover.upgraded is not None:
            out.update(id(call) for call in analyzer.handover.upgraded.calls)
    assert out == Counter(id(call) for call in given)


def framing(exchange: Exchange) -> dict[str, Any]:
    """The fields that the bytes decide."""
    return {name: getattr(exchange, name) for name in FRAMING_FIELDS}


def everything(exchange: Exchange) -> dict[str, Any]:
    """All fields, calls by identity."""
    values = {item.name: getattr(exchange, item.name) for item in fields(exchange)}
    return values | {"calls": [id(call) for call in exchange.calls]}


def run(script: Iterable[tuple[Side, bytes]], *, late_join: bool = False) -> list[Exchange]:
    """All exchanges of a script of (side, bytes), one call each."""
    conversation = Conversation(late_join=late_join)
    for side, data in script:
        conversation.feed(side, data)
    return conversation.close()
