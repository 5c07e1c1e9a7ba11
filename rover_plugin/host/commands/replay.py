# SPDX-License-Identifier: Apache-2.0
"""`rover-host replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rover_plugin.host.logs import say

if TYPE_CHECKING:
    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.access_log.replay import Summary
    from rover_plugin.telemetry.counters import Counters


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=click.Choice(["console", "jsonl", "none"]), default="console", show_default=True)
@click.option(
    "--path", default="-", show_default=True, help="Where jsonl goes: a file to append to, or standard output."
)
def command(file: Path, output: str, path: str) -> None:
    """Analyses a recording as the agent does, and prints its access logs: the same each time, with no privileges.

    What it comes to is said on standard error. Exits 1 if FILE cannot be read to its end, or the ledger is out of
    balance.
    """
    from rover_plugin.access_log.replay import replay  # noqa: PLC0415 takes long, and only this needs it
    from rover_plugin.capture.recording import RecordingReader  # noqa: PLC0415 see above
    from rover_plugin.telemetry.counters import Counters  # noqa: PLC0415 see above

    counters = Counters()
    with RecordingReader(file) as reader:
        sink = _make_output(output, path, counters)
        try:
            summary = replay(reader, sink, counters)
        finally:
            sink.close(1.0)
    for line in _report(summary):
        say(line)
    if summary.imbalance or summary.cut:
        raise click.exceptions.Exit(1)


def _make_output(name: str, path: str, counters: Counters) -> Output:
    if name == "console":
        from rover_plugin.access_log.outputs.console import ConsoleOutput  # noqa: PLC0415 only what is asked for

        return ConsoleOutput(counters, patient=True)
    if name == "jsonl":
        from rover_plugin.access_log.outputs.jsonl import JsonLinesOutput  # noqa: PLC0415 only what is asked for

        return JsonLinesOutput(path, counters, patient=True)
    from rover_plugin.access_log.replay import NoOutput  # noqa: PLC0415 only what is asked for

    return NoOutput(counters)


def _report(summary: Summary) -> list[str]:
    rate = summary.exchanges / summary.seconds if summary.seconds else 0.0
    ledger = (
        f"{summary.records} read = {summary.exported} exported + {sum(summary.filtered.values())} filtered"
        f" + {summary.lost} lost + {summary.bookkeeping} bookkeeping + {sum(summary.unparsed.values())} unparsed"
    )
    lines = [
        f"records    {summary.records} read, {summary.lost_before} lost before they were recorded",
        f"exchanges  {summary.exchanges} in {summary.seconds:.2f} s: {rate:.0f}/s",
        f"ledger     {ledger}; imbalance {summary.imbalance}",
    ]
    for what, counts in (
        ("filtered", summary.filtered),
        ("unparsed", summary.unparsed),
        ("errors", summary.errors),
    ):
        if counts:
            lines.append(f"{what:10} {', '.join(f'{reason} {count}' for reason, count in sorted(counts.items()))}")
    if summary.gap_bytes:
        lines.append(f"gaps       {summary.gap_bytes} bytes moved without a record")
    if summary.evicted:
        lines.append(f"evicted    {summary.evicted} connections")
    if summary.cut:
        lines.append("cut        the file ends in the middle: the recorder was killed, or the file is not whole")
    return lines
