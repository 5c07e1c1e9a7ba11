# SPDX-License-Identifier: Apache-2.0
"""Bounds the number of distinct endpoints: `/users/123` becomes `/users/{id}`. Optional, off by default.

A segment is taken for an identifier if it is only digits, a UUID (RFC 9562 §4), or at least 16 hexadecimal digits with
a decimal one among them; nothing else is guessed.
"""

from __future__ import annotations

import re

_IDENTIFIER = re.compile(
    r"(?<=/)(?:"
    r"[0-9]+"
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
    r"|(?=[a-fA-F]*[0-9])[0-9a-fA-F]{16,}"
    r")(?=/|\Z)"
)


def template(path: str) -> str:
    """`path` (without query) with `{id}` in place of every segment that is an identifier."""
    return _IDENTIFIER.sub("{id}", path)
