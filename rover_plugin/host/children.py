# SPDX-License-Identifier: Apache-2.0
"""How this host starts its own processes and other people's programs: so that nobody but root decides what runs.

The agent runs with more rights than most, often from a folder that others may write to, and with an environment it has
not made. Neither reaches what it starts.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import Final

# Only what says where files of ours may lie: `capture.headers`.
_KEPT: Final = ("CACHE_DIRECTORY", "HOME", "RUNTIME_DIRECTORY", "XDG_CACHE_HOME")
_PROGRAMS: Final = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
# -I: nothing of the current folder, of the environment, of the user's own packages. What this process found elsewhere
# comes last, so that it cannot stand for a module of Python's own.
_RUN: Final = (
    "import json, runpy, sys; sys.path += [path for path in json.loads(sys.argv[2]) if path not in sys.path]; "
    "name = sys.argv[1]; sys.argv[:3] = [name]; runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in a process of its own, isolated (`python -I`)."""
    paths = [path for path in sys.path if os.path.isabs(path)]  # noqa: PTH117 a Path for each costs more
    return [sys.executable, "-I", "-c", _RUN, module, json.dumps(paths), *arguments]


def environment() -> dict[str, str]:
    """All that processes we start know of our environment."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"LANG": "C.UTF-8", "PATH": ":".join(_directories()), **kept}


def program(name: str) -> str | None:
    """Absolute path of another program that nobody but root, or who we run as, could have put there; None without."""
    for directory in _directories():
        path = os.path.join(directory, name)  # noqa: PTH118 see above
        if os.access(path, os.X_OK) and is_private(path):
            return path
    return None


def _directories() -> list[str]:
    named = [*os.environ.get("PATH", "").split(":"), *_PROGRAMS]
    return [path for path in dict.fromkeys(named) if os.path.isabs(path) and is_private(path)]  # noqa: PTH117


def is_private(path: str | os.PathLike[str]) -> bool:
    """Whether nobody but root and who we run as can change what a path leads to, wherever its links point.

    Folders above it may be open to all if they are sticky (as /tmp is): nobody can rename there what is another's.
    """
    real = os.path.realpath(path)
    last = True
    while _is_private(real, last=last):
        above = os.path.dirname(real)  # noqa: PTH120
        if above == real:
            return True
        real, last = above, False
    return False


def _is_private(path: str, *, last: bool) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    open_to_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    shared = open_to_others and (last or not found.st_mode & stat.S_ISVTX)
    return found.st_uid in {0, os.geteuid()} and not shared
