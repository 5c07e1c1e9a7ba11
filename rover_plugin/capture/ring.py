# SPDX-License-Identifier: Apache-2.0
"""Reads a BPF ring buffer by mapping it: no callback, no copy but the record itself.

Layout (kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst): one page with the consumer position that we write, one
with the producer position, then the data twice in a row, so that no record is ever split for the reader. Each record
has an 8-byte header: length with two flag bits, page offset; records are 8-byte aligned.
x86-64 and arm64 with 64-bit aligned positions: the kernel stores them with release semantics.
"""

from __future__ import annotations

import mmap
import select
import struct
from typing import TYPE_CHECKING

from rover_plugin.capture.bpf import Map

if TYPE_CHECKING:
    from collections.abc import Callable

_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER_SIZE = 8


class RingReader:
    """One reader of one ring; a ring has exactly one reader.

    Attributes:
        size: bytes of data the ring holds.
    """

    def __init__(self, descriptor: int) -> None:
        self.size = Map(descriptor).max_entries
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(descriptor, page + 2 * self.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._data = memoryview(self._producer)[page:]
        self._mask = self.size - 1
        self._poll = select.epoll()
        # Edge-triggered: data that is merely there wakes nobody, only a kernel side that asks for it.
        self._poll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._position: int = _POSITION.unpack_from(self._consumer)[0]

    def also_wait_for(self, descriptor: int) -> None:
        """Lets `wait` return when this descriptor becomes readable, too."""
        self._poll.register(descriptor, select.EPOLLIN)

    def wait(self, timeout_s: float) -> None:
        """Returns when the kernel wakes the reader or `timeout_s` seconds have passed, whichever is first."""
        self._poll.poll(timeout_s)

    def pending(self) -> int:
        """Bytes that wait to be read, with their record headers."""
        produced: int = _POSITION.unpack_from(self._producer)[0]
        return produced - self._position

    def read(self, handle: Callable[[memoryview, int, int], None], limit: int = 1 << 30) -> int:
        """Gives each waiting record to `handle(data, start, end)`, oldest first, then frees their space.

        `data` is the ring's memory and valid only during the call. Stops after `limit` records, or at one that is
        still being written. Returns the number of records.
        """
        data, mask = self._data, self._mask
        position = self._position
        (produced,) = _POSITION.unpack_from(self._producer)
        taken = 0
        while position < produced and taken < limit:
            at = position & mask
            (length,) = _LENGTH.unpack_from(data, at)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                start = at + _HEADER_SIZE
                handle(data, start, start + size)
                taken += 1
            position += (size + _HEADER_SIZE + 7) & ~7
        if position != self._position:
            self._position = position
            _POSITION.pack_into(self._consumer, 0, position)
        return taken

    def close(self) -> None:
        """Unmaps the ring; the descriptor stays the caller's."""
        self._poll.close()
        self._data.release()
        self._producer.close()
        self._consumer.close()
