# SPDX-License-Identifier: Apache-2.0
"""Huffman coding of HPACK strings (RFC 7541 §5.2, appendix B), decoded by zlib or a byte at a time.

The code is canonical, so the code lengths alone define it.

DEFLATE's codes are canonical, too (RFC 1951 §3.2.2), of at most 15 bits. HPACK's codes up to that length leave one of
15 bits free: all ones, with which all the longer ones begin. With this one for DEFLATE's end of block, HPACK strings
are the content of a DEFLATE block but for the order of the bits in each byte, so zlib decodes them, in C. Malformed
strings, those with symbols of longer codes (rare in header fields), and short ones, for which it is not worth while,
are decoded a byte at a time.

There, a decoder state is an inner node of the code tree at a byte boundary; each state has one row of 256 pairs (bytes
finished by this byte, row of the next state). Building all 65 536 pairs takes 50 ms, and header text visits a few dozen
states, so a row is filled when it is first entered.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any, Final

EOS = 256
WORTH_ZLIB: Final = 12  # octets

# Bits of the code of symbol 0, 1, … 255 and EOS.
CODE_LENGTHS = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
)  # fmt: skip

# A row is a list of 256 pairs, and one more whose row says whether the string may end here (the root) or not (_DEAD).
# The type is recursive, which the annotations cannot say.
Row = list[tuple[bytes, Any]]


def code_table() -> list[tuple[int, int]]:
    """The (code, length in bits) of every symbol: codes count up through the symbols sorted by length."""
    table = [(0, 0)] * len(CODE_LENGTHS)
    code = previous = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(CODE_LENGTHS)):
        code <<= length - previous
        previous = length
        table[symbol] = (code, length)
        code += 1
    return table


def _code_tree() -> list[list[int]]:
    """Inner nodes: [child for bit 0, child for bit 1]; a child ≥ 0 is a node, a child < 0 is symbol `-1 - child`."""
    nodes = [[0, 0]]
    for symbol, (code, length) in enumerate(code_table()):
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes.append([0, 0])
                nodes[node][bit] = len(nodes) - 1
            node = nodes[node][bit]
        nodes[node][code & 1] = -1 - symbol
    return nodes


_TREE = _code_tree()
_ROWS: list[Row] = [[] for _ in _TREE]
_ROOT = _ROWS[0]
_DEAD: Row = []
_DEAD.extend([(b"", _DEAD)] * 257)
_NODE_OF_ROW = {id(row): node for node, row in enumerate(_ROWS)}


def _padding_nodes() -> set[int]:
    """Nodes where a string may end: the root, or up to 7 one-bits after it (§5.2)."""
    node, nodes = 0, {0}
    for _ in range(7):
        node = _TREE[node][1]
        nodes.add(node)
    return nodes


_PADDING_NODES = _padding_nodes()


@functools.cache
def _after_nibble(start: int, nibble: int) -> tuple[bytes, int]:
    """(bytes finished, next node) after four bits from node `start`; node -1 is an error: EOS was inside."""
    node, text = start, b""
    for shift in (3, 2, 1, 0):
        node = _TREE[node][nibble >> shift & 1]
        if node == -1 - EOS:
            return b"", -1
        if node < 0:
            text += bytes((-1 - node,))
            node = 0
    return text, node


def _fill(row: Row) -> None:
    """Computes the row of one state, half a byte at a time: the second halves are shared by the rows."""
    start = _NODE_OF_ROW[id(row)]
    for high in range(16):
        text, middle = _after_nibble(start, high)
        for low in range(16):
            more, end = _after_nibble(middle, low) if middle >= 0 else (b"", -1)
            row.append((text + more, _ROWS[end]) if end >= 0 else (b"", _DEAD))
    row.append((b"", _ROOT if start in _PADDING_NODES else _DEAD))


_DEFLATED_LENGTHS = (0, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)
# The order in which a block says the lengths of the codes for code lengths (RFC 1951 §3.2.7).
_LENGTHS_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
# Three bits for these and four for the other six make a complete code, and a header that ends with a byte.
_THREE_BITS = frozenset((0, 5, 6, 7, 15))


def _block_header() -> bytes:
    """The beginning of a DEFLATE block with dynamic Huffman codes (RFC 1951 §3.2.7): HPACK's."""
    lengths = {length: 3 if length in _THREE_BITS else 4 for length in _DEFLATED_LENGTHS}
    codes: dict[int, str] = {}
    code = previous = 0
    for bits, length in sorted((bits, length) for length, bits in lengths.items()):
        code <<= bits - previous
        previous = bits
        codes[length] = f"{code:0{bits}b}"
        code += 1
    literals = [length if length <= 15 else 0 for length in CODE_LENGTHS[:EOS]]
    # Bits: last block (1), dynamic codes (2), 257 literals (5), 1 distance (5), 19 lengths (4). Numbers are written
    # from their lowest bit on.
    header = "10100000000001111"
    header += "".join(f"{lengths.get(length, 0):03b}"[::-1] for length in _LENGTHS_ORDER)
    header += "".join(codes[length] for length in (*literals, 15, 0))
    return int(header[::-1], 2).to_bytes(len(header) // 8, "little")


# Two octets that bring the decoder back to the beginning of a code from every padding (0 to 7 ones, §5.2), and what
# comes out for each. Nothing else does, so an end of these says that the string is well formed.
_TERMINATOR: Final = b"\x1f\xfa"
_ENDINGS: Final = (b"a'", b"b'", b"H'", b"V#", b"w@", b"&@", b"X9,", b"!@")
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_TERMINATOR_REVERSED = _TERMINATOR.translate(_BITS_REVERSED)

_new_decompressor = zlib.decompressobj(-9)  # raw, with the smallest window
_new_decompressor.decompress(_block_header())
# Decompressors that wait for the next string, one for each thread that was here at the same time.
_idle: list[Any] = []


def decode(data: bytes) -> bytes | None:
    """The string that was Huffman-coded; None where the coding is wrong.

    Wrong is what §5.2 calls a decoding error: EOS inside, padding over 7 bits or other than ones.
    """
    size = len(data)
    if size >= WORTH_ZLIB:
        try:
            decompressor = _idle.pop()
        except IndexError:
            decompressor = _new_decompressor.copy()
        # Codes have five bits or more. With a limit, zlib makes no more room than that.
        text: bytes = decompressor.decompress(data.translate(_BITS_REVERSED) + _TERMINATOR_REVERSED, 2 * size + 4)
        if text.endswith(_ENDINGS) and not decompressor.eof:
            _idle.append(decompressor)
            return text[:-3] if text.endswith(b"X9,") else text[:-2]
        # The decompressor is inside a code, or past the block's end: of no use any more.
    return decode_bytewise(data)


def decode_bytewise(data: bytes) -> bytes | None:
    """`decode` without zlib."""
    while True:
        parts: list[bytes] = []
        add = parts.append
        row = _ROOT
        try:
            for byte in data:
                text, row = row[byte]
                add(text)
            if row[256][1] is _DEAD:
                return None
        except IndexError:
            _fill(row)
        else:
            return b"".join(parts)
