# SPDX-License-Identifier: Apache-2.0
"""Reads a BPF program's source and puts its local headers in place.

bcc rewrites only what stands in the file it compiles, so `#include "x.h"` is resolved here and not by clang.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rover_plugin.errors import CaptureError

if TYPE_CHECKING:
    from pathlib import Path

_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)


def read_source(directory: Path, name: str) -> str:
    """Returns the text of `directory/name` with every local header inserted once, where it is first included.

    Raises:
        CaptureError: a file is missing.
    """
    return _expand(directory, name, set())


def _expand(directory: Path, name: str, seen: set[str]) -> str:
    seen.add(name)
    try:
        text = (directory / name).read_text()
    except OSError as error:
        raise CaptureError(f"cannot read the BPF source {directory / name}: {error.strerror}", path=name) from error
    return _INCLUDE.sub(lambda match: "" if match[1] in seen else _expand(directory, match[1], seen), text)
