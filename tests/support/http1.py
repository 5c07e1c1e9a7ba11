# SPDX-License-Identifier: Apache-2.0
"""Conversations for the HTTP/1 analyser: scripts of calls, and what every run of it must hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from rover_plugin.access_log.model import Call, Exchange, Operation, Side
from rover_plugin.access_log.protocols.http1 import Http1Analyzer

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    """Feeds an analyser from a server's point of view: requests are read, responses written, a microsecond apart."""

    late_join: bool = False
    client: bool = False
    now_ns: int = 1_000_000
    given: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.analyzer = Http1Analyzer(late_join=self.late_join)

    def call(self, side: Side, size: int) -> Call:
        """A call of its own, one microsecond long."""
        operation = Operation.READ if (side is REQUEST) != self.client else Operation.WRITE
        self.now_ns += 2_000
        call = Call(operation, 0, self.now_ns - 1_000, self.now_ns, size)
        self.given.append(call)
        return call

    def feed(self, side: Side, data: bytes, unseen: int = 0) -> Call:
        call = self.call(side, len(data) + unseen)
        self.analyzer.receive(side, call, data, unseen)
        return call

    def request(self, data: bytes, unseen: int = 0) -> Call:
        return self.feed(REQUEST, data, unseen)

    def response(self, data: bytes, unseen: int = 0) -> Call:
        return self.feed(RESPONSE, data, unseen)

    def close(self) -> list[Exchange]:
        """Ends the connection, checks that every call came out exactly once, and returns all exchanges."""
        self.analyzer.close(self.now_ns)
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
