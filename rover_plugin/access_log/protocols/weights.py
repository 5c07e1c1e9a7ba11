# SPDX-License-Identifier: Apache-2.0
"""What things cost in memory: the account of a shard (`access_log.connections.max_bytes`) is drawn up in these.

Measured with tracemalloc on CPython 3.11, averages of 5000, with numbers of the size that times and positions have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Exchange

CONNECTION_BYTES: Final = 4000  # with its conversation and an HTTP/1 analyser (1320 + 2584)
CALL_BYTES: Final = 272
EXCHANGE_BYTES: Final = 440
STREAM_BYTES: Final = 134
SEGMENT_BYTES: Final = 160
CLOSED_BYTES: Final = 100
BLOCK_BYTES: Final = 1024
_SHORT: Final = 128


def exchange_text_bytes(exchange: Exchange) -> int:
    """Memory of an exchange's texts, as far as they are long. Texts that several share count for each."""
    texts = 0
    for text in (exchange.path, exchange.host):
        if text is not None and len(text) > _SHORT:
            # Characters take one byte each, two or four if any of them needs that (PEP 393).
            texts += len(text) if text.isascii() else 4 * len(text)
    return texts
