# SPDX-License-Identifier: Apache-2.0
"""How the host logs: events with fields on stderr, for people on a terminal, as JSON elsewhere.

Standard output belongs to the access logs.
"""

from __future__ import annotations

import logging
import sys

import structlog

# Rover's level names (logrus); structlog has no finer level than debug and we have none worse than error.
_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.ERROR,
    "PANIC": logging.ERROR,
}


def configure_logs(level: str) -> None:
    """Sets up structlog for this process; `level` is a value of `logger.level`."""
    stream = sys.stderr
    renderers: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if stream.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
