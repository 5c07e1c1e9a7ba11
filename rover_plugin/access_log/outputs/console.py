# SPDX-License-Identifier: Apache-2.0
"""Output `console`: a line an exchange, for people; coloured where it is a terminal.

```
04:56:05.123  nginx[812] server  GET /index.html  200  1.2 ms  in 0 B  out 612 B  127.0.0.1:80 ← curl[9] 127.0.0.1:5134
```
"""

from __future__ import annotations

import json
import sys
from typing import IO, TYPE_CHECKING, Any, Final

from rover_plugin.access_log.outputs.lines import opening, printable
from rover_plugin.telemetry.ledger import Logs, standing

if TYPE_CHECKING:
    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.telemetry.counters import Counters
    from rover_plugin.telemetry.ledger import Standing

_COLOURS: Final = {"dim": "2", "bold": "1", "green": "32", "yellow": "33", "red": "31", "cyan": "36"}
_STATUS_COLOURS: Final = {1: "cyan", 2: "green", 3: "cyan", 4: "yellow", 5: "red"}
_HEADER: Final = (
    f"{'TIME':<12}  {'SERVICE[PID]':<24} {'ROLE':<6} {'METHOD':<7} {'PATH':<32} {'STATUS':>6} {'DURATION':>10} "
    f"{'REQUEST':>9} {'RESPONSE':>9}  LOCAL - REMOTE"
)


class ConsoleOutput:
    """Prints exchanges to standard output; calls that belong to no exchange are not shown."""

    name = "console"
    encoding = "json"

    def __init__(self, counters: Counters, stream: IO[str] | None = None) -> None:
        self._counters = counters
        self._stream = stream if stream is not None else sys.stdout
        self._colour = self._stream.isatty()
        self._lines: list[str] = []
        self._logs = {"kernel": 0, "protocol": 0}
        self._headed = False

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        """The beginning of a JSON object, as for `jsonl`."""
        return opening(connection)

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        """Takes one message; shows it if it is an exchange."""
        if protocol_logs:
            self._lines.append(self._line(json.loads(message)))
        self._logs["kernel"] += kernel_logs
        self._logs["protocol"] += protocol_logs

    def standing(self) -> Standing:
        """What is not written yet is held."""
        return standing(self._counters, self.name, Logs(self._logs["kernel"], self._logs["protocol"]))

    def tick(self) -> None:
        """Prints what has come."""
        for unit, count in self._logs.items():
            if count:
                self._counters.add("logs_exported", count, output="console", unit=unit)
                self._logs[unit] = 0
        if not self._lines:
            return
        if not self._headed:
            self._headed = True
            self._lines.insert(0, self._paint("dim", _HEADER))
        text = "\n".join(self._lines) + "\n"
        self._lines = []
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            # Nobody reads any more; the agent is ended by its owner, not by its reader.
            self._stream = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115, PTH123 lives as long as we do

    def close(self, deadline_s: float) -> None:  # noqa: ARG002 a terminal needs no deadline
        """Prints the rest."""
        self.tick()

    def _line(self, item: dict[str, Any]) -> str:
        status = item["status"]
        shown_status = str(status) if status is not None else "-"
        # HTTP says 200 for almost every gRPC call that failed.
        failed = bool(item.get("grpc_status"))
        status_colour = "red" if failed else _STATUS_COLOURS.get((status or 0) // 100, "dim")
        arrow = {"client": "→", "server": "←"}.get(item["role"], "-")
        label = item["completeness"]
        parts = [
            self._paint("dim", f"{item['time'][11:23]:<12} "),
            self._paint("bold", f"{_name(item['local']):<24}"),
            f"{item['role']:<6}",
            f"{item['method'] or '?':<7}",
            f"{printable(item['path'] or '?'):<32}",
            self._paint(status_colour, f"{shown_status:>6}"),
            f"{_duration(item['end_ns'] - item['start_ns']):>10}",
            f"{_size(item['request_header_bytes'] + item['request_body_bytes']):>9}",
            f"{_size(item['response_header_bytes'] + item['response_body_bytes']):>9} ",
            f"{_address(item['local'])} {arrow} {_address(item['remote'])}",
        ]
        if "service" in item["remote"]:
            parts.append(_name(item["remote"]))
        if "stream" in item:
            parts.append(self._paint("dim", f"h2#{item['stream']}"))
        if failed:
            message = f": {printable(item['grpc_message'])}" if item["grpc_message"] else ""
            parts.append(self._paint("red", item["grpc_status_name"] + message))
        if label != "complete":
            ended_by = f" ({item['ended_by']})" if "ended_by" in item else ""
            parts.append(self._paint("yellow", label + ended_by))
        return " ".join(parts)

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self._colour else text


def _name(end: dict[str, Any]) -> str:
    return f"{end.get('service', '-')}[{end.get('pid', '?')}]"


def _address(end: dict[str, Any]) -> str:
    host = f"[{end['address']}]" if ":" in end["address"] else end["address"]
    return f"{host}:{end['port']}"


def _duration(nanoseconds: int) -> str:
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1e3:.0f} µs"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    return f"{nanoseconds / 1e9:.2f} s"


def _size(size: int) -> str:
    if size < 10_000:
        return f"{size} B"
    return f"{size / 1024:.0f} KB" if size < 10_000_000 else f"{size / 1048576:.0f} MB"
