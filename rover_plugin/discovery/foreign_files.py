# SPDX-License-Identifier: Apache-2.0
"""Reads files that container runtimes and their users write: foreign input, in places a user may have laid out."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.telemetry.counters import Counters

MAX_NAME = 253  # of a pod; a container's is shorter (RFC 1123 labels and subdomains, as Kubernetes takes them)
MAX_ENTRIES = 128  # of a directory that is listed
# Of a file that is not root's, 800 containers. Read as JSON, `[],[],…` takes 20 times its size in memory.
MAX_USER_BYTES = 512 << 10


class ForeignFiles:
    """Files below directories the caller trusts to be what they are called; nothing below them is.

    What is absent is no fault. Everything else that keeps a file from being used is counted as
    `container_files_refused`, with the reason: `symlink`, `irregular`, `too_large`, `unreadable`, `malformed`. A path
    may itself come out of such a file, and be one that no file can have.

    Args:
        roots: where the host's root directory may be seen from here; a file counts in the first that has it.
    """

    def __init__(self, roots: Sequence[str], counters: Counters) -> None:
        self._roots = tuple(root.rstrip("/") for root in roots)
        self._counters = counters

    def names(self, directory: str) -> list[str]:
        """Entries of a directory, the first `MAX_ENTRIES`; none if it cannot be listed."""
        for root in self._roots:
            try:
                with os.scandir(root + directory) as entries:
                    return [entry.name for _, entry in zip(range(MAX_ENTRIES), entries, strict=False)]
            except (OSError, ValueError):
                continue
        return []

    def version(self, directory: str, below: str) -> tuple[int, int, int] | None:
        """Changes when the file is written again; `None` if there is none."""
        for root in self._roots:
            try:
                found = os.lstat(f"{root}{directory}/{below}")
            except (OSError, ValueError):
                continue
            return found.st_ino, found.st_mtime_ns, found.st_size
        return None

    def text(self, directory: str, below: str, limit: int) -> str:
        """The contents of `directory/below`, if they are at most `limit` bytes; else an empty string.

        Of another user's file at most `MAX_USER_BYTES` count.
        """
        for root in self._roots:
            try:
                return self._read(root + directory, below.split("/"), limit).decode(errors="replace")
            except (FileNotFoundError, NotADirectoryError):
                continue
            except _RefusedError as refused:
                self._refuse(str(refused))
            except (OSError, ValueError):
                self._refuse("unreadable")
        return ""

    def document(self, directory: str, below: str, limit: int) -> object:
        """The JSON in `directory/below`, see `text`; `None` if there is none or it is none."""
        text = self.text(directory, below, limit)
        if not text:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            self._refuse("malformed")
            return None

    def _refuse(self, reason: str) -> None:
        self._counters.add("container_files_refused", reason=reason)

    def _read(self, base: str, parts: Sequence[str], limit: int) -> bytes:
        if any(part in {"", ".", ".."} for part in parts):
            raise _RefusedError("irregular")
        opened = [os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        try:
            for part in parts:
                # With O_PATH nothing is opened that would notice: no device, no FIFO.
                opened.append(os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened[-1]))
                if stat.S_ISLNK(os.fstat(opened[-1]).st_mode):
                    raise _RefusedError("symlink")
            found = os.fstat(opened[-1])
            if not stat.S_ISREG(found.st_mode):
                raise _RefusedError("irregular")
            limit = limit if found.st_uid == 0 else min(limit, MAX_USER_BYTES)
            descriptor = os.open(f"/proc/self/fd/{opened[-1]}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                content = file.read(limit + 1)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        if len(content) > limit:
            raise _RefusedError("too_large")
        return content


class _RefusedError(Exception):
    """Why a file is not used; it never leaves this module."""


def member(document: object, *path: str) -> object:
    """What stands at `path` in nested JSON objects, `None` where anything on the way is missing or no object."""
    for key in path:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def name_in(document: object, *path: str) -> str:
    """A name at `path`, see `fit_to_show`; empty if it is no text."""
    found = member(document, *path)
    return fit_to_show(found) if isinstance(found, str) else ""


def fit_to_show(name: str) -> str:
    """A name somebody else chose: printable, at most `MAX_NAME` characters."""
    return "".join(character if character.isprintable() else "?" for character in name[:MAX_NAME])
