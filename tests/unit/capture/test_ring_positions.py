# SPDX-License-Identifier: Apache-2.0
"""Ring positions are shared with a running kernel: neither side may ever see half of a store."""

from __future__ import annotations

import mmap
import os

from rover_plugin.capture.ring import shared_position

# Every byte differs, so any mixture is a third value.
VALUES = (0x00FF_00FF_00FF_00FF, 0xFF00_FF00_FF00_FF00)
LOADS = 1_000_000


def test_a_store_in_another_process_is_seen_whole_or_not_at_all() -> None:
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    position = shared_position(memory)
    position[0] = VALUES[0]
    writer = os.fork()
    if writer == 0:
        while memory[mmap.PAGESIZE] == 0:
            for value in VALUES:
                position[0] = value
        os._exit(0)
    seen = {position[0] for _ in range(LOADS)}
    memory[mmap.PAGESIZE] = 1
    assert os.waitpid(writer, 0)[1] == 0
    assert seen <= set(VALUES)
