# SPDX-License-Identifier: Apache-2.0
"""Stream positions of one connection: what is missing is counted once, what is only late is not missing."""

from __future__ import annotations

from rover_plugin.access_log.connection import Connection
from rover_plugin.access_log.conversation import Conversation
from rover_plugin.access_log.model import Call, Direction, Operation, Role
from rover_plugin.capture.records import CallClass, OpenCause

_ADDRESS = (b"\x7f\0\0\1", 80)


class Listening(Conversation):
    """A conversation that notes what it is given."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.gaps: list[tuple[int, int]] = []
        self.calls: list[tuple[int, int]] = []

    def gap(self, direction: int, size: int, *, recorded: bool = False) -> None:
        assert not recorded
        self.gaps.append((direction, size))

    def receive(self, direction: int, call: Call, *_: object) -> None:
        self.calls.append((direction, call.size))


def made(cause: OpenCause = OpenCause.ACCEPT) -> tuple[Connection, Listening]:
    listening: list[Listening] = []

    def converse(role: Role) -> Conversation:
        listening.append(Listening(role))
        return listening[0]

    return Connection(1, 1, cause, _ADDRESS, _ADDRESS, 1, 1, converse), listening[0]


def write(connection: Connection, position: int, size: int, opposite: int = 0) -> None:
    call = Call(Operation.WRITE, CallClass.WRITE, 1, 2, size, position=position, opposite=opposite)
    connection.receive(Direction.EGRESS, call, position, 0, b"x" * size)


def test_records_of_two_writers_in_the_other_order_are_one_gap_that_closes() -> None:
    connection, heard = made()
    connection.begin(written=100, read=0)
    for position in (200, 100, 300):
        write(connection, position, 100)
    assert heard.gaps == [(Direction.EGRESS, 100)]
    assert connection.gap_bytes == 0
    # The late bytes are of no use where their place has been passed over; their call is still a kernel log.
    assert heard.calls == [(Direction.EGRESS, 100)] * 2
    assert len(heard.loose) == 1
    connection.close(400, 0, 9)
    assert len(heard.gaps) == 1


def test_a_gap_is_closed_by_what_was_in_it_alone() -> None:
    connection, heard = made()
    connection.begin(written=(1 << 32) - 100, read=0)
    write(connection, 100, 50)  # 200 bytes before it, across the wrap
    write(connection, (1 << 32) - 100, 150)
    assert connection.gap_bytes == 50
    write(connection, 20, 40)  # would reach beyond what is known
    write(connection, 150, 10)
    assert heard.gaps == [(Direction.EGRESS, 200)]


def test_on_a_connection_met_midway_the_other_direction_is_known_from_the_first_call() -> None:
    connection, heard = made(OpenCause.MET)
    write(connection, 700, 10, opposite=300)
    connection.close(710, 340, 9)
    assert heard.gaps == [(Direction.INGRESS, 40)]
