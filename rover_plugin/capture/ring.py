# SPDX-License-Identifier: Apache-2.0
"""Reads a BPF ring buffer by mapping it: no callback, no copy but the record itself.

Layout (kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst): one page with the consumer position that we write, one
with the producer position, then the data twice in a row, so that no record is ever split for the reader. Each record
has an 8-byte header: length with two flag bits, page offset; records are 8-byte aligned.

Positions are shared with a kernel that runs meanwhile, so they must be read and written in one piece: a memoryview of
format Q does that; `struct` with a byte order goes byte by byte, and the kernel then sees a ring that is full.
"""

from __future__ import annotations

import mmap
import select
from typing import TYPE_CHECKING

from rover_plugin.capture.bpf import Map

if TYPE_CHECKING:
    from collections.abc import Callable

_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER_SIZE = 8


def shared_position(memory: mmap.mmap) -> memoryview:
    """The 64-bit position at the beginning of a mapping, as item 0; loads and stores of it are single instructions."""
    return memoryview(memory)[:8].cast("Q")


class RingReader:
    """One reader of one ring; a ring has exactly one reader.

    Attributes:
        descriptor: of the map.
        size: bytes of data the ring holds.
        most_pending: bytes that waited at most, seen at the beginning of a `read`.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = Map(descriptor).max_entries
        self.most_pending = 0
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(descriptor, page + 2 * self.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed = shared_position(self._consumer)
        self._produced = shared_position(self._producer)
        self._data = memoryview(self._producer)[page:]
        self._lengths = self._data.cast("I")
        self._mask = self.size - 1
        # The kernel gets space back in such pieces, not only after a whole batch: a burst may be what fills the ring.
        self._stride = self.size // 16
        self._poll = select.epoll()
        # Edge-triggered: data that is merely there wakes nobody, only a kernel side that asks for it.
        self._poll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._position: int = self._consumed[0]

    def also_wait_for(self, descriptor: int) -> None:
        """Lets `wait` return when this descriptor becomes readable, too."""
        self._poll.register(descriptor, select.EPOLLIN)

    def also_wait_for_ring(self, other: RingReader) -> None:
        """Lets `wait` return when the kernel wakes the other ring's reader, too."""
        self._poll.register(other.descriptor, select.EPOLLIN | select.EPOLLET)

    def wait(self, timeout_s: float) -> None:
        """Returns when the kernel wakes the reader or `timeout_s` seconds have passed, whichever is first."""
        self._poll.poll(timeout_s)

    def pending(self) -> int:
        """Bytes that wait to be read, with their record headers."""
        return self._produced[0] - self._position

    def peek(self, look: Callable[[memoryview, int, int], None]) -> None:
        """Gives the oldest waiting record to `look(data, start, end)`, if there is one, and leaves it where it is."""
        if self._position < self._produced[0]:
            at = self._position & self._mask
            length = self._lengths[at >> 2]
            if not length & (_BUSY | _DISCARDED):
                look(self._data, at + _HEADER_SIZE, at + _HEADER_SIZE + length)

    def produced(self) -> int:
        """Where the next record will be, for `read`."""
        return int(self._produced[0])

    def read(
        self, handle: Callable[[memoryview, int, int], None], limit: int = 1 << 30, until: int | None = None
    ) -> int:
        """Gives each waiting record to `handle(data, start, end)`, oldest first, and frees their space as it goes.

        `data` is the ring's memory and valid only during the call. Stops after `limit` records, at one that is still
        being written, or at what `produced` gave as `until`. Returns the number of records.
        """
        data, lengths, mask = self._data, self._lengths, self._mask
        position = self._position
        free_at = position + self._stride
        produced = self._produced[0] if until is None else until
        self.most_pending = max(self.most_pending, produced - position)
        taken = 0
        while position < produced and taken < limit:
            at = position & mask
            length = lengths[at >> 2]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                start = at + _HEADER_SIZE
                handle(data, start, start + size)
                taken += 1
            position += (size + _HEADER_SIZE + 7) & ~7
            if position > free_at:
                self._consumed[0] = position
                free_at = position + self._stride
        if position != self._position:
            self._position = position
            self._consumed[0] = position
        return taken

    def close(self) -> None:
        """Unmaps the ring; the descriptor stays the caller's."""
        self._poll.close()
        for view in (self._lengths, self._data, self._produced, self._consumed):
            view.release()
        self._producer.close()
        self._consumer.close()
