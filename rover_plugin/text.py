# SPDX-License-Identifier: Apache-2.0
"""The one gate for text that a person reads: console, explain, why, check, logs, errors.

Names of processes, paths, methods, statuses of a backend: anybody may have written them. What steers a terminal, hides,
reorders or ends a line does not get through.
"""

from __future__ import annotations

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """The same text on one line, each character that is not printable replaced.

    Not printable (`str.isprintable`) are the categories Cc, Cf (which steers bidi), Cs, Co, Cn, Zl, Zp, and Zs but for
    the space.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _REPLACEMENT for letter in text)


def printable_lines(text: str) -> str:
    """The same for text of ours with several lines, such as a traceback: its line feeds stay."""
    return "\n".join(map(printable, text.split("\n")))
