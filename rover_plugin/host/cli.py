# SPDX-License-Identifier: Apache-2.0
"""The command line of `rover-host`.

Each file in `commands/` is one command: it defines `command`, its name is the file's. Nothing else is to be edited.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import pkgutil
import sys
import threading
import traceback
from typing import Any, Final

import click
import structlog

from rover_plugin import __version__
from rover_plugin.errors import RoverError
from rover_plugin.host import commands
from rover_plugin.host.lifecycle import Stop, run
from rover_plugin.host.logs import say, say_lines
from rover_plugin.host.options import load_settings, settings_options
from rover_plugin.host.privileges import give_up_privileges, prepare_process
from rover_plugin.host.registry import plan, registered
from rover_plugin.host.signals import stop_on_signals
from rover_plugin.host.stop_signals import release
from rover_plugin.outlet import prepare_standard_descriptors

log = structlog.get_logger()

_UNWRITABLE: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG))


class HostGroup(click.Group):
    """Finds commands in the package `commands`, imports only the one that is used, and reports RoverErrors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, sorted."""
        del ctx
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command in the file `cmd_name`.py, or None."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{commands.__name__}.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command line; a RoverError becomes one line, its traceback is only for logger.level DEBUG."""
        try:
            return super().invoke(ctx)
        except RoverError as error:
            if structlog.is_configured() and log.is_enabled_for(logging.DEBUG):
                say_lines("".join(traceback.format_exception(error)))
            say(f"rover-host: {error}")
            ctx.exit(error.exit_code)


EPILOG = """
\b
Exit codes:
  0      stopped by a signal, or because nobody reads the only output any more; or the command succeeded
  1      a module failed; `check` found something that prevents access logs; `why`: the process is not logged; or a
         recording is not whole, damaged, or none
  2      wrong command line or settings, unknown module or connection, or no module active
  128+n  a second signal (number n) ended the host before everything was flushed
"""


@click.group(cls=HostGroup, invoke_without_command=True, epilog=EPILOG)
@click.option("--modules", metavar="NAME[,NAME…]", default="", help="Modules to run, with all they require.")
@settings_options
@click.version_option(__version__, prog_name="rover-host")
@click.pass_context
def cli(context: click.Context, modules: str) -> None:
    """Runs modules that observe this host, such as access_log, until SIGINT, SIGTERM, SIGHUP or SIGQUIT."""
    names = [name.strip() for name in modules.split(",") if name.strip()]
    if context.invoked_subcommand:
        if names:
            message = f"--modules does not go with the command {context.invoked_subcommand}"
            raise click.UsageError(message)
        release()
        return
    if not names:
        message = "name the modules to run, such as --modules access_log"
        raise click.UsageError(message)
    settings = load_settings()
    prepare_process(context, settings)
    stop = Stop()
    with stop_on_signals(stop):
        wanted = plan(names, settings, registered())
        for module in wanted.loaded:
            if module not in wanted.started:
                log.info("module_inactive", module=module.name)
        run(wanted.started, settings, stop)


def main() -> None:
    """The command line, of this process."""
    # grpcio writes lines of its own to standard error, past the log; what matters comes as an exception.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    prepare_standard_descriptors()
    threading.excepthook = _log_thread_failure
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every locale has what we write
    try:
        # What is given up is gone: whoever runs commands within a process of his own keeps it as it is.
        cli(prog_name="rover-host", obj=give_up_privileges)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        say(f"rover-host: cannot write to standard output: {error.strerror}")
        os._exit(1)  # Python would try again, and exit with a code of its own


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    # Python's own writes to standard error, and waits for whoever reads it.
    name = failure.thread.name if failure.thread is not None else "?"
    log.error("thread_failed", thread=name, exc_info=failure.exc_value)
