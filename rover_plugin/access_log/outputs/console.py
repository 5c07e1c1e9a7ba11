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

from rover_plugin.access_log.outputs.line_writer import LineWriter
from rover_plugin.access_log.outputs.lines import opening
from rover_plugin.access_log.outputs.targets import StreamTarget
from rover_plugin.outlet import coloured
from rover_plugin.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.telemetry.counters import Counters
    from rover_plugin.telemetry.ledger import Standing

_COLOURS: Final = {"dim": "2", "bold": "1", "green": "32", "yellow": "33", "red": "31", "cyan": "36"}
_STATUS_COLOURS: Final = {1: "cyan", 2: "green", 3: "cyan", 4: "yellow", 5: "red"}
# What this output itself writes beyond ASCII, and instead of it where standard output cannot take that.
_SIGNS: Final = "→←µ"
_PLAIN_SIGNS: Final = str.maketrans({"→": "->", "←": "<-", "µ": "u"})
_HEADER: Final = (
    f"{'TIME':<12}  {'SERVICE[PID]':<24} {'ROLE':<6} {'METHOD':<7} {'PATH':<32} {'STATUS':>6} {'DURATION':>10} "
    f"{'REQUEST':>9} {'RESPONSE':>9}  LOCAL - REMOTE"
)


class ConsoleOutput:
    """Prints exchanges to standard output; calls that belong to no exchange are not shown.

    Args:
        stream: instead of standard output.
        on_gone, patient: see `LineWriter`.
    """

    name = "console"
    encoding = "json"

    def __init__(
        self,
        counters: Counters,
        stream: IO[str] | None = None,
        on_gone: Callable[[], None] = lambda: None,
        *,
        patient: bool = False,
    ) -> None:
        stream = stream if stream is not None else sys.stdout
        self._colour = coloured(stream)
        self._charset = getattr(stream, "encoding", None) or "utf-8"
        self._plain = not _can_show(_SIGNS, self._charset)
        self._writer = LineWriter(self.name, StreamTarget(stream), counters, on_gone, patient=patient)
        self._headed = False

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        """The beginning of a JSON object, as for `jsonl`."""
        return opening(connection)

    def write(self, message: bytes, kernel_logs: int, protocol_logs: int) -> None:
        """Takes one message; shows it if it is an exchange."""
        if not protocol_logs:
            self._writer.leave_out(kernel_logs, "not_shown")
            return
        line = self._encode(self._line(json.loads(message)))
        if not self._headed:
            self._headed = True
            line = self._encode(self._cell("dim", _HEADER)) + b"\n" + line
        self._writer.put(line, kernel_logs, protocol_logs)

    def standing(self) -> Standing:
        """What is not written yet is held."""
        return self._writer.standing()

    def trouble(self) -> str:
        """Why nothing can be written, or an empty string."""
        return self._writer.trouble()

    def tick(self) -> None:
        """Prints what has come, as far as the terminal takes it."""
        self._writer.flush()

    def close(self, deadline_s: float) -> None:
        """Prints the rest within the deadline."""
        self._writer.close(deadline_s)

    def _encode(self, line: str) -> bytes:
        if self._plain:
            line = line.translate(_PLAIN_SIGNS)
        return line.encode(self._charset, "backslashreplace")

    def _line(self, item: dict[str, Any]) -> str:
        status = item["status"]
        shown_status = str(status) if status is not None else "-"
        # HTTP says 200 for almost every gRPC call that failed.
        failed = bool(item.get("grpc_status"))
        status_colour = "red" if failed else _STATUS_COLOURS.get((status or 0) // 100, "dim")
        arrow = {"client": "→", "server": "←"}.get(item["role"], "-")
        label = item["completeness"]
        cells = [
            ("dim", f"{item['time'][11:23]:<12} "),
            ("bold", f"{_name(item['local']):<24}"),
            ("", f"{item['role']:<6}"),
            ("", f"{item['method'] or '?':<7}"),
            ("", f"{item['path'] or '?':<32}"),
            (status_colour, f"{shown_status:>6}"),
            ("", f"{_duration(item['end_ns'] - item['start_ns']):>10}"),
            ("", f"{_size(item['request_header_bytes'] + item['request_body_bytes']):>9}"),
            ("", f"{_size(item['response_header_bytes'] + item['response_body_bytes']):>9} "),
            ("", f"{_address(item['local'])} {arrow} {_address(item['remote'])}"),
        ]
        if "service" in item["remote"]:
            cells.append(("", _name(item["remote"])))
        if "dialled" in item["remote"]:
            cells.append(("dim", f"dialled {_address(item['remote']['dialled'])}"))
        if "stream" in item:
            cells.append(("dim", f"h2#{item['stream']}"))
        if failed:
            message = f": {item['grpc_message']}" if item["grpc_message"] else ""
            cells.append(("red", item["grpc_status_name"] + message))
        if label != "complete":
            ended_by = f" ({item['ended_by']})" if "ended_by" in item else ""
            cells.append(("yellow", label + ended_by))
        return " ".join([self._cell(*cell) for cell in cells])

    def _cell(self, colour: str, text: str) -> str:
        """The one place where text gets into a line; nothing in it steers the terminal, but the colour."""
        text = printable(text)
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if colour and self._colour else text


def _can_show(text: str, charset: str) -> bool:
    try:
        text.encode(charset)
    except UnicodeEncodeError:
        return False
    return True


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
