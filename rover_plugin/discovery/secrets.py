# SPDX-License-Identifier: Apache-2.0
"""Command lines without the secrets that people put into them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HIDDEN: Final = "***"

_WORDS: Final = (
    r"pass(?:word|wd|phrase|code)?|pwd|secret|token|credentials?|auth|authorization|cookie|dsn"
    r"|(?:api|access|private|secret|license|encryption|signing|account|shared)[-_.]?key|connection[-_.]?string"
)
# The word stands at an end of the name or between its separators: `--auth`, `db.password`, not `--author`, `--passive`.
_NAME: Final = re.compile(rf"(?:^|[-_./:@])(?:{_WORDS})s?(?:[-_.:](?:value|text|string|b64|base64))?$", re.IGNORECASE)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ASSIGNED: Final = re.compile(r"(?P<name>[\w./:@-]{1,100}?)(?P<sign>=|:\s+|:)(?P<value>.+)", re.DOTALL)
_USER_INFO: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://[^\s:/@?#]*):(?P<secret>[^\s/?#]*)@")
_QUERY: Final = re.compile(rf"(?P<name>[?&;][\w.-]*?(?:{_WORDS})s?)=(?P<value>[^\s&;#'\"]+)", re.IGNORECASE)
_SCHEME: Final = re.compile(r"\b(?P<scheme>Bearer|Basic|Token|Digest)\s+(?P<value>\S+)", re.IGNORECASE)


def hide_secrets(arguments: Iterable[str]) -> Iterator[str]:
    """The arguments of a process, with `***` in place of what looks like a secret.

    Hidden are values of options, properties and variables whose name says so (`--db-password x`, `--token=x`,
    `-Dapi.key=x`, `PGPASSWORD=x`, `X-Auth-Token: x`), passwords and secret parameters in URLs, and credentials after
    an authentication scheme (RFC 9110 §11.4). A heuristic: a secret under a harmless name stays.
    """
    value_is_secret = False
    for argument in arguments:
        if value_is_secret and not argument.startswith("-"):
            value_is_secret = False
            yield HIDDEN
            continue
        value_is_secret = argument.startswith("-") and "=" not in argument and _is_secret(argument)
        yield _hide_within(argument)


def _hide_within(argument: str) -> str:
    text = _USER_INFO.sub(rf"\g<scheme>:{HIDDEN}@", argument)
    text = _QUERY.sub(rf"\g<name>={HIDDEN}", text)
    assigned = _ASSIGNED.match(text)
    if assigned and _is_secret(assigned["name"]) and not assigned["value"].startswith("//"):
        return f"{assigned['name']}{assigned['sign']}{HIDDEN}"
    return _SCHEME.sub(rf"\g<scheme> {HIDDEN}", text)


def _is_secret(name: str) -> bool:
    plain = _CAMEL.sub("-", name.lstrip("-"))
    return bool(_NAME.search(plain)) or plain.upper().endswith(("PASSWORD", "PASSWD"))
