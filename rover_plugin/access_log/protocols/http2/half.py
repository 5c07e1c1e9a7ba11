# SPDX-License-Identifier: Apache-2.0
"""One side of an HTTP/2 connection: where in its frames it is, the header block in progress, its HPACK decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rover_plugin.access_log.model import Completeness, Side
from rover_plugin.access_log.protocols.http2 import frames
from rover_plugin.access_log.protocols.http2.hpack import HeaderDecoder
from rover_plugin.access_log.protocols.http2.resync import FrameSeeker
from rover_plugin.access_log.protocols.http2.streams import Stream, read_request, read_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from rover_plugin.access_log.model import Call
    from rover_plugin.access_log.protocols.http2.hpack import Fields
    from rover_plugin.access_log.protocols.http2.streams import RequestHead, ResponseHead

LARGEST_SOUGHT_FRAME: Final = 1 << 20  # a larger frame is not believed while looking for a boundary
MOST_CREDIT: Final = 65_536


class Half:
    """Where one side's bytes are.

    Attributes:
        slow: the next call needs more than `_walk`.
        label: why fields may be unknown in this side's blocks.
        credit: bytes that have paid for searching on behind what turned out to be no frame.
        losses: how often bytes of which nobody knows what they were have gone by.
        max_head: largest sound value of a frame header's length and kind, read as one number.
        pending: calls with nothing but the first bytes of a frame header or of the preface.
        origin: the call with the first byte of the frame in `partial`.
        partial_stream: whose frame is in `partial`, once its header is whole.
        block: fragments of a header block whose END_HEADERS is still to come; `block_damaged` if it cannot be decoded.
        left_pad: how many of the `left` bytes are padding, at the end.
        rest: bytes that turned out not to be a frame, on their way to a seeker.
        settings_sent: header table sizes of SETTINGS frames not yet acknowledged (None in one without).
    """

    __slots__ = (
        "block", "block_damaged", "block_ends", "block_is_push", "block_stream", "credit", "decoder", "is_request",
        "label", "left", "left_ends", "left_pad", "left_stream", "losses", "max_head", "need", "origin", "partial",
        "partial_stream", "pending", "preface", "rest", "seeker", "settings_sent", "slow", "started",
    )  # fmt: skip

    def __init__(self, side: Side) -> None:
        self.is_request = side is Side.REQUEST
        self.label = Completeness.LATE_JOIN
        self.losses = 0
        self.credit = MOST_CREDIT
        self.started = False
        self.pending: list[Call] = []
        self.from_start()

    def from_start(self) -> None:
        """The next byte is the first of the connection."""
        interpret: Callable[[Fields], RequestHead | ResponseHead] = read_request if self.is_request else read_response
        self.decoder: HeaderDecoder[Any] = HeaderDecoder(interpret, from_start=True)
        self.seeker: FrameSeeker | None = None
        self.rest: bytes | None = None
        self.max_head = frames.DEFAULT_MAX_FRAME_SIZE << 8 | 0xFF
        self.settings_sent: list[int | None] = []
        self.preface = self.slow = self.is_request
        self._clear_position()
        self.need = len(frames.PREFACE) if self.preface else 0

    def seek(self, label: Completeness, *, start: int = 0) -> None:
        """The next byte may be anywhere but in front of offset `start`, and the header table anything."""
        self.decoder.restart()
        self.label = label
        self.max_head = frames.LARGEST_FRAME_SIZE << 8 | 0xFF
        self.settings_sent.clear()
        self.preface = False
        self.slow = True
        self._clear_position()
        self.seeker = FrameSeeker(LARGEST_SOUGHT_FRAME, from_client=self.is_request, start=start)

    def held_bytes(self) -> int:
        """Memory that is kept for this side, roughly."""
        held = len(self.partial) + (len(self.block) if self.block is not None else 0) + self.decoder.held_bytes()
        return held + (self.seeker.held_bytes() if self.seeker is not None else 0)

    def _clear_position(self) -> None:
        self.partial = bytearray()
        self.partial_stream: Stream | None = None
        self.need = 0
        self.origin: Call | None = None
        self.left = self.left_pad = 0
        self.left_stream: Stream | None = None
        self.left_ends = False
        self.block: bytearray | None = None
        self.block_stream: Stream | None = None
        self.block_ends = self.block_is_push = self.block_damaged = False
