# SPDX-License-Identifier: Apache-2.0
"""Redacts HPACK header blocks (RFC 7541) without changing their length, their representations or any table's size.

An entry's size counts the decoded string (§4.1). So the filler of a Huffman-coded string has as many octets *and*
decodes to as many characters as what it hides; else indices would mean other entries from there on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rover_plugin.access_log.protocols.http2 import huffman
from rover_plugin.access_log.protocols.http2.hpack import STATIC, read_integer
from rover_plugin.access_log.redaction.known import NAMES, is_shown

if TYPE_CHECKING:
    from rover_plugin.access_log.protocols.http2.hpack import HeaderDecoder

PATH_MARKS: Final = b"/?"  # where segments and the query begin

_CODES = huffman.code_table()
# For each length of code the first character that has it: a for 5 bits, a blank for 6…
_OF_LENGTH: Final = {
    length: symbol for symbol, (_, length) in reversed(list(enumerate(_CODES))) if symbol < huffman.EOS
}
_LETTERS: Final = {5: ord("a"), 6: ord("b"), 7: ord("j"), 8: ord("X")}


def redact_block(block: bytes, decoder: HeaderDecoder[Any]) -> bytes | None:
    """A whole header block without its values, and applied to `decoder`; `None` if it is malformed."""
    result = bytearray(block)
    at, end = 0, len(block)
    try:
        while at < end:
            start = at
            byte = block[at]
            prefix = 0x7F if byte >= 0x80 else 0x3F if byte >= 0x40 else 0x1F if byte >= 0x20 else 0x0F
            index, at = _integer(block, at, prefix)
            if byte < 0x20 or 0x40 <= byte < 0x80:  # a literal (§6.2)
                if index:
                    name = _name(decoder, index)
                else:
                    begin, at, coded = _string(block, at)
                    name = huffman.decode(block[begin:at]) if coded else block[begin:at]
                    if name is None:
                        return None
                    if name not in NAMES:
                        result[begin:at] = _filler(block[begin:at], coded=coded)
                begin, at, coded = _string(block, at)
                value = huffman.decode(block[begin:at]) if coded else block[begin:at]
                if name is None or value is None or not is_shown(name, value):
                    shown = PATH_MARKS if name == b":path" else b""
                    result[begin:at] = _filler(block[begin:at], coded=coded, shown=shown)
            if at > end:
                return None
            if byte < 0x80 and decoder.decode(bytes(result[start:at]))[3]:
                return None
    except (IndexError, OverflowError, ValueError):
        decoder.restart()
        return None
    return bytes(result)


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    value = block[at] & prefix
    return read_integer(block, at + 1, prefix) if value == prefix else (value, at + 1)


def _string(block: bytes, at: int) -> tuple[int, int, bool]:
    """Where a string literal's octets begin and end, and whether they are Huffman-coded (§5.2)."""
    coded = block[at] >= 0x80
    length, begin = _integer(block, at, 0x7F)
    if begin + length > len(block):
        raise IndexError
    return begin, begin + length, coded


def _name(decoder: HeaderDecoder[Any], index: int) -> bytes | None:
    if index <= 61:
        return STATIC[index][1]
    entries = decoder.entries
    return entries[61 - index][1] if index - 61 <= len(entries) else None


def _filler(octets: bytes, *, coded: bool, shown: bytes = b"") -> bytes:
    """Octets that hide `octets`, as many of them, but for the characters `shown`.

    Raises:
        ValueError: they are not Huffman-coded text.
    """
    if not coded:
        return bytes(byte if byte in shown else ord("x") for byte in octets)
    text = huffman.decode(octets)
    if text is None:
        raise ValueError
    hidden = [byte for byte in text if byte not in shown]
    count, size = len(hidden), len(octets)
    if not count:
        return octets
    bits, longer = divmod(8 * size - sum(_CODES[byte][1] for byte in text if byte in shown), count)
    if bits in _LETTERS and (bits + 1 in _LETTERS or not longer):
        # As long as codes of 5 to 8 bits can be: nothing but the two lengths shows.
        letters = [_LETTERS[bits]] * (count - longer) + [_LETTERS.get(bits + 1, 0)] * longer
    else:
        # Rare characters have longer codes; how many of each length shows, but not where.
        letters = [_OF_LENGTH[length] for length in sorted(_CODES[byte][1] for byte in hidden)]
    filler = iter(letters)
    return _encode([byte if byte in shown else next(filler) for byte in text], size)


def _encode(symbols: list[int], size: int) -> bytes:
    """Huffman-codes `symbols` into `size` octets, padded with ones."""
    value = used = 0
    for symbol in symbols:
        code, length = _CODES[symbol]
        value = value << length | code
        used += length
    padding = 8 * size - used
    return (value << padding | (1 << padding) - 1).to_bytes(size)
