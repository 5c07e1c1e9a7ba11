# SPDX-License-Identifier: Apache-2.0
"""Turns what a layer says about a key into the key's type, and holds it against the key's limits."""

from __future__ import annotations

import mmap
import re
from typing import TYPE_CHECKING, Any

from rover_plugin.settings.units import format_duration, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.settings.schema import Key

Value = str | bool | int | float | tuple[str, ...]

_TRUE = frozenset({"true", "t", "1", "yes", "on"})
_MOST_PORT = 65535
_FALSE = frozenset({"false", "f", "0", "no", "off"})


def convert(key: Key, raw: Any) -> Value:
    """Returns `raw`, from TOML or a variable's text, as the type of `key`.

    Text stays str, flags become bool, integers and sizes (bytes) int, durations (seconds) float, lists tuples of str.

    Raises:
        ValueError: it is of another type or beyond a limit; the message is for the user.
    """
    if key.type in _NUMBERS:
        number = _NUMBERS[key.type](key, raw)
        _check_bounds(key, number)
        return number
    if key.type in _LISTS:
        items = tuple(_word(key, item) for item in _LISTS[key.type](key, raw))
        if len(items) < int(key.limits.get("min", "0")):
            message = "needs at least one item"
            raise ValueError(message)
        return items
    return _flag(raw) if key.type == "flag" else _word(key, _text(raw))


def show(key: Key, value: Value) -> str:
    """Writes a converted value the way a variable would hold it."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if key.type == "size":
        return format_size(int(value))
    if key.type == "duration":
        return format_duration(float(value))
    return str(value)


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        message = f"{_toml(raw)} is not a text"
        raise ValueError(message)  # noqa: TRY004 - one exception for every kind of bad value
    return raw


def _flag(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = raw.strip().lower() if isinstance(raw, str) else ""
    if word not in _TRUE | _FALSE:
        message = f"{_toml(raw)} is neither true nor false"
        raise ValueError(message)
    return word in _TRUE


def _integer(_: Key, raw: Any) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and re.fullmatch(r"\s*[+-]?\d+\s*", raw, re.ASCII):
        return int(raw)
    message = f"{_toml(raw)} is not an integer"
    raise ValueError(message)


def _size(_: Key, raw: Any) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
        return raw
    return parse_size(raw if isinstance(raw, str) else _toml(raw))


def _duration(key: Key, raw: Any) -> float:
    text = raw if isinstance(raw, str) else _toml(raw)
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) and key.unit:
        text += key.unit
    return parse_duration(text)


def _list(_: Key, raw: Any) -> tuple[str, ...]:
    items = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        message = f"{_toml(raw)} is neither an array of texts nor a text with commas"
        raise ValueError(message)
    return tuple(item.strip() for item in items if item.strip())


def _service_rules(key: Key, raw: Any) -> tuple[str, ...]:
    """Brings `{ rule, service }` tables to the form of the other items, `rule -> service`."""
    if not isinstance(raw, list):
        return _list(key, raw)
    items = []
    for item in raw:
        if isinstance(item, dict):
            if item.keys() != {"rule", "service"}:
                message = f"{_toml(item)} is not of the form {{ rule = …, service = … }}"
                raise ValueError(message)
            items.append(f"{item['rule']} -> {item['service']}")
        else:
            items.append(item)
    return _list(key, items)


_NUMBERS: dict[str, Callable[[Key, Any], int | float]] = {"integer": _integer, "size": _size, "duration": _duration}
_LISTS: dict[str, Callable[[Key, Any], tuple[str, ...]]] = {"list": _list, "service_rules": _service_rules}


def _word(key: Key, word: str) -> str:
    """Returns `word` as the key's choices spell it, or raises ValueError if choices or pattern do not allow it."""
    if choices := key.limits.get("choices", ""):
        spelt = {choice.casefold(): choice for choice in choices.split(",")}
        if word.casefold() not in spelt:
            message = f"{word!r} is not one of {', '.join(choices.split(','))}"
            raise ValueError(message)
        return spelt[word.casefold()]
    pattern = key.limits.get("pattern", "")
    if word and pattern and not re.search(pattern, word):
        message = f"{word!r} is not of the form {pattern}"
        raise ValueError(message)
    _check_port(key, word)
    return word


def _check_port(key: Key, word: str) -> None:
    least = key.limits.get("port", "")
    port = word.rpartition(":")[2]
    if least and port.isdecimal() and not int(least) <= int(port) <= _MOST_PORT:
        message = f"{word!r} has a port that is not {least}-{_MOST_PORT}"
        raise ValueError(message)


def _check_bounds(key: Key, value: float) -> None:
    for limit, broken, words in (
        ("min", float.__lt__, "less than"),
        ("max", float.__gt__, "more than"),
        ("above", float.__le__, "not more than"),
    ):
        bound = key.limits.get(limit)
        if bound is not None and broken(float(value), float(_bound(key, bound))):
            message = f"{show(key, value)} is {words} {show(key, _bound(key, bound))}"
            raise ValueError(message)


def _bound(key: Key, text: str) -> int | float:
    return mmap.PAGESIZE if text == "page" else _NUMBERS[key.type](key, text)


def _toml(raw: Any) -> str:
    """Writes a raw value roughly as the user did."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    return repr(raw)
