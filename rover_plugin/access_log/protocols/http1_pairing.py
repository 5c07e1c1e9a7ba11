# SPDX-License-Identifier: Apache-2.0
"""Which response answers which request on one HTTP/1 connection, and when an exchange is done.

Rule 1: while everything is seen, the n-th final response answers the n-th request (RFC 9112 §9.3.2). A response may
even be seen first (two threads, the reader's record overtakes the writer's): it is held until its request comes, and
paired only if that request began to be written before the response was read.

Rule 2: after bytes of requests are lost, nobody knows how many requests were among them. Requests seen before the loss
are still answered in order; those that begin after it are on *trial*: a response seems to be a request's if that is the
only one, and the two are joined when the next request begins without a further response in between. A peer seen to
pipeline gives no such proof, so there nothing is paired until the connection has been idle for a while.

Rule 3: a server answers only what it was asked, so losing bytes of responses hurts what is outstanding, nothing else.
With several requests outstanding and a peer that does not pipeline, all but the last were answered in the lost bytes.

A loss is told when the next bytes of that side are seen, possibly after the other side has gone on. So two requests in
a row are proof of pipelining only when a response follows with nothing lost before it.

So a wrong pair would need a peer that keeps several requests in flight at all times, and never more than one of them
visible. What is not paired comes out as it is: a request without status, a response without request, each labelled.
"""

from __future__ import annotations

from collections import deque

from rover_plugin.access_log.model import Call, Completeness, Exchange, Operation

MAX_OUTSTANDING = 1000
"""Requests waiting for a response on one connection."""

_MAX_HELD_RESPONSES = 64
_IDLE_NS = 1_000_000_000

_COMPLETE = Completeness.COMPLETE


class Pairing:
    """Requests waiting for responses, and exchanges on their way out.

    Attributes:
        exchanges: where finished exchanges go.
        loose: where calls go that belong to no exchange.
        errors: counts by reason.
        queue: requests not answered yet, the oldest first.
        doubt: the label of what cannot be paired, or `None` while pairing is certain.
    """

    __slots__ = (
        "_abandoned",
        "_answer_lost",
        "_answered",
        "_discard",
        "_held",
        "_held_open",
        "_last_ns",
        "_open_request",
        "_pipelines",
        "_reply",
        "_reply_done",
        "_requests_lost",
        "_suspect",
        "_trial",
        "doubt",
        "errors",
        "exchanges",
        "loose",
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
        self._open_request: Exchange | None = None  # begun, not ended
        self._answered = False  # the open request's exchange waits for nothing but the request's end
        self._abandoned = 0  # so many at the head of the queue have come out already, unanswered
        self._discard: Exchange | None = None  # the late response to one of those
        self._pipelines = False
        self._trial: list[Exchange] = []  # requests on trial
        self._reply: Exchange | None = None  # what seems to be the response to the first of them,
        self._reply_done = False  # and whether that is finished
        self._requests_lost = False  # after the last request known
        self._suspect = False  # two requests were outstanding, which losses may explain, or pipelining
        self._answer_lost = False  # bytes of the only one's response may be gone
        self._held: deque[tuple[Exchange, int]] = deque()  # responses before their request, and when first read
        self._held_open: Exchange | None = None  # the last of them while it is under way
        self._last_ns: int | None = None  # when something last moved, known only after a while in doubt

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
        self._requests_lost = False
        if self.doubt is not None:
            self._begin_trial(exchange, self.doubt)
        elif len(queue) >= MAX_OUTSTANDING:
            self.count("http1_too_many_requests_outstanding")
            self._begin_doubt(Completeness.GAP)
            self._abandon(exchange, Completeness.GAP)
        else:
            queue.append(exchange)
        return exchange

    def _begin_trial(self, exchange: Exchange, doubt: Completeness) -> None:
        idle = self._last_ns is not None and exchange.start_ns - self._last_ns >= _IDLE_NS
        self._last_ns = exchange.start_ns
        if self._answer_lost:  # either it is among the lost bytes, or this peer pipelines
            self._part_trial()
        if self._reply_done and self._suspect and self._reply is not None and self._reply.completeness is not _COMPLETE:
            self._part_trial()  # in what was not seen of it, others may hide
        self._suspect = self._suspect or bool(self._trial or self.queue)
        if self._reply_done:
            self._suspect = False
            self._join_trial()
            self.doubt = None
            self.queue.append(exchange)
        elif self._trial or not self._pipelines or (idle and not self.queue):
            if len(self._trial) >= MAX_OUTSTANDING:
                self.count("http1_too_many_requests_outstanding")
                self._part_trial()
            self._trial.append(exchange)
        else:
            self._abandon(exchange, doubt)

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

    def awaiting(self) -> Exchange | None:
        """The exchange that the next response belongs to, if that is known."""
        if self.queue:
            return None if self._abandoned else self.queue[0]
        return self._trial[0] if len(self._trial) == 1 and self._reply is None else None

    def owed(self) -> bool:
        """Whether the next response certainly answers a request that is known already."""
        return bool(self.queue)

    def begin_response(self, call: Call) -> tuple[Exchange, str | None]:
        """A final response began. Returns the exchange to fill, and the method of the request that it answers."""
        queue = self.queue
        if not queue:
            return self._begin_unusual_response(call)
        exchange = queue[0]
        if call.exit_ns < exchange.start_ns:
            return self._unasked_response(call), None
        queue.popleft()
        if self._abandoned:
            self._abandoned -= 1
            self._discard = exchange
        if queue or self._trial:
            waiting = queue[0] if queue else self._trial[0]
            if waiting.start_ns < (call.exit_ns if call.operation == Operation.READ else call.enter_ns):
                self._pipelines = True
                self._part_trial()
        return exchange, exchange.method

    def _unasked_response(self, call: Call) -> Exchange:
        """A response that had begun before any request known to be outstanding."""
        start_ns = call.exit_ns if call.operation == Operation.READ else call.enter_ns
        label = self.doubt or Completeness.LATE_JOIN
        return Exchange(1, start_ns=start_ns, end_ns=call.exit_ns, completeness=label)

    def _begin_unusual_response(self, call: Call) -> tuple[Exchange, str | None]:
        response = self._unasked_response(call)
        if self._trial and call.exit_ns < self._trial[0].start_ns:
            return response, None
        if self.doubt is None:
            response.completeness = _COMPLETE
            if len(self._held) >= _MAX_HELD_RESPONSES:
                self._release_held(Completeness.LATE_JOIN)
            self._held.append((response, call.exit_ns))
            self._held_open = response
            return response, None
        if len(self._trial) == 1 and self._reply is None:
            response.completeness = _COMPLETE
            self._reply = response
            self._answer_lost = False
            return response, self._trial[0].method
        if self._trial:  # one response more than that, or several requests waiting for this one
            self._pipelines = True
            self._part_trial()
        return response, None

    def end_response(self, exchange: Exchange) -> None:
        """The response's last byte was seen, or no more of it can be told apart."""
        if self.doubt is not None:
            self._last_ns = exchange.end_ns
        if exchange is self._open_request:
            self._answered = True
        elif exchange is self._reply:
            self._reply_done = True
            if len(self._trial) > 1:  # the next request did not wait for the end of this
                self._pipelines = True
                self._part_trial()
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
        self._begin_doubt(label)
        self._requests_lost = True
        if len(self._trial) > 1 or (self._trial and self._trial[0] is not self._open_request):
            self._part_trial()
        self._release_held(label)

    def lose_responses(self, label: Completeness, current: Exchange | None) -> None:
        """Bytes of responses went by unseen; `current` is the response they began in, if they did."""
        queue, trial = self.queue, self._trial
        self._suspect = self._suspect or len(queue) + len(trial) > 1
        if queue or len(trial) > 1 or (trial and current is not self._reply) or (trial and current is None):
            last = None
            if not (self._pipelines or self._requests_lost) and (self._reply is None or current is self._reply):
                last = trial.pop() if trial else queue.pop() if len(queue) > self._abandoned else None
            if last is not None and last.completeness is _COMPLETE and len(queue) == self._abandoned and not trial:
                last.completeness = label  # the only one outstanding: those bytes were for it
            self._abandon_queue(label)
            self._begin_doubt(label)
            self._part_trial()
            if last is not None:
                self._trial.append(last)
                self._answer_lost = True
        self._release_held(label)

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
            self._unanswered(exchange)
        while self._held and self._held[0][0].end_ns < before_ns and self._held[0][0] is not self._held_open:
            self._release(self._held.popleft()[0], Completeness.LATE_JOIN)
        trial = self._trial
        if self._reply is None:
            while trial and trial[0].end_ns < before_ns and trial[0] is not self._open_request:
                self._unanswered(trial.pop(0))
        elif self._reply_done and self._reply.end_ns < before_ns and trial[0] is not self._open_request:
            self._join_trial()

    def close(self) -> None:
        """Everything comes out. The current request and response have been ended before."""
        for exchange in list(self.queue)[self._abandoned :]:
            self._unanswered(exchange)
        self.queue.clear()
        self._abandoned = 0
        if self._reply_done:
            self._join_trial()
        for exchange in self._trial:
            self._unanswered(exchange)
        self._trial = []
        self._release_held(Completeness.LATE_JOIN)

    def count(self, reason: str) -> None:
        """Counts one thing that could not be parsed."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def _unanswered(self, exchange: Exchange) -> None:
        self._release(exchange, Completeness.NO_RESPONSE)

    def _release(self, exchange: Exchange, label: Completeness) -> None:
        if exchange.completeness is _COMPLETE:
            exchange.completeness = label
        self.exchanges.append(exchange)

    def _begin_doubt(self, label: Completeness) -> None:
        if self.doubt is None:
            self._last_ns = None
        self.doubt = label

    def _abandon(self, exchange: Exchange, label: Completeness) -> None:
        """Gives up on the exchange's response; it comes out as soon as its request has ended."""
        exchange.completeness = label
        if exchange is self._open_request:
            self._answered = True
        else:
            self.exchanges.append(exchange)

    def _abandon_queue(self, label: Completeness) -> None:
        for exchange in list(self.queue)[self._abandoned :]:
            self._abandon(exchange, label)
        self.queue.clear()
        self._abandoned = 0

    def _join_trial(self) -> None:
        """The request on trial and its response belong together."""
        if self._reply is not None:
            _join(self._trial[0], self._reply, into=self._trial[0])
            self.exchanges.append(self._trial[0])
        self._end_trial()

    def _part_trial(self) -> None:
        """The requests on trial and what seemed to be a response to them come out apart."""
        doubt = self.doubt or Completeness.GAP
        for exchange in self._trial:
            self._abandon(exchange, doubt)
        reply = self._reply
        if reply is not None:
            if reply.completeness is _COMPLETE:
                reply.completeness = doubt
            if self._reply_done:
                self.exchanges.append(reply)
        self._end_trial()

    def _end_trial(self) -> None:
        self._trial = []
        self._reply = None
        self._reply_done = self._answer_lost = False

    def _release_held(self, label: Completeness) -> None:
        for response, _ in self._held:
            if response is self._held_open:  # comes out when it ends
                self._held_open = None
                response.completeness = label
            else:
                self._release(response, label)
        self._held.clear()


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
    into.calls = request.calls + response.calls
