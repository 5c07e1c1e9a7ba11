# SPDX-License-Identifier: Apache-2.0
"""Which connections are worth asking the kernel's translation table about: few, so that it costs next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rover_plugin.access_log.link import ConnectionFacts
    from rover_plugin.capture.recording import Translation

# An answer takes some 0.1 ms of one core where a container's packets pass two tables.
_A_SECOND: Final = 100
_SECOND_NS: Final = 1_000_000_000
_ANSWER_WAIT_NS: Final = 500_000_000
# What is not translated now may be later, where somebody changes the rules.
_PLAIN_NS: Final = 30_000_000_000
_MOST_PLAIN: Final = 4096

# Network namespace, and what was dialled.
_Far = tuple[int, bytes, int]


class Questions:
    """Decides, without a clock of its own, what is asked.

    Args:
        translate: asks; None if there is nobody to ask.
    """

    def __init__(self, translate: Callable[[ConnectionFacts], None] | None) -> None:
        self._translate = translate
        self._plain: dict[_Far, int] = {}  # not translated, and until when that is believed
        self._open: dict[int, int] = {}  # connection -> until when its answer is waited for
        self._second = 0
        self._asked = 0

    @property
    def open(self) -> Collection[int]:
        """The connections whose answers are waited for."""
        return self._open

    def ask(self, facts: ConnectionFacts, now_ns: int) -> bool:
        """Asks about a connection, once, if that is worth it; False if there is no answer to wait for."""
        if self._translate is None or facts.id in self._open or self._plain.get(_far(facts), 0) > now_ns:
            return False
        second = now_ns // _SECOND_NS
        if second != self._second:
            self._second, self._asked = second, 0
        if self._asked >= _A_SECOND:
            return False
        self._asked += 1
        self._open[facts.id] = now_ns + _ANSWER_WAIT_NS
        self._translate(facts)
        return True

    def answered(self, identity: int, facts: ConnectionFacts | None, answer: Translation, now_ns: int) -> None:
        """Takes the answer for a connection, whose facts are given if it is still known."""
        self._open.pop(identity, None)
        # A router's address stands for the router, and for everybody whom it masquerades: of a server's clients nothing
        # is remembered.
        if facts is None or answer.address or facts.role == "server":
            return
        self._plain.pop(_far(facts), None)
        self._plain[_far(facts)] = now_ns + _PLAIN_NS
        if len(self._plain) > _MOST_PLAIN:
            del self._plain[next(iter(self._plain))]

    def overdue(self, now_ns: int) -> list[int]:
        """Connections whose answers have not come in time; they are not waited for any more."""
        late = []
        for identity, until_ns in self._open.items():
            if until_ns > now_ns:
                break
            late.append(identity)
        for identity in late:
            del self._open[identity]
        return late


def _far(facts: ConnectionFacts) -> _Far:
    return facts.netns, facts.remote, facts.remote_port
