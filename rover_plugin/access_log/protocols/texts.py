# SPDX-License-Identifier: Apache-2.0
"""What the log keeps of a message's texts: cut where they are decoded, so that none costs more than its share.

Bounds are bytes on the wire. Outputs may keep less: the backend keeps 150 characters of an endpoint's name.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

MAX_PATH: Final = 4096
MAX_HOST: Final = 300  # a name of 253 characters (RFC 1035 §2.3.4), a port, and some
MAX_MESSAGE: Final = 1024
MAX_DIGITS: Final = 18  # of a number, such as a Content-Length (RFC 9110 §8.6)

_METHODS: Final = {
    method.encode(): method
    for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT")
}
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")


def text(value: bytes, most: int) -> str:
    """The first `most` bytes as UTF-8; what is none becomes U+FFFD, a character that the cut divides is left out."""
    if len(value) <= most:
        return value.decode("utf-8", "replace")
    return codecs.utf_8_decode(value[:most], "replace", False)[0]  # noqa: FBT003 not the end of the text


def path(target: bytes) -> str:
    """A target without query and fragment."""
    if b"?" in target or b"#" in target:
        target = target.partition(b"?")[0].partition(b"#")[0]
    return text(target, MAX_PATH)


def method(value: bytes) -> str | None:
    """A method, if it is a token (RFC 9110 §9.1) and no longer than any that is in use."""
    known = _METHODS.get(value)
    if known is not None:
        return known
    return value.decode() if _TOKEN.fullmatch(value) else None
