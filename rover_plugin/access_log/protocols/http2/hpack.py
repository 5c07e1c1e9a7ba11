# SPDX-License-Identifier: Apache-2.0
"""HPACK for an observer (RFC 7541): exact from the first block, or exact about everything since it began to listen.

Rule 1: dynamic indices count from the newest entry, so a reference to one of the last n insertions is exact for
whoever saw these n insertions, whatever was inserted or evicted before. A decoder that joins late keeps a window of
what it saw; a reference beyond it is *unknown*: counted, never guessed. The representation can still be skipped,
because it says its own length.

Rule 2: entries leave the table oldest first. As soon as what was seen must have filled the table, nothing unseen is
left in it and the window is the table (`complete`). This needs the table's limit, which is known from the start of
the connection or from the next dynamic table size update.

Rule 3: after a lost or malformed block nobody knows what was inserted; the window starts again, empty.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from rover_plugin.access_log.protocols import texts
from rover_plugin.access_log.protocols.http2 import huffman
from rover_plugin.access_log.protocols.trace_context import HEADER_NAMES
from rover_plugin.access_log.protocols.weights import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_TABLE_SIZE: Final = 4096
LARGEST_EXACT_TABLE: Final = 1 << 20  # a limit above is kept to this size, and what falls out is unknown
UNKNOWN_LIMIT_WINDOW: Final = 64 * 1024  # bytes of window kept while the table's limit is unknown
ENTRY_OVERHEAD: Final = 32  # RFC 7541 §4.1
LARGEST_INDEX: Final = 61 + LARGEST_EXACT_TABLE // ENTRY_OVERHEAD
INTEGER_LIMIT: Final = 1 << 32
CACHED_BLOCKS: Final = 128
LONGEST_CACHED_BLOCK: Final = 128  # blocks of references alone have about a byte a field
LONGEST_TRACE_HEADER: Final = 2048


def _as_host(value: bytes) -> str:
    return texts.text(value, texts.MAX_HOST)


def _as_message(value: bytes) -> str:
    return texts.text(value, texts.MAX_MESSAGE)


def _as_method(value: bytes) -> str:
    return texts.method(value) or ""


_STATUS: Final = {str(code).encode(): code for code in range(100, 600)}


def _as_number(value: bytes) -> int:
    return int(value) if value.isdigit() and len(value) <= texts.MAX_DIGITS else -1


def _as_it_is(value: bytes) -> bytes:
    return value if len(value) <= LONGEST_TRACE_HEADER else b""


Kept = str | bytes | int | None
"""A text; of trace headers the bytes that came; a number, -1 where the value is none; None for no status there is."""

# How the values of fields that the log needs are read; every other field only takes its room in the table.
READERS: Final[dict[bytes, Callable[[bytes], Kept]]] = {
    b":method": _as_method,
    b":path": texts.path,
    b":authority": _as_host,
    b":status": _STATUS.get,
    b"host": _as_host,
    b"content-length": _as_number,
    b"grpc-status": _as_number,
    b"grpc-message": _as_message,
    **dict.fromkeys(HEADER_NAMES, _as_it_is),
}
WANTED: Final = {name: name for name in READERS}

# Keys of fields whose name is unknown: the value may still have the shape of a trace header.
UNNAMED: Final = b""
TRACEPARENT_BY_SHAPE: Final = b"traceparent by shape"
SW8_BY_SHAPE: Final = b"sw8 by shape"
_TRACEPARENT_SHAPE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SW8_SHAPE = re.compile(rb"[01](?:-[A-Za-z0-9+/]+={0,2}){2}-\d+(?:-[A-Za-z0-9+/]*={0,2}){4}")

# (key, name, text, size): key is what the text goes by in a block's fields, None for a field nobody wants, whose text
# is not kept; name is None where it is unknown, and counts as empty in the size (§4.1). The text is decoded once, for
# all blocks that refer to it.
Entry = tuple[bytes | None, bytes | None, Kept, int]

# RFC 7541 appendix A, entries 1 to 61: "name value" or "name".
_STATIC_TABLE = b"""
:authority; :method GET; :method POST; :path /; :path /index.html; :scheme http; :scheme https; :status 200;
:status 204; :status 206; :status 304; :status 400; :status 404; :status 500; accept-charset;
accept-encoding gzip, deflate; accept-language; accept-ranges; accept; access-control-allow-origin; age; allow;
authorization; cache-control; content-disposition; content-encoding; content-language; content-length;
content-location; content-range; content-type; cookie; date; etag; expect; expires; from; host; if-match;
if-modified-since; if-none-match; if-range; if-unmodified-since; last-modified; link; location; max-forwards;
proxy-authenticate; proxy-authorization; range; referer; refresh; retry-after; server; set-cookie;
strict-transport-security; transfer-encoding; user-agent; vary; via; www-authenticate
"""
STATIC: Final[tuple[Entry, ...]] = (
    (None, None, "", 0),
    *(
        (WANTED.get(name), name, READERS[name](value) if name in READERS else "", 0)
        for name, _, value in (f.strip().partition(b" ") for f in _STATIC_TABLE.split(b";"))
    ),
)


Fields = dict[bytes, Any]
Head = TypeVar("Head")


def read_integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """An integer whose prefix was all ones (§5.1), and the offset behind it.

    Raises:
        IndexError: the block ends inside it.
        OverflowError: more than 32 bits.
    """
    value, shift = prefix, 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 28:
            raise OverflowError
    if value >= INTEGER_LIMIT:
        raise OverflowError
    return value, at


def _key_by_shape(value: bytes) -> bytes:
    if len(value) == 55 and _TRACEPARENT_SHAPE.fullmatch(value):
        return TRACEPARENT_BY_SHAPE
    if len(value) > 40 and _SW8_SHAPE.fullmatch(value):
        return SW8_BY_SHAPE
    return UNNAMED


class HeaderDecoder(Generic[Head]):
    """Decoder of one direction's header blocks.

    Args:
        interpret: makes of a block's wanted fields what the log needs; called once for blocks that repeat exactly.
        from_start: True if the first block it will see is the connection's first.

    Attributes:
        complete: every live entry of the encoder's table is in `entries`.
        limit: maximum size of the table as the encoder last said; None while unknown.
        allowed: largest limit the encoder may choose, by the other side's SETTINGS; None while unknown.
        entries: the dynamic table as far as seen, oldest first.
        size: bytes of `entries`.
    """

    __slots__ = (
        "_blocks",
        "_interpret",
        "_unnamed",
        "allowed",
        "complete",
        "entries",
        "limit",
        "room",
        "size",
    )

    def __init__(self, interpret: Callable[[Fields], Head], *, from_start: bool) -> None:
        self._interpret = interpret
        self.complete = from_start
        self.limit: int | None = DEFAULT_TABLE_SIZE if from_start else None
        self.allowed: int | None = DEFAULT_TABLE_SIZE if from_start else None
        self.room = DEFAULT_TABLE_SIZE if from_start else UNKNOWN_LIMIT_WINDOW
        self.entries: deque[Entry] = deque()
        self.size = 0
        self._unnamed = False  # a field without a name was seen, and may be in the table
        self._blocks: dict[bytes, tuple[Head, Fields, int, str]] = {}

    def held_bytes(self) -> int:
        """Memory of the table and of the blocks that are remembered, roughly."""
        # An entry's texts are kept twice, as bytes and decoded; a block's fields are its entries'.
        return 2 * self.size + len(self._blocks) * BLOCK_BYTES

    def restart(self) -> None:
        """Forgets the table: something was lost, and it may have changed anything, the limits included."""
        self.complete = False
        self.limit = self.allowed = None
        self.room = UNKNOWN_LIMIT_WINDOW
        self.entries.clear()
        self.size = 0
        self._unnamed = False
        self._blocks.clear()

    def decode(self, block: bytes) -> tuple[Head, Fields, int, str]:
        """Decodes one whole header block and applies it to the table. Never raises.

        Returns:
            What `interpret` made of the wanted fields; these fields (of a repeated block the same dict again, so read
            only); how many fields are unknown, because they refer to what was not seen or follow an error; why
            decoding stopped, or an empty string. A malformed block gives the fields before the error and restarts the
            window.
        """
        cached = self._blocks.get(block)
        if cached is not None:
            return cached
        fields: Fields = {}
        entries = self.entries
        unknown = 0
        error = ""
        indexed_only = True
        key: bytes | None
        name: bytes | None
        at = updated = 0  # size updates stand at the beginning only (§4.2)
        end = len(block)
        try:
            while at < end:
                byte = block[at]
                at += 1
                if byte >= 0x80:  # indexed field (§6.1)
                    index = byte - 0x80
                    if index == 0x7F:
                        index, at = read_integer(block, at, 0x7F)
                    if index > 61:
                        try:
                            entry = entries[61 - index]
                        except IndexError:
                            if self.complete or index > LARGEST_INDEX:
                                error = "hpack_index"
                                break
                            unknown += 1
                            continue
                    elif index:
                        entry = STATIC[index]
                    else:
                        error = "hpack_index"
                        break
                    if (key := entry[0]) is not None:
                        fields[key] = entry[2]
                    continue
                indexed_only = False
                if byte >= 0x40:  # literal with incremental indexing (§6.2.1)
                    insert = True
                    index = byte & 0x3F
                    if index == 0x3F:
                        index, at = read_integer(block, at, 0x3F)
                elif byte < 0x20:  # literal without indexing, or never indexed (§6.2.2, §6.2.3)
                    insert = False
                    index = byte & 0x0F
                    if index == 0x0F:
                        index, at = read_integer(block, at, 0x0F)
                else:  # dynamic table size update (§6.3)
                    index = byte & 0x1F
                    comes_first = at - 1 == updated
                    if index == 0x1F:
                        index, at = read_integer(block, at, 0x1F)
                    if not comes_first or (self.allowed is not None and index > self.allowed):
                        error = "hpack_table_size"
                        break
                    updated = at
                    self._resize(index)
                    continue
                if index > 61:
                    try:
                        key, name, _, _ = entries[61 - index]
                    except IndexError:
                        if self.complete or index > LARGEST_INDEX:
                            error = "hpack_index"
                            break
                        key = name = None
                elif index:
                    key, name, _, _ = STATIC[index]
                else:
                    byte = block[at]
                    at += 1
                    length = byte & 0x7F
                    if length == 0x7F:
                        length, at = read_integer(block, at, 0x7F)
                    stop = at + length
                    if stop > end:
                        error = "hpack_truncated"
                        break
                    name = huffman.decode(block[at:stop]) if byte >= 0x80 else block[at:stop]
                    if name is None:
                        error = "hpack_huffman"
                        break
                    at = stop
                    key = WANTED.get(name)
                byte = block[at]
                at += 1
                length = byte & 0x7F
                if length == 0x7F:
                    length, at = read_integer(block, at, 0x7F)
                stop = at + length
                if stop > end:
                    error = "hpack_truncated"
                    break
                if insert or key is not None or name is None:
                    value = huffman.decode(block[at:stop]) if byte >= 0x80 else block[at:stop]
                    if value is None:
                        error = "hpack_huffman"
                        break
                    if name is None:
                        key = _key_by_shape(value)
                        self._unnamed = True
                    text: Kept = ""
                    if key is not None:
                        fields[key] = text = READERS[key](value) if name is not None else _as_it_is(value)
                    if insert:
                        size = len(value) + ENTRY_OVERHEAD
                        if name is not None:
                            size += len(name)
                        entries.append((key, name, text, size))
                        self.size += size
                        if self.size > self.room:
                            self._evict()
                        if self._blocks:
                            self._blocks.clear()
                at = stop
        except IndexError:
            error = "hpack_truncated"
        except OverflowError:
            error = "hpack_integer"
        if self._unnamed:
            unknown += sum(key in fields for key in (UNNAMED, TRACEPARENT_BY_SHAPE, SW8_BY_SHAPE))
            fields.pop(UNNAMED, None)
        if error:
            self.restart()
            return self._interpret(fields), fields, unknown + 1, error
        result = self._interpret(fields), fields, unknown, ""
        if indexed_only and end <= LONGEST_CACHED_BLOCK and len(self._blocks) < CACHED_BLOCKS:
            self._blocks[block] = result
        return result

    def _resize(self, limit: int) -> None:
        """Applies the encoder's new limit (§6.3)."""
        self.limit = limit
        self.room = min(limit, LARGEST_EXACT_TABLE)
        if self.size > self.room:
            self._evict()
        elif not limit:
            self.complete = True
        self._blocks.clear()

    def _evict(self) -> None:
        """Drops the oldest entries until the rest fits (§4.4)."""
        entries = self.entries
        size = self.size
        room = self.room
        while size > room:
            size -= entries.popleft()[3]
        self.size = size
        # Sizes here are never too large, so what was dropped is surely gone, and all that is older with it.
        self.complete = self.limit == room
