# SPDX-License-Identifier: Apache-2.0
"""Sizes and durations as Rover reads them (rover-behaviour §2.3): binary sizes, Go durations."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgtp])i?)?b?", re.IGNORECASE | re.ASCII)
_SIZE_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

_DURATION_PART = r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"\+?(?:{_DURATION_PART})+", re.ASCII)
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Returns the bytes that `text` such as `400KB`, `1.5g`, `16 MiB` or `4096` means; always binary.

    Raises:
        ValueError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        message = f"{text!r} is not a size such as 4096, 400KB or 16MB"
        raise ValueError(message)
    number, unit = match.groups()
    scale = 1024 ** _SIZE_POWER[(unit or "").lower()]
    return int(number) * scale if number.isdigit() else int(float(number) * scale)


def parse_duration(text: str) -> float:
    """Returns the seconds that `text` such as `300ms`, `5s` or `1m30s` means (Go's time.ParseDuration, not negative).

    Raises:
        ValueError: it is no duration.
    """
    text = text.strip()
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        message = f"{text!r} is not a duration such as 300ms, 5s or 1m30s"
        raise ValueError(message)
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in re.findall(_DURATION_PART, text))


def format_size(size: int) -> str:
    """Writes bytes the shortest way that `parse_size` reads back to the same number."""
    for unit in ("PB", "TB", "GB", "MB", "KB"):
        scale = 1024 ** _SIZE_POWER[unit[0].lower()]
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return f"{size}B"


def format_duration(seconds: float) -> str:
    """Writes seconds as a Go duration, to the nanosecond."""
    nanoseconds = round(seconds * 1e9)
    for unit, scale in (("ms", 10**6), ("us", 10**3), ("ns", 1)):
        if 0 < nanoseconds < scale * 1000 and nanoseconds % scale == 0:
            return f"{nanoseconds // scale}{unit}"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    if rest or not (hours or minutes):
        parts.append(f"{rest / 1e9:.9f}".rstrip("0").rstrip(".") + "s")
    return "".join(parts)
