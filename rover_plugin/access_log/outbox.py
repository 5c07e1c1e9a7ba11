# SPDX-License-Identifier: Apache-2.0
"""The way out of a worker: what its shard finds is encoded for every output and handed on over the link."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import traceback
from typing import TYPE_CHECKING, Final, Protocol

from rover_plugin.access_log.encoders import make_encoder
from rover_plugin.access_log.link import ROLES
from rover_plugin.access_log.model import Completeness, ProtocolName
from rover_plugin.text import printable_lines

if TYPE_CHECKING:
    from rover_plugin.access_log.connection import Connection
    from rover_plugin.access_log.link import LinkWriter
    from rover_plugin.access_log.model import Call, Exchange
    from rover_plugin.access_log.worker_options import WorkerOptions
    from rover_plugin.capture.records import PolicyMode

# Calls that travel inside an exchange; 256 make 25 KB of JSON. Those beyond go alone.
_CALLS_INSIDE: Final = 256
# struct policy of bpf/maps.h
_POLICY: Final = struct.Struct("=IIBBBBB3x")
_IDENTITY: Final = struct.Struct("=Q")

_ROLE_NUMBERS: Final = {name: number for number, name in enumerate(ROLES)}


class Policies(Protocol):
    """Where capture policies are written: a BPF map."""

    def set(self, key: bytes, value: bytes) -> None:
        """Sets the policy of the connection `key`."""

    def delete(self, key: bytes) -> bool:
        """Forgets it; False if there was none."""


class Outbox:
    """A shard's sink that encodes and hands on over the link, at each `hand_over`.

    What is found in a batch of records waits until the whole batch is analysed: two loops, each with its own code and
    data in the caches, take a quarter less time than one that does everything for each record (measured).

    Attributes:
        filtered: by encoding index and reason, exchanges of which an encoder makes no protocol log.
    """

    def __init__(self, link: LinkWriter, policies: Policies, options: WorkerOptions) -> None:
        self._link = link
        self._policies = policies
        self._encoders = [
            make_encoder(encoding, grpc_status_as_http=options.grpc_status_as_http) for encoding in options.encodings
        ]
        self._policy_state: dict[int, list[int]] = {}
        self.filtered: list[dict[str, int]] = [{} for _ in options.encodings]
        self._found: list[tuple[Connection, Exchange | tuple[list[Call], ProtocolName] | None]] = []
        self._fault_shown = False
        self._template = None
        if options.path_templates:
            from rover_plugin.access_log.protocols.path_template import template  # noqa: PLC0415 optional

            self._template = template

    def opened(self, connection: Connection) -> None:
        """Tells the main process at once: the other end, if it is ours too, may be waiting for a name."""
        self._tell(connection)

    def exchange(self, connection: Connection, exchange: Exchange) -> None:
        """Takes one exchange."""
        self._found.append((connection, exchange))

    def calls(self, connection: Connection, calls: list[Call], protocol: ProtocolName) -> None:
        """Takes stand-alone calls, and what was spoken then."""
        self._found.append((connection, (calls, protocol)))

    def gone(self, connection: Connection) -> None:
        """Will tell the main process to forget the connection."""
        self._found.append((connection, None))

    @property
    def found(self) -> int:
        """How much was found since the last time."""
        return len(self._found)

    def hand_over(self) -> None:
        """Encodes what was found since the last time, for every output, and puts it on the link."""
        found, self._found = self._found, []
        for connection, what in found:
            if what is None:
                self._gone(connection)
            elif isinstance(what, tuple):
                self._calls(connection, *what)
            else:
                self._exchange(connection, what)

    def _exchange(self, connection: Connection, exchange: Exchange) -> None:
        self._tell(connection)
        if self._template is not None and exchange.path is not None:
            exchange.path = self._template(exchange.path)
        if len(exchange.calls) > _CALLS_INSIDE:
            # A long transfer's calls, all in one message, would be more than a link or the backend takes.
            surplus, exchange.calls[_CALLS_INSIDE:] = exchange.calls[_CALLS_INSIDE:], ()
            self._calls(connection, surplus, exchange.protocol)
        for index, encoder in enumerate(self._encoders):
            try:
                fragment, protocol_logs = encoder.exchange(exchange)
            except Exception:  # noqa: BLE001 one exchange that an encoder cannot take must not end the worker
                self._failed(index, len(exchange.calls), 1)
                continue
            if fragment:
                self._link.fragment(connection.id, index, len(exchange.calls), protocol_logs, fragment)
            if not protocol_logs:
                reason = _why_no_log(exchange)
                filtered = self.filtered[index]
                filtered[reason] = filtered.get(reason, 0) + 1

    def _calls(self, connection: Connection, calls: list[Call], protocol: ProtocolName) -> None:
        self._tell(connection)
        for index, encoder in enumerate(self._encoders):
            try:
                fragments = encoder.calls(calls, protocol)
            except Exception:  # noqa: BLE001 see above
                self._failed(index, len(calls), 0)
                continue
            for fragment, kernel_logs in fragments:
                self._link.fragment(connection.id, index, kernel_logs, 0, fragment)

    def _failed(self, index: int, kernel_logs: int, protocol_logs: int) -> None:
        self._link.lose(index, "encoder_failed", kernel_logs, protocol_logs)
        if not self._fault_shown:
            self._fault_shown = True
            _show(traceback.format_exc())

    def _gone(self, connection: Connection) -> None:
        if connection.told:
            self._link.gone(connection.id)
        if self._policy_state.pop(connection.id, None) is not None:
            self._policies.delete(_IDENTITY.pack(connection.id))

    def set_clock(self, offset_ns: int) -> None:
        """Wall clock minus CLOCK_MONOTONIC, for encodings with wall-clock times."""
        for encoder in self._encoders:
            encoder.set_clock(offset_ns)

    def policy(self, connection: Connection, direction: int, until: int, mode: PolicyMode) -> None:
        """Writes the connection's capture policy for the kernel side."""
        state = self._policy_state.setdefault(connection.id, [0] * 6)
        state[direction] = until
        state[2 + direction] = mode
        state[4 + direction] = state[4 + direction] % 255 + 1
        frames = connection.conversation.protocol is ProtocolName.HTTP2
        self._policies.set(_IDENTITY.pack(connection.id), _POLICY.pack(*state[:4], frames, *state[4:]))

    def _tell(self, connection: Connection) -> None:
        conversation = connection.conversation
        facts = (connection.tgid, conversation.role, conversation.tls)
        if facts != connection.told:
            connection.told = facts
            self._link.connection(connection, _ROLE_NUMBERS[conversation.role], tls=conversation.tls)


def _show(text: str) -> None:
    """Writes to standard error if nobody has to be waited for. A confined worker has no log, and opens nothing."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    with contextlib.suppress(OSError):
        if poll.poll(0):
            os.write(2, printable_lines(text).encode(errors="backslashreplace")[-select.PIPE_BUF :])


def _why_no_log(exchange: Exchange) -> str:
    if exchange.completeness is Completeness.OPEN:
        return "still_open"
    return "no_status" if exchange.status is None else "no_request"
