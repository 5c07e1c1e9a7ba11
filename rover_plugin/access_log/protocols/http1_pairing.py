# SPDX-License-Identifier: Apache-2.0
"""Which response answers which request on one HTTP/1 connection, and when an exchange is done.

Counting: while everything is seen, the n-th final response answers the n-th request (RFC 9112 §9.3.2). A response may
even be seen first (two threads, the reader's record overtakes the writer's): it is held until its request comes, and
paired only if that request began to be written before the response was read. Lost bytes of requests leave those already
in the `queue` as they are; lost bytes of responses may have answered any of them.

Positions: after a loss nobody can count any more. But each call carries the position that the other direction had
reached when it returned (`Call.opposite`), and a client that waits for one response before it asks again has all
earlier responses behind it when it asks. So the response to a request is the one whose first byte is at the position
that the responses had reached when that request's first call returned, and whose first call returned when requests had
not gone beyond what was seen of them: bytes lost in between would show as a distance, either way. One such pair at a
time is looked for, the `_candidate` and its `_reply`. They come out joined, and counting is taken up again, when the
next request proves that nothing else was said meanwhile: it was asked exactly where that reply ended.

A client that does not wait is found out by the same positions (two requests asked at one of them, a second response to
one request); with such a one a candidate must also have been preceded by an idle second. What is not proven comes out
as it is: a request without status, a response without request, each labelled.

What remains unproven: that a client whose lost bytes always hide the other outstanding requests, so that never two of
them show at one position and never two responses in a row, is one that waits. It looks exactly like one.
"""

from __future__ import annotations

from collections import deque

from rover_plugin.access_log.model import Call, Completeness, EndedBy, Exchange, Operation
from rover_plugin.access_log.protocols.weights import EXCHANGE_BYTES, exchange_text_bytes

MAX_OUTSTANDING = 1000
"""Requests waiting for a response on one connection."""

_MAX_HELD_RESPONSES = 64
_IDLE_NS = 1_000_000_000
_POSITIONS = (1 << 32) - 1

_COMPLETE = Completeness.COMPLETE


class Pairing:
    """Requests waiting for responses, and exchanges on their way out.

    Attributes:
        exchanges: where finished exchanges go.
        loose: where calls go that belong to no exchange.
        errors: counts by reason.
        queue: requests not answered yet, the oldest first, whose responses will be counted off.
        doubt: the label of what cannot be paired, or `None` while pairing is certain.
        pipelines: whether the client was seen not to wait for a response before it asks again.
        latest_request, latest_response: the latest calls that carried bytes of requests and of responses.
    """

    __slots__ = (
        "_abandoned",
        "_answered",
        "_candidate",
        "_discard",
        "_held",
        "_held_open",
        "_in_step",
        "_last_request_ns",
        "_latest",
        "_moved",
        "_open_request",
        "_reply",
        "_reply_done",
        "doubt",
        "errors",
        "exchanges",
        "latest_request",
        "latest_response",
        "loose",
        "pipelines",
        "queue",
    )

    def __init__(
        self, exchanges: list[Exchange], loose: list[Call], errors: dict[str, int], doubt: Completeness | None
    ) -> None:
        self.exchanges = exchanges
        self.loose = loose
        self.errors = errors
        self.queue: deque[Exchange] = deque()
        self.doubt = doubt
        self.latest_request: Call | None = None
        self.latest_response: Call | None = None
        self._open_request: Exchange | None = None  # begun, not ended
        self._answered = False  # the open request's exchange waits for nothing but the request's end
        self._abandoned = 0  # so many at the head of the queue have come out already, unanswered
        self._discard: Exchange | None = None  # the late response to one of those
        self._held: deque[tuple[Exchange, int]] = deque()  # responses before their request, and when first read
        self._held_open: Exchange | None = None  # the last of them while it is under way
        self._candidate: Exchange | None = None  # in doubt, the latest request if all before it seem answered
        self._moved: Completeness | None = None  # bytes of responses that nobody could read passed since it was asked
        self._in_step = False  # interim responses to it were seen, and no byte lost since
        self._reply: Exchange | None = None  # the response at its position
        self._reply_done = False
        self.pipelines = False
        self._latest: Exchange | None = None  # the latest request in doubt
        self._last_request_ns: int | None = None  # when it began; None if others may have since

    def held_bytes(self) -> int:
        """Memory of the exchanges that wait, roughly."""
        texts = sum(exchange_text_bytes(exchange) for exchange in self.queue) if len(self.queue) > 1 else 0
        return (len(self.queue) + len(self._held)) * EXCHANGE_BYTES + texts

    def resting(self) -> bool:
        """Whether nothing stands between the requests in the queue and their responses, in order."""
        return self.doubt is None and not self._held and not self._abandoned and self._discard is None

    # Requests

    def begin_request(self, exchange: Exchange, call: Call) -> Exchange:
        """A request began with `call`. Returns the exchange to fill from here on, mostly the same one."""
        queue = self.queue
        if self.doubt is None and not queue and not self._held:
            queue.append(exchange)
            self._open_request = exchange
            return exchange
        return self._begin_unusual_request(exchange, call)

    def add_request(self, exchange: Exchange, call: Call) -> None:
        """A request that `call` carries to its end: the same as `begin_request` and `end_request`."""
        queue = self.queue
        if self.doubt is None and not queue and not self._held:
            queue.append(exchange)
        else:
            self.end_request(self._begin_unusual_request(exchange, call))

    def _begin_unusual_request(self, exchange: Exchange, call: Call) -> Exchange:
        queue = self.queue
        if self._held and (early := self._early_response(exchange, call)) is not None:
            self._open_request = early
            return early
        self._open_request = exchange
        if self.doubt is not None:
            self._begin_doubtful_request(exchange, call.opposite, self.doubt)
        elif len(queue) >= MAX_OUTSTANDING:
            self.count("http1_too_many_requests_outstanding")
            self.doubt = Completeness.GAP
            self._release(exchange, Completeness.GAP)
        else:
            queue.append(exchange)
        return exchange

    def _begin_doubtful_request(self, exchange: Exchange, asked_at: int, doubt: Completeness) -> None:
        reached = _end(self.latest_response)
        idle = (
            self._last_request_ns is not None
            and self.latest_response is not None
            and asked_at == reached
            and exchange.start_ns - max(self._last_request_ns, self.latest_response.exit_ns) >= _IDLE_NS
        )
        self._last_request_ns = exchange.start_ns
        if self._reply_done and 0 <= asked_at == reached:
            whole = self._reply is not None and self._reply.completeness is _COMPLETE
            if self._join() and whole:
                self.queue.append(exchange)
                self.doubt = None
                return
        before = self.queue[-1] if self.queue else self._latest
        self.pipelines = self.pipelines or (before is not None and _together(before, exchange))
        self._latest = exchange
        self._part()
        if self.pipelines and not idle:
            self._release(exchange, doubt)
        else:
            self._candidate = exchange
            self._moved = None

    def _early_response(self, request: Exchange, call: Call) -> Exchange | None:
        """The held response that answers this request: only a request being written can be seen after its response."""
        response, read_ns = self._held[0]
        if call.operation != Operation.WRITE or call.enter_ns > read_ns:
            self._release_held(Completeness.LATE_JOIN)
            return None
        self._held.popleft()
        _join(request, response, into=response)
        self._answered = self._held_open is not response
        self._held_open = None
        return response

    def end_request(self, exchange: Exchange) -> None:
        """The request's last byte was seen, or no more of it can be told apart."""
        if self._open_request is exchange:
            self._open_request = None
        if self._answered:
            self._answered = False
            self.exchanges.append(exchange)

    # Responses

    def awaiting(self, position: int) -> Exchange | None:
        """The exchange that an interim response at this position belongs to, if that is known."""
        if self.queue:
            return None if self._abandoned else self.queue[0]
        if self._answers_candidate(position):
            self._in_step = True
            return self._candidate
        return None

    def answered(self, request: Exchange) -> bool:
        """Whether the final response to the latest request may have begun: it is not known to be still to come."""
        if request.status is not None:
            return True
        if self.queue and request is self.queue[-1]:
            return False
        return request is not self._candidate or self._reply is not None or self._moved is not None

    def responses_end(self) -> int:
        """Position after the last byte known of responses; -1 if it is not known."""
        return _end(self.latest_response)

    def owed(self) -> bool:
        """Whether the next response certainly answers a request that is known already."""
        return bool(self.queue)

    def begin_response(self, call: Call, position: int) -> tuple[Exchange, str | None]:
        """A final response began with `call`.

        Args:
            call: carried its first byte.
            position: of that byte; needed only while in doubt, -1 if not known.

        Returns:
            The exchange to fill, and the method of the request that it answers.
        """
        queue = self.queue
        if not queue:
            return self._begin_unusual_response(call, position)
        exchange = queue[0]
        if call.exit_ns < exchange.start_ns:
            return self._unasked_response(call), None
        queue.popleft()
        if queue and _together(exchange, queue[0]):
            self.pipelines = True
        if self._abandoned:
            self._abandoned -= 1
            self._discard = exchange
        return exchange, exchange.method

    def _unasked_response(self, call: Call) -> Exchange:
        """A response that had begun before any request known to be outstanding."""
        start_ns = call.exit_ns if call.operation == Operation.READ else call.enter_ns
        label = self.doubt or Completeness.LATE_JOIN
        return Exchange(1, start_ns=start_ns, end_ns=call.exit_ns, completeness=label)

    def _begin_unusual_response(self, call: Call, position: int) -> tuple[Exchange, str | None]:
        response = self._unasked_response(call)
        if self.doubt is None:
            response.completeness = _COMPLETE
            if len(self._held) >= _MAX_HELD_RESPONSES:
                self._release_held(Completeness.LATE_JOIN)
            self._held.append((response, call.exit_ns))
            self._held_open = response
            return response, None
        candidate, reply = self._candidate, self._reply
        if candidate is not None and self.begins_reply(call, position):
            response.completeness = _COMPLETE
            self._reply = response
            return response, candidate.method
        if reply is not None and reply.calls and reply.calls[0].opposite == call.opposite:
            self.pipelines = True  # two responses, and not a byte of a request between
        self._part()
        return response, None

    def begins_reply(self, call: Call, position: int) -> bool:
        """Whether the response that begins with `call`, at this position, is the one looked for."""
        return self._answers_candidate(position) and call.opposite == _end(self.latest_request)

    def _answers_candidate(self, position: int) -> bool:
        """Whether a response at this position is the first since the candidate was asked."""
        if self._candidate is None or self._reply is not None:
            return False
        return self._in_step or 0 <= position == _asked_at(self._candidate)

    def end_response(self, exchange: Exchange) -> None:
        """The response's last byte was seen, or no more of it can be told apart."""
        if exchange is self._open_request:
            self._answered = True
        elif exchange is self._reply:
            self._reply_done = True
        elif exchange is self._held_open:
            self._held_open = None
        elif exchange is self._discard:
            self._discard = None
            self.loose += exchange.calls
            self.count("http1_response_after_expiry")
        else:
            self.exchanges.append(exchange)

    # Losses

    def lose_requests(self, label: Completeness) -> None:
        """An unknown number of requests went by unseen."""
        self.doubt = label
        self._last_request_ns = None
        if self._candidate is not self._open_request:
            self._part()
        self._release_held(label)

    def lose_responses(self, label: Completeness, current: Exchange | None) -> None:
        """Bytes of responses went by unseen; `current` is the response they began in, if they did."""
        self.doubt = label
        self._in_step = False
        if self._reply is not None and current is not self._reply:
            self._part()
        self._abandon_queue(label)
        self._moved = self._moved or label
        self._release_held(label)

    def cut_answer(self, ended_by: EndedBy | None) -> None:
        """The connection ends in the start line of the next response."""
        exchange = self.queue[0] if self.queue and not self._abandoned else None
        if exchange is None and self._reply is None:
            exchange = self._candidate
        if exchange is not None:
            exchange.ended_by = exchange.ended_by or ended_by
            if exchange.completeness is _COMPLETE:
                exchange.completeness = Completeness.TRUNCATED

    # Time and the end

    def expire(self, before_ns: int) -> None:
        """Lets go of everything unanswered or unpaired whose last byte is older."""
        queue = self.queue
        while self._abandoned < len(queue):
            exchange = queue[self._abandoned]
            if exchange.end_ns >= before_ns or exchange is self._open_request:
                break
            # Its place stays: a late response must not be taken for the next one's.
            queue[self._abandoned] = Exchange(1, method=exchange.method)
            self._abandoned += 1
            self._release(exchange, Completeness.NO_RESPONSE)
        while self._held and self._held[0][0].end_ns < before_ns and self._held[0][0] is not self._held_open:
            self._release(self._held.popleft()[0], Completeness.LATE_JOIN)
        candidate = self._candidate
        if candidate is None or candidate is self._open_request:
            return
        if self._reply is None:
            if candidate.end_ns < before_ns:
                self._release(candidate, self._moved or Completeness.NO_RESPONSE)
                self._candidate = None
        elif self._reply_done and self._reply.end_ns < before_ns and not self._join():
            self._part()

    def close(self, ended_by: EndedBy | None) -> None:
        """Everything comes out. The current request and response have been ended before."""
        for exchange in list(self.queue)[self._abandoned :]:
            exchange.ended_by = exchange.ended_by or ended_by
            self._release(exchange, Completeness.NO_RESPONSE)
        self.queue.clear()
        self._abandoned = 0
        if self._candidate is not None and self._reply is None:
            if self._moved is None:
                self._candidate.ended_by = self._candidate.ended_by or ended_by
            self._release(self._candidate, self._moved or Completeness.NO_RESPONSE)
            self._candidate = None
        elif not self._join():
            self._part()
        self._release_held(Completeness.LATE_JOIN)

    def count(self, reason: str) -> None:
        """Counts one thing that could not be parsed."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def _release(self, exchange: Exchange, label: Completeness) -> None:
        """Lets an exchange out that nothing more is expected of; as soon as its request has ended."""
        if exchange.completeness is _COMPLETE:
            exchange.completeness = label
        if exchange is self._open_request:
            self._answered = True
        else:
            self.exchanges.append(exchange)

    def _abandon_queue(self, label: Completeness) -> None:
        """Nothing can be counted off any more: the last one may be a candidate, the others come out."""
        waiting = list(self.queue)[self._abandoned :]
        self.queue.clear()
        self._abandoned = 0
        for number, exchange in enumerate(waiting):
            self.pipelines = self.pipelines or (number > 0 and _together(waiting[number - 1], exchange))
        if waiting and self._candidate is None and not self.pipelines:
            self._candidate = waiting.pop()
            self._moved = None
        for exchange in waiting:
            self._release(exchange, label)

    def take_upgraded(self, response: Exchange) -> Exchange:
        """The exchange of a response with which HTTP/1 ends here: in doubt that of its candidate, joined."""
        candidate = self._candidate
        if response is not self._reply or candidate is None:
            return response
        _join(candidate, response, into=candidate)
        self._forget()
        return candidate

    def _join(self) -> bool:
        """Lets the candidate and its finished reply out as one, if that is proven."""
        candidate, reply = self._candidate, self._reply
        if candidate is None or reply is None:
            return False
        if reply.completeness is not _COMPLETE and (self.pipelines or candidate.completeness is not _COMPLETE):
            return False  # in what was not seen of them, others may hide
        _join(candidate, reply, into=candidate)
        self.exchanges.append(candidate)
        self._forget()
        return True

    def _part(self) -> None:
        """Lets the candidate and what seemed to be its reply out, each by itself."""
        doubt = self.doubt or Completeness.GAP
        if self._candidate is not None:
            self._release(self._candidate, doubt)
        reply = self._reply
        if reply is not None:
            if reply.completeness is _COMPLETE:
                reply.completeness = doubt
            if self._reply_done:
                self.exchanges.append(reply)
        self._forget()

    def _forget(self) -> None:
        self._candidate = self._reply = None
        self._reply_done = self._in_step = False

    def _release_held(self, label: Completeness) -> None:
        for response, _ in self._held:
            if response is self._held_open:  # comes out when it ends
                self._held_open = None
                response.completeness = label
            else:
                self._release(response, label)
        self._held.clear()


def _end(call: Call | None) -> int:
    """Position after a call's last byte; -1 if not known."""
    return -1 if call is None or call.position < 0 else (call.position + call.size) & _POSITIONS


def _asked_at(request: Exchange) -> int:
    """Position that the responses had reached when the request began; -1 if not known.

    The call in which it began may be another exchange's, and the first of its own a later one.
    """
    if not request.calls:
        return -1
    first = request.calls[0]
    began_ns = first.exit_ns if first.operation is Operation.READ else first.enter_ns
    return first.opposite if began_ns == request.start_ns else -1


def _together(earlier: Exchange, later: Exchange) -> bool:
    """Whether two requests were asked without any byte of a response between them: that client does not wait."""
    if not later.calls or not earlier.calls:
        return not later.calls
    return 0 <= later.calls[0].opposite == earlier.calls[0].opposite


def _join(request: Exchange, response: Exchange, into: Exchange) -> None:
    """Makes one exchange of a request's and a response's halves."""
    into.method, into.path, into.host, into.trace = request.method, request.path, request.host, request.trace
    into.request_header_bytes, into.request_body_bytes = request.request_header_bytes, request.request_body_bytes
    into.status = response.status
    into.response_header_bytes, into.response_body_bytes = response.response_header_bytes, response.response_body_bytes
    into.start_ns, into.end_ns = request.start_ns, max(request.end_ns, response.end_ns)
    if request.completeness is not _COMPLETE:
        into.completeness = request.completeness
    elif response.completeness is not _COMPLETE:
        into.completeness = response.completeness
    into.ended_by = request.ended_by or response.ended_by
    into.calls = request.calls + response.calls
