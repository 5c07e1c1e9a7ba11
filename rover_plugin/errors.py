# SPDX-License-Identifier: Apache-2.0
"""The one exception tree. Every message says what is wrong and what to do about it.

Foreign exceptions (gRPC, bcc, OSError, dynaconf) are mapped to these at the edge where they appear, with
`raise ... from error`; no module lets them travel further.
"""

from __future__ import annotations


class RoverError(Exception):
    """Root of everything this project raises on purpose.

    Args:
        message: one line, for a person: what is wrong.
        hint: what to do about it, or an empty string.
        context: machine-readable facts (path, key, pid, errno…), also set as attributes of `context`.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class SettingsError(RoverError):
    """A configuration key, value, file or variable is wrong. Exit code 2."""

    exit_code = 2


class NothingActiveError(SettingsError):
    """No module named on the command line is active. Exit code 2."""


class ModuleError(RoverError):
    """A module is unknown, in a dependency cycle, or could not start or stop."""


class UnknownModuleError(ModuleError):
    """A module's name that no installed package registers. Exit code 2."""

    exit_code = 2


class CancelledError(RoverError):
    """What was being waited for has been called off: the host stops."""


class CaptureError(RoverError):
    """The kernel side cannot be built, loaded, attached or read."""


class BuildError(CaptureError):
    """The helper that compiles BPF programs ended, or was given up, before it had an answer."""


class PrivilegeError(CaptureError):
    """This process lacks a capability that BPF needs."""


class BackendError(RoverError):
    """The backend's address, credentials or certificates cannot be used."""


class CallError(BackendError):
    """A call to the backend failed.

    Args:
        status: gRPC status name, such as UNAVAILABLE.
        body_bytes_sent: how much of the request body had left when it failed. What lies behind was surely not applied;
            what lies before may have been. 0 when the backend is known not to have begun with the call.
        address: the one that was tried.
    """

    def __init__(
        self, message: str, *, status: str, body_bytes_sent: int = 0, hint: str = "", address: str = ""
    ) -> None:
        super().__init__(message, hint=hint, status=status, address=address)
        self.status = status
        self.body_bytes_sent = body_bytes_sent
        self.address = address


class FeedError(RoverError):
    """The process feed cannot be served or followed."""


class RecordingError(RoverError):
    """A recording file cannot be written or read."""


class UnknownConnectionError(RecordingError):
    """A recording has no connection of the number that was asked for. Exit code 2."""

    exit_code = 2
