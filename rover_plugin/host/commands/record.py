# SPDX-License-Identifier: Apache-2.0
"""`rover-host record`."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rover_plugin.host.lifecycle import Stop, run
from rover_plugin.host.logs import say
from rover_plugin.host.options import load_settings, settings_options
from rover_plugin.host.privileges import prepare_process
from rover_plugin.host.registry import plan, registered
from rover_plugin.host.signals import stop_on_signals

if TYPE_CHECKING:
    from rover_plugin.host.module import Module
    from rover_plugin.settings import Settings


@click.command("record")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after so long.")
@click.option("--redact", is_flag=True, help="Hide values and bodies; lengths and structure stay.")
@click.option("--output", type=click.Choice(["none", "console", "jsonl"]), default="none", show_default=True)
@click.option("--path", default="-", show_default=True, help="Where jsonl goes: a file to append to, or - for stdout.")
@settings_options
def command(file: Path, seconds: float | None, redact: bool, output: str, path: str) -> None:
    """Records what the kernel reports of watched processes into FILE, until a signal, for `replay` and `explain`.

    With an output it prints the access logs, too; `replay` will print the same. Follows the process feed of a running
    rover-host if there is one, else finds processes itself.
    """
    from rover_plugin.access_log.recorder import Recorder  # noqa: PLC0415 takes long, and only this needs it

    recorder = Recorder(file, redact=redact)
    # Nothing of this goes to the backend.
    settings = load_settings(
        f"access_log.outputs={'jsonl' if output == 'none' else output}",
        f"access_log.jsonl.path={path}",
        "process_discovery.local.active=true",
    )
    prepare_process(click.get_current_context(), settings)
    stop = Stop()
    timer = threading.Timer(seconds, stop.request) if seconds else None
    with stop_on_signals(stop):
        from rover_plugin.access_log.module import AccessLogModule  # noqa: PLC0415 takes long, and only this needs it

        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            run([*_discovery(settings), AccessLogModule(recorder, silent=output == "none")], settings, stop)
        finally:
            if timer is not None:
                timer.cancel()
    counts = recorder.counts
    if counts:
        missing = counts["kernel"]["ring_full"] + counts["kernel"]["share"]
        say(f"{file}: {counts['records']} records, {counts['bytes']} bytes, {missing} lost for want of room")


def _discovery(settings: Settings) -> tuple[Module, ...]:
    """What finds processes, if nobody does yet."""
    from rover_plugin.access_log.options import feed_address  # noqa: PLC0415 see above

    if settings.text("access_log.feed") or _answers(feed_address(settings)):
        return ()
    return plan(["process_discovery"], settings, registered()).started


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path.removeprefix("unix:"))
        except OSError:
            return False
    return True
