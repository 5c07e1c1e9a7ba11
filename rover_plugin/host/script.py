# SPDX-License-Identifier: Apache-2.0
"""The console script `rover-host`: `cli`, whose import takes long enough to be interrupted."""

from __future__ import annotations

from rover_plugin.host.stop_signals import hold


def main() -> None:
    """Runs the command line; a stop signal that comes before that is ready waits for it."""
    hold()
    from rover_plugin.host.cli import main as run  # noqa: PLC0415 see above

    run()
