# SPDX-License-Identifier: Apache-2.0
"""Any messages, in calls of any size, with any copy limit: what comes out is right, or says that it may not be.

Each conversation is analysed three times: copied whole, walked by the kernel side (its model), and by user space alone
with what a kernel that does not walk would copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.model import Completeness, Direction, Side
from rover_plugin.access_log.redaction import ShardRedactor
from rover_plugin.access_log.shard import Shard
from rover_plugin.capture.recording import AnalysisOptions
from rover_plugin.capture.records import OpenCause
from tests.support import talks
from tests.support.synthetic import Kernel
from tests.support.walk_model import WalkModel, Way

if TYPE_CHECKING:
    from rover_plugin.access_log.connection import Connection
    from rover_plugin.access_log.model import Call, Exchange, ProtocolName
    from rover_plugin.capture.records import PolicyMode

ID = 7
BOUNDED = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


class Agent:
    """A shard behind the model of a kernel side, and the connection between them.

    Args:
        cause: how the connection came to be.
        model: the kernel side; None: it copies everything.
        answers: whether what user space says reaches the kernel side before the next call, or never.
        begins: False for one that is given all its records by `take`.
    """

    def __init__(self, cause: OpenCause, model: WalkModel | None, *, answers: bool = True, begins: bool = True) -> None:
        self.exchanges: list[Exchange] = []
        self.records: list[bytes] = []
        self._model = model
        self._answers = answers
        self._kernel = Kernel()
        self._shard = Shard(self)
        opened = self._kernel.open(ID, cause)
        if begins:
            self.take(opened)
        self._requests = Direction.EGRESS if cause is OpenCause.CONNECT else Direction.INGRESS
        if model is not None and cause is not OpenCause.MET:
            for direction in Direction:
                model.ways[direction].begin = self._kernel.positions[ID][direction]

    def move(self, side: Side, data: bytes) -> None:
        """One call."""
        direction = self._requests if side is Side.REQUEST else Direction(1 - self._requests)
        if self._model is None:
            self.take(self._kernel.record(ID, direction, len(data), 0, data, 0))
            return
        position, opposite = (self._kernel.positions[ID][way] for way in (direction, 1 - direction))
        record = self._model.call(direction, data, position, opposite)
        self.take(self._kernel.record(ID, direction, len(data), record.offset, record.captured, record.flags))

    def close(self) -> None:
        """The connection ends."""
        self.take(self._kernel.close(ID))
        assert self._shard.imbalance == 0

    def take(self, record: bytes) -> None:
        """Gives the shard a record."""
        self.records.append(record)
        self._shard.handle(memoryview(record), 0, len(record))

    # ShardSink

    def opened(self, connection: Connection) -> None:
        pass

    def exchange(self, connection: Connection, exchange: Exchange) -> None:  # noqa: ARG002 there is only one
        self.exchanges.append(exchange)

    def calls(self, connection: Connection, calls: list[Call], protocol: ProtocolName) -> None:
        pass

    def gone(self, connection: Connection) -> None:
        pass

    def policy(self, connection: Connection, direction: int, until: int, mode: PolicyMode) -> None:
        if self._model is not None and self._answers:
            frames = connection.conversation.protocol.value == "http2"
            self._model.tell(direction, until, mode, frames=frames)


def run(agent: Agent, talk: talks.Talk, sizes: list[int]) -> list[Exchange]:
    """The exchanges of a whole talk, in the order of their requests."""
    for side, data in talk.turns:
        for call in talks.cut(data, sizes):
            agent.move(side, call)
    agent.close()
    return sorted(agent.exchanges, key=lambda exchange: exchange.path or "")


def model(*, capture_limit: int = 65536, walks: bool = True) -> WalkModel:
    """A kernel side."""
    limits = {"continued_limit": min(16384, capture_limit), "always_copy": min(1024, capture_limit)}
    return WalkModel((Way(None), Way(None)), capture_limit=capture_limit, walks=walks, **limits)  # type: ignore[arg-type]


def said(exchanges: list[Exchange]) -> list[talks.Said]:
    """What is known of exchanges."""
    return [
        talks.Said(item.method, item.path, item.status, item.request_body_bytes, item.response_body_bytes)  # type: ignore[arg-type]
        for item in exchanges
    ]


def redacted(records: list[bytes]) -> list[Exchange]:
    """What comes of records in which nobody may see what was said, in the order of their responses' ends."""
    redactor = ShardRedactor(AnalysisOptions())
    hidden = [redactor.take(record) for record in records]
    agent = Agent(OpenCause.ACCEPT, None, begins=False)
    for original, parts in zip(records, hidden, strict=True):
        record = b"".join(parts)
        assert len(record) == len(original)
        agent.take(record)
    return agent.exchanges


CAUSES = st.sampled_from((OpenCause.ACCEPT, OpenCause.CONNECT))
TALKS = st.one_of(talks.http1(), talks.http2())
PLAIN_TALKS = st.one_of(talks.http1(plain=True), talks.http2())
LIMITS = st.sampled_from((256, 1024, 4096, 16384, 65536))


@BOUNDED
@given(
    talk=st.one_of(talks.http1(plain=True), talks.http2()),
    first=st.integers(1000, 9000),
    sizes=talks.CUTS,
    cause=CAUSES,
)
def test_walked_by_the_kernel_every_exchange_is_as_if_everything_were_copied(
    talk: talks.Talk, first: int, sizes: list[int], cause: OpenCause
) -> None:
    """Where a message's head is in its first call, which is how nearly all software writes and reads."""
    sizes = [first, *sizes]
    whole = run(Agent(cause, None), talk, sizes)
    assert said(whole) == talk.said
    walked = run(Agent(cause, model(), answers=False), talk, sizes)
    assert said(walked) == talk.said
    assert {exchange.completeness for exchange in walked} == {Completeness.COMPLETE}
    assert [len(exchange.calls) for exchange in walked] == [len(exchange.calls) for exchange in whole]


@BOUNDED
@given(talk=TALKS, sizes=talks.CUTS, cause=CAUSES, limit=LIMITS, walks=st.booleans(), answers=st.booleans())
def test_with_any_copy_limit_sizes_are_right_or_labelled(
    talk: talks.Talk, sizes: list[int], cause: OpenCause, limit: int, walks: bool, answers: bool
) -> None:
    found = run(Agent(cause, model(capture_limit=limit, walks=walks), answers=answers), talk, sizes)
    expected = {item.path: item for item in talk.said}
    for exchange, item in zip(found, said(found), strict=True):
        if exchange.completeness is Completeness.COMPLETE:
            assert item == expected[item.path]


@settings(BOUNDED, max_examples=40)
@given(talk=TALKS, sizes=talks.CUTS, cause=CAUSES)
def test_a_redacted_recording_of_walked_calls_has_the_same_sizes(
    talk: talks.Talk, sizes: list[int], cause: OpenCause
) -> None:
    agent = Agent(cause, model(), answers=False)
    run(agent, talk, sizes)
    found = redacted(agent.records)
    shown = [(item.status, item.request_body_bytes, item.response_body_bytes, item.completeness) for item in found]
    assert shown == [
        (item.status, item.request_body_bytes, item.response_body_bytes, item.completeness) for item in agent.exchanges
    ]
