# SPDX-License-Identifier: Apache-2.0
"""Fragments of JSON: the rest of an object whose beginning (the connection) the main process puts in front.

Written out by hand where values are numbers or our own words: at tens of thousands of exchanges a second a general
encoder is the largest cost of all. Whatever came from the network goes through `json.encoder`'s own string escaping.
"""

from __future__ import annotations

import time
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Final

from rover_plugin.access_log import grpc_status
from rover_plugin.capture.records import CALL_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.model import Call, Exchange, ProtocolName


_CALL_OPENINGS: Final = tuple(f'{{"call":"{name}","start_ns":' for name in CALL_NAMES)


def _optional(value: str | None) -> str:
    return "null" if value is None else quote(value)


def _call(call: Call) -> str:
    opening = _CALL_OPENINGS[call.syscall]
    if call.size:
        return f'{opening}{call.enter_ns},"end_ns":{call.exit_ns},"bytes":{call.size}}}'
    success = "true" if call.success else "false"
    return f'{opening}{call.enter_ns},"end_ns":{call.exit_ns},"success":{success}}}'


class JsonEncoder:
    """Encodes for the `console` and `jsonl` outputs.

    `time` is the wall clock at the start, UTC; `start_ns` and `end_ns` are CLOCK_MONOTONIC, as in every other record.
    """

    def __init__(self) -> None:
        self._offset_ns = 0
        self._second = -1
        self._prefix = ""

    def set_clock(self, offset_ns: int) -> None:
        """Wall clock minus CLOCK_MONOTONIC, nanoseconds."""
        self._offset_ns = offset_ns

    def _time(self, monotonic_ns: int) -> str:
        second, fraction = divmod(monotonic_ns + self._offset_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{fraction // 1000:06d}Z"

    def exchange(self, exchange: Exchange) -> tuple[bytes, int]:
        """One object's rest: `"kind":"exchange",…}`."""
        status = exchange.status if exchange.status is not None else "null"
        text = (
            f'"kind":"exchange","protocol":"{exchange.protocol}","time":"{self._time(exchange.start_ns)}",'
            f'"start_ns":{exchange.start_ns},"end_ns":{exchange.end_ns},'
            f'"method":{_optional(exchange.method)},"path":{_optional(exchange.path)},"host":{_optional(exchange.host)},'
            f'"status":{status},'
            f'"request_header_bytes":{exchange.request_header_bytes},"request_body_bytes":{exchange.request_body_bytes},'
            f'"response_header_bytes":{exchange.response_header_bytes},'
            f'"response_body_bytes":{exchange.response_body_bytes},'
            f'"completeness":"{exchange.completeness}",'
        )
        if exchange.ended_by is not None:
            text += f'"ended_by":"{exchange.ended_by}",'
        if exchange.version == 2:
            text += f'"stream":{exchange.stream_id if exchange.stream_id is not None else "null"},'
            if exchange.grpc_status is not None:
                status = exchange.grpc_status
                text += f'"grpc_status":{status},"grpc_status_name":"{grpc_status.name(status)}",'
                text += f'"grpc_message":{_optional(exchange.grpc_message)},'
        if exchange.trace is not None:
            trace = exchange.trace
            text += (
                f'"trace":{{"provider":"{trace.provider}","trace_id":{quote(trace.trace_id)},'
                f'"segment_id":{quote(trace.segment_id)},"span_id":{quote(trace.span_id)}}},'
            )
        return f'{text}"calls":[{",".join(map(_call, exchange.calls))}]}}'.encode(), 1

    def calls(self, calls: Sequence[Call], protocol: ProtocolName) -> list[tuple[bytes, int]]:
        """One object a call: `"kind":"call",…}`."""
        opening = f'"kind":"call","protocol":"{protocol}","time":"'
        return [(f'{opening}{self._time(call.enter_ns)}",{_call(call)[1:]}'.encode(), 1) for call in calls]
