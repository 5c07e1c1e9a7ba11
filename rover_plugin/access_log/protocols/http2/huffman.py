# SPDX-License-Identifier: Apache-2.0
"""Huffman coding of HPACK strings (RFC 7541 §5.2, appendix B), decoded a byte at a time.

The code is canonical, so the code lengths alone define it. A decoder state is an inner node of the code tree at a
byte boundary; each state has one row of 256 pairs (bytes finished by this byte, row of the next state). Building all
65 536 pairs takes 50 ms, and header text visits a few dozen states, so a row is filled when it is first entered.
"""

from __future__ import annotations

import functools
from typing import Any

EOS = 256

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


def decode(data: bytes) -> bytes | None:
    """The string that was Huffman-coded; None where the coding is wrong.

    Wrong is what §5.2 calls a decoding error: EOS inside, padding over 7 bits or other than ones.
    """
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
