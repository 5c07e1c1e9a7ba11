# SPDX-License-Identifier: Apache-2.0
"""A process of its own that does with sockets what a test tells it, line by line, and says what it saw."""

from __future__ import annotations

import ast
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

# Executed in the actor: each line on standard input is a string literal of code. The answer is a literal too: what the
# code left in `_`, or the errno of the OSError it ended with, and the moments before and after.
_PROGRAM = """
import ast, array, errno, os, select, signal, socket, struct, sys, time
scope = dict(globals())
for line in sys.stdin:
    scope["_"] = None
    scope["enter_ns"] = time.monotonic_ns()
    try:
        exec(ast.literal_eval(line), scope)
        answer = scope["_"]
    except OSError as error:
        answer = OSError, error.errno
    exit_ns = time.monotonic_ns()
    answer = ("error", answer[1]) if isinstance(answer, tuple) and answer[:1] == (OSError,) else ("value", answer)
    print(repr((*answer, scope["enter_ns"], exit_ns)), flush=True)
"""


class Actor:
    """The process while it runs.

    Attributes:
        enter_ns: CLOCK_MONOTONIC before the last code ran.
        exit_ns: and after it.
        errno: of the OSError the last code ended with, or 0.
    """

    def __init__(self, *, wrapper: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=pass_fds,
        )
        self.enter_ns = self.exit_ns = self.errno = 0
        # Its own word for its number, which a wrapper (`ip netns exec`) may hide.
        self.pid: int = self.do("_ = os.getpid()")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        if self._process.poll() is None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()  # in a call that never ends: its test has failed already

    def tell(self, code: str) -> None:
        """Lets it run code that may block; `answer` waits for its end."""
        assert self._process.stdin
        self._process.stdin.write(repr(code) + "\n")

    def answer(self) -> Any:
        """What the code left in `_`."""
        assert self._process.stdout
        assert select.select([self._process.stdout], [], [], 20)[0], "the actor does not return"
        line = self._process.stdout.readline()
        assert line, "the actor ended early"
        kind, value, self.enter_ns, self.exit_ns = ast.literal_eval(line)
        self.errno = value if kind == "error" else 0
        return None if self.errno else value

    def do(self, code: str) -> Any:
        """Runs code and returns what it left in `_`; an OSError is left in `errno`."""
        self.tell(code)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL, and waits for its end."""
        self._process.kill()
        self._process.wait(10)
