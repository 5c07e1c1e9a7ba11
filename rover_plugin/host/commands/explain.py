# SPDX-License-Identifier: Apache-2.0
"""`rover-host explain`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rover_plugin.host.logs import say
from rover_plugin.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.explain import Event, Story

_ARROWS: Final = {"client": "→", "server": "←"}
_LIST: Final = ("ID", "PROCESS", "ROLE", "PROTOCOL", "CALLS", "EXCHANGES", "GAPS", "MISSED", "LOCAL - REMOTE")
_TIME_LINE: Final = ("MS", "TOOK µS", "DIR", "CALL", "BYTES", "POSITIONS", "COPIED", "WHAT")
_RIGHT: Final = frozenset(("ID", "CALLS", "EXCHANGES", "GAPS", "MISSED", "MS", "TOOK µS", "BYTES", "COPIED"))


@click.command("explain")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--connection", metavar="ID", type=click.IntRange(min=0), help="Show the time line of this connection.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(file: Path, connection: int | None, as_json: bool) -> None:
    """Shows what a recording holds: its connections, or every call, decision and gap of one of them.

    Exits 1 if FILE cannot be read to its end, 2 if it has no such connection.
    """
    from rover_plugin.access_log.explain import explain, survey  # noqa: PLC0415 takes long, and only this needs it
    from rover_plugin.capture.recording import RecordingReader  # noqa: PLC0415 see above

    with RecordingReader(file) as reader:
        if connection is None:
            stories = survey(reader)
            click.echo(_as_json([_facts(story) for story in stories]) if as_json else _list(stories))
        else:
            story = explain(reader, connection)
            click.echo(_as_json(_with_events(story)) if as_json else _time_line(story))
        cut = reader.cut
    if cut:
        say("the file ends in the middle: the recorder was killed, or the file is not whole")
        raise click.exceptions.Exit(1)


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2)  # ASCII only: a person may read it, too


def _facts(story: Story) -> dict[str, Any]:
    facts = asdict(story)
    del facts["events"]
    return facts


def _with_events(story: Story) -> dict[str, Any]:
    return {**_facts(story), "timeline": [asdict(event) for event in story.events]}


def _list(stories: Sequence[Story]) -> str:
    rows = [
        (
            str(story.id),
            _process(story),
            story.role.value,
            story.protocol.value,
            str(story.calls),
            str(story.exchanges),
            str(story.gaps),
            str(story.gap_bytes),
            _ends(story),
        )
        for story in stories
    ]
    return _table(_LIST, rows)


def _time_line(story: Story) -> str:
    facts = f"connection {story.id}  {_process(story)}  {story.role.value}  {story.protocol.value}  {_ends(story)}"
    counts = (
        f"{story.cause}; {story.calls} calls, {story.exchanges} exchanges, {story.gaps} gaps"
        f" ({story.gap_bytes} bytes without a record)"
    )
    start_ns = story.events[0].at_ns if story.events else 0
    table = _table(_TIME_LINE, [_row(event, start_ns) for event in story.events])
    return f"{printable(facts)}\n{printable(counts)}\n\n{table}"


def _row(event: Event, start_ns: int) -> tuple[str, ...]:
    is_call = event.event in {"call", "open", "close"} and bool(event.call)
    what = event.text
    if event.event == "call":
        what = f"exchange {event.exchange}" if event.exchange is not None else "stand-alone"
    elif event.event == "exchange":
        what = f"= exchange {event.exchange}: {event.text}"
    elif event.event in {"gap", "skipped", "error", "policy"}:
        what = f"{event.event}: {event.text}"
    return (
        f"{(event.at_ns - start_ns) / 1e6:.3f}",
        f"{event.took_ns / 1e3:.1f}" if is_call else "",
        event.direction,
        event.call,
        "" if event.bytes is None else "?" if event.bytes < 0 else str(event.bytes),
        "" if event.start is None else f"{event.start}-{event.end}",
        "" if event.copied is None else str(event.copied),
        what,
    )


def _process(story: Story) -> str:
    return f"{story.process or '?'}[{story.pid}]"


def _ends(story: Story) -> str:
    return f"{story.local} {_ARROWS.get(story.role.value, '-')} {story.remote}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [
            printable(f"{cell:>{width}}" if title in _RIGHT else f"{cell:<{width}}")
            for title, cell, width in zip(head, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
