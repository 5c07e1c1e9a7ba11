# SPDX-License-Identifier: Apache-2.0
"""What is said on a connection: which protocol, by whom, and the exchanges that come of it.

Finds out what a connection speaks, drives the analyser for it, follows it through changes of protocol, and contains its
failures: an analyser that raises is closed and counted, and the connection goes on as TCP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.model import Call, Completeness, Direction, EndedBy, Exchange, ProtocolName, Role, Side
from rover_plugin.access_log.protocols.analyzer import NOBODY, Framing
from rover_plugin.access_log.protocols.detect import Detector, Verdict, proxy_header_size
from rover_plugin.access_log.protocols.http1 import Http1Analyzer
from rover_plugin.access_log.protocols.http2.analyzer import Http2Analyzer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.protocols.analyzer import Analyzer, Ends, Handover, Part

# Calls that wait while nobody knows what is spoken; beyond it they are let go and detection goes on without them.
_MAX_UNDECIDED: Final = 32
_REQUEST_DIRECTION: Final = {Role.CLIENT: Direction.EGRESS, Role.SERVER: Direction.INGRESS}

# (direction, call or None for a gap, data, unseen bytes, what follows in the call)
_Waiting = tuple[int, Call | None, bytes, int, "Sequence[Part]"]


class Conversation:
    """One connection's conversation.

    Args:
        role: what the watched process is, if that is known from connect or accept.

    Attributes:
        exchanges, loose: finished exchanges and stand-alone calls; the owner takes and clears (or replaces) them.
        earlier: stand-alone calls from before the protocol changed, with what was spoken then; as `loose`.
        errors: what could not be parsed, by reason; the owner takes and clears it.
        role, protocol, tls: as far as known.
        deaf: no bytes are of use any more, whatever they are.
    """

    __slots__ = (
        "_analyzer",
        "_detector",
        "_late_join",
        "_missed",
        "_requests",
        "_waiting",
        "deaf",
        "earlier",
        "errors",
        "exchanges",
        "loose",
        "protocol",
        "role",
        "tls",
    )

    def __init__(self, role: Role) -> None:
        self.exchanges: list[Exchange] = []
        self.loose: list[Call] = []
        self.earlier: list[tuple[ProtocolName, list[Call]]] = []
        self.errors: dict[str, int] = {}
        self.role = role
        self.protocol = ProtocolName.TCP
        self.tls = False
        self.deaf = False
        self._late_join = role is Role.UNKNOWN
        self._missed = False  # something that was said before the protocol was known cannot be given to its analyser
        self._requests: int = _REQUEST_DIRECTION.get(role, -1)
        self._analyzer: Analyzer | None = None
        self._detector: Detector | None = Detector()
        self._waiting: list[_Waiting] = []

    @property
    def undecided(self) -> bool:
        """Whether it may yet turn out what is spoken."""
        return self._analyzer is None and self._detector is not None

    def receive(self, direction: int, call: Call, data: bytes, unseen: int, parts: Sequence[Part] = ()) -> None:
        """Takes one call's bytes: `data`, then `unseen` more that were not captured, then those of `parts`."""
        analyzer = self._analyzer
        if analyzer is None:
            self._undecided(direction, call, data, unseen, parts)
            return
        try:
            analyzer.receive(Side.REQUEST if direction == self._requests else Side.RESPONSE, call, data, unseen, parts)
        except Exception:  # noqa: BLE001 one bad connection never affects another
            self._contain(analyzer, call)
            return
        if analyzer.exchanges or analyzer.loose or analyzer.handover is not None:
            self._take(analyzer)

    def gap(self, direction: int, size: int, *, recorded: bool = False) -> None:
        """`size` bytes of this direction moved unseen; `recorded`: left out by our own capture policy."""
        analyzer = self._analyzer
        if analyzer is None:
            self._late_join = True
            if self._waiting:
                self._wait((direction, None, b"", size, ()))
            else:
                self._missed = True
            return
        try:
            analyzer.gap(Side.REQUEST if direction == self._requests else Side.RESPONSE, size, recorded=recorded)
        except Exception:  # noqa: BLE001 see receive
            self._contain(analyzer, None)
            return
        self._take(analyzer)

    def successor(self) -> Conversation:
        """One that goes on with the connection from anywhere."""
        return Conversation(Role.UNKNOWN)

    def held_bytes(self) -> int:
        """Memory of what is kept beyond an empty conversation, roughly, without its calls."""
        waiting = sum(len(item[2]) for item in self._waiting)
        return waiting + (self._analyzer.held_bytes() if self._analyzer is not None else 0)

    def unneeded(self, direction: int) -> int:
        """How many of the next bytes of this direction need not be captured; -1: none, ever again."""
        if self.deaf:
            return -1
        if self._analyzer is None:
            return 0
        return self._analyzer.unneeded(Side.REQUEST if direction == self._requests else Side.RESPONSE)

    def framing(self, direction: int) -> Framing:
        """What comes after the `unneeded` bytes of this direction."""
        if self._analyzer is None:
            return Framing.UNKNOWN
        return self._analyzer.framing(Side.REQUEST if direction == self._requests else Side.RESPONSE)

    def expire(self, before_ns: int) -> None:
        """Lets go of requests that nothing answered and that stopped moving before `before_ns`."""
        if self._analyzer is not None:
            try:
                self._analyzer.expire(before_ns)
            except Exception:  # noqa: BLE001 see receive
                self._contain(self._analyzer, None)
                return
            self._take(self._analyzer)
        elif self._waiting and all(item[1] is None or item[1].exit_ns < before_ns for item in self._waiting):
            self._let_go()

    def report_open(self, before_ns: int) -> None:
        """Puts reports of the streams that are open since before `before_ns` into `exchanges`."""
        # HTTP/1 messages have no life of their own: theirs is the connection's.
        if isinstance(self._analyzer, Http2Analyzer):
            self._analyzer.report_open(before_ns)
            self._take(self._analyzer)

    def close(self, now_ns: int, ended_by: Ends = NOBODY) -> None:
        """The connection ended, the bytes of each direction by whom `ended_by` says: everything held comes out."""
        self._let_go()
        analyzer = self._analyzer
        if analyzer is None:
            return
        try:
            analyzer.close(now_ns, (ended_by[self._requests], ended_by[1 - self._requests]))
        except Exception:  # noqa: BLE001 see receive
            self._contain(analyzer, None)
            return
        if EndedBy.AGENT in ended_by:
            for exchange in analyzer.exchanges:
                if exchange.completeness is Completeness.NO_RESPONSE:  # there may have been one
                    exchange.completeness = Completeness.TRUNCATED
        self._take(analyzer)

    # -- finding out --

    def _undecided(self, direction: int, call: Call, data: bytes, unseen: int, parts: Sequence[Part]) -> None:
        if self._detector is None:
            self.loose.append(call)
            return
        if data[:1] in {b"P", b"\r"} and (skipped := proxy_header_size(data)):
            data = data[skipped:]
        verdict = self._detector.feed(
            Direction(direction), data, unseen + sum(len(part.data) + part.unseen for part in parts)
        )
        if verdict is None:
            if unseen or parts:  # what comes next may be in the middle of it
                self._late_join = True
            self._wait((direction, call, data, unseen, parts))
            return
        begun = [self._detector.begun(Direction.INGRESS), self._detector.begun(Direction.EGRESS)]
        if self._detector.from_start and not self._missed and any(item[0] != direction for item in self._waiting):
            self._late_join = False  # met before anything was said
        self._decide(verdict)
        if self._analyzer is None:
            self._let_go()
            self.loose.append(call)
            return
        self._waiting.append((direction, call, data, unseen, parts))
        for item in self._without_prelude(begun):
            self._again(*item)

    def _without_prelude(self, begun: list[int]) -> list[_Waiting]:
        """Takes what waits, less what came before the last `begun` calls of each direction (PROXY lines, SOCKS)."""
        kept = []
        for item in reversed(self._waiting):
            direction, call = item[:2]
            if call is not None:
                if begun[direction]:
                    kept.append(item)
                    begun[direction] -= 1
                else:
                    self.loose.append(call)
            elif begun[direction]:
                kept.append(item)
        self._waiting.clear()
        return kept[::-1]

    def _wait(self, item: _Waiting) -> None:
        self._waiting.append(item)
        if len(self._waiting) > _MAX_UNDECIDED:
            self._late_join = self._missed = True
            self._let_go()

    def _again(self, direction: int, call: Call | None, data: bytes, unseen: int, parts: Sequence[Part]) -> None:
        # Through the front door: an item may be the one that changes the protocol.
        if call is None:
            self.gap(direction, unseen)
        else:
            self.receive(direction, call, data, unseen, parts)

    def _speak(self, protocol: ProtocolName) -> None:
        # TCP is also what is said of a connection before anything is known: what waits was spoken in what follows.
        if self.loose and protocol is not self.protocol is not ProtocolName.TCP:
            self.earlier.append((self.protocol, self.loose))
            self.loose = []
        self.protocol = protocol

    def _decide(self, verdict: Verdict) -> None:
        self._speak(verdict.protocol)
        if verdict.requests is not None:
            self._requests = verdict.requests
            # A TCP client may be asked over its own connection; who asks is what the backend wants to know.
            self.role = Role.CLIENT if verdict.requests is Direction.EGRESS else Role.SERVER
        if verdict.protocol is ProtocolName.HTTP1:
            self._analyzer = self._http1()
        elif verdict.protocol is ProtocolName.HTTP2:
            self._analyzer = self._http2()
        elif verdict.protocol is ProtocolName.TLS:
            self.tls = True
            self._stop_listening()
        elif not self._late_join or (self._detector is not None and self._detector.hopeless):
            self._stop_listening()
        else:
            # Perhaps in the middle of a message: taken back when a later call begins like one.
            self._late_join = True

    def _stop_listening(self) -> None:
        """What is said is of no use to us: from here on the kernel side need not copy any of it."""
        self._detector = None
        self.deaf = True

    # The two places where an analyser is made, for those who bring their own.

    def _http1(self) -> Analyzer:
        return Http1Analyzer(late_join=self._late_join)

    def _http2(self, upgraded: Exchange | None = None) -> Analyzer:
        return Http2Analyzer(self._late_join, upgraded)

    def _let_go(self) -> None:
        self.loose += [item[1] for item in self._waiting if item[1] is not None]
        self._waiting.clear()

    # -- an analyser at work --

    def _take(self, analyzer: Analyzer) -> None:
        if analyzer.exchanges:
            self.exchanges += analyzer.exchanges
            analyzer.exchanges.clear()
        if analyzer.loose:
            self.loose += analyzer.loose
            analyzer.loose.clear()
        if analyzer.errors:
            self._count(analyzer)
        if analyzer.handover is not None:
            self._hand_over(analyzer, analyzer.handover)

    def _count(self, analyzer: Analyzer) -> None:
        for reason, count in analyzer.errors.items():
            self.errors[reason] = self.errors.get(reason, 0) + count
        analyzer.errors.clear()

    def _hand_over(self, analyzer: Analyzer, handover: Handover) -> None:
        analyzer.handover = None
        self._analyzer = None
        analyzer.close(0)
        self._take(analyzer)
        self._speak(handover.protocol)
        if handover.protocol is ProtocolName.HTTP2:
            self._late_join = False
            self._analyzer = self._http2(handover.upgraded)
            for piece in handover.rest:
                direction = self._requests if piece.side is Side.REQUEST else 1 - self._requests
                self.receive(direction, piece.call, piece.data, piece.unseen, piece.parts)
        else:
            # A tunnel: what is inside is not between these two.
            self._stop_listening()

    def _contain(self, analyzer: Analyzer, call: Call | None) -> None:
        self.errors["analyzer_failed"] = self.errors.get("analyzer_failed", 0) + 1
        self._analyzer = None
        self._stop_listening()
        self.exchanges += analyzer.exchanges
        self.loose += analyzer.loose
        out = {id(item) for item in self.loose} | {id(item) for done in self.exchanges for item in done.calls}
        if call is not None and id(call) not in out:
            self.loose.append(call)
        self._speak(ProtocolName.TCP)
