# SPDX-License-Identifier: Apache-2.0
"""gRPC status codes: their names, and the HTTP status each goes as to a backend that knows no other.

Names and numbers: gRPC's status code list; HTTP statuses: the comments of google.rpc.Code (google/rpc/code.proto).
"""

from __future__ import annotations

from typing import Final

_CODES: Final = (
    ("OK", 200),
    ("CANCELLED", 499),
    ("UNKNOWN", 500),
    ("INVALID_ARGUMENT", 400),
    ("DEADLINE_EXCEEDED", 504),
    ("NOT_FOUND", 404),
    ("ALREADY_EXISTS", 409),
    ("PERMISSION_DENIED", 403),
    ("RESOURCE_EXHAUSTED", 429),
    ("FAILED_PRECONDITION", 400),
    ("ABORTED", 409),
    ("OUT_OF_RANGE", 400),
    ("UNIMPLEMENTED", 501),
    ("INTERNAL", 500),
    ("UNAVAILABLE", 503),
    ("DATA_LOSS", 500),
    ("UNAUTHENTICATED", 401),
)


def name(status: int) -> str:
    """`NOT_FOUND` for 5; the number itself for one that has no name."""
    return _CODES[status][0] if 0 <= status < len(_CODES) else str(status)


def as_http(status: int) -> int:
    """The HTTP status: 404 for 5 (NOT_FOUND); 500 for a number that has no name, as for UNKNOWN."""
    return _CODES[status][1] if 0 <= status < len(_CODES) else 500
