# SPDX-License-Identifier: Apache-2.0
"""One account of bytes for all connections of a shard, and who gives way when it is overdrawn.

A connection is weighed when it has taken a large call, else at the next tick: what it can gather in between is bounded
by what a worker reads in a tenth of a second. Weights are estimates (`protocols.weights`), the sums are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rover_plugin.access_log.protocols.weights import CALL_BYTES, CONNECTION_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rover_plugin.access_log.connection import Connection

# When it gives way, it does so for a while: ranking costs some microseconds a connection.
_ENOUGH: Final = 0.9
NO_LIMIT: Final = 1 << 60
# Less than this above an empty connection is not worth to lose its place in its streams for.
LEAST_BYTES: Final = 2 * CONNECTION_BYTES
_SECOND_NS: Final = 1_000_000_000


class Account:
    """What the connections of a shard hold.

    Args:
        most_bytes: what they may hold together.

    Attributes:
        total: what they hold, as of when each was weighed.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._weights: dict[int, int] = {}
        self._unweighed: list[Connection] = []
        self.total = 0

    @property
    def overdrawn(self) -> bool:
        """Whether somebody has to give way."""
        return self.total > self._most_bytes

    def note(self, connection: Connection) -> None:
        """The connection will be weighed at the next tick; to be called once until then (`Connection.unweighed`)."""
        connection.unweighed = True
        self._unweighed.append(connection)

    def weigh(self, connection: Connection) -> None:
        """Weighs a connection anew."""
        weight = CONNECTION_BYTES + CALL_BYTES * connection.open_calls + connection.conversation.held_bytes()
        self.total += weight - self._weights.get(connection.id, 0)
        self._weights[connection.id] = weight

    def settle(self, connections: Mapping[int, Connection]) -> None:
        """Weighs all that were noted and are still among `connections`."""
        noted, self._unweighed = self._unweighed, []
        for connection in noted:
            connection.unweighed = False
            if connections.get(connection.id) is connection:
                self.weigh(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self.total -= self._weights.pop(connection.id, 0)

    def weight(self, connection: Connection) -> int:
        """As of when it was weighed."""
        return self._weights.get(connection.id, 0)

    def victims(self, connections: Mapping[int, Connection], now_ns: int) -> list[Connection]:
        """Who is to give way, the costliest for the longest idle first, until enough would be free."""

        def cost(connection: Connection) -> int:
            idle_ns = max(0, now_ns - connection.last_ns)
            return self.weight(connection) * (_SECOND_NS + idle_ns)

        free = self.total - int(self._most_bytes * _ENOUGH)
        chosen = []
        for connection in sorted(connections.values(), key=cost, reverse=True):
            if free <= 0:
                break
            chosen.append(connection)
            weight = self.weight(connection)
            free -= weight - CONNECTION_BYTES if weight >= LEAST_BYTES else weight
        return chosen
