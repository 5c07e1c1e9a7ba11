# SPDX-License-Identifier: Apache-2.0
"""Encoders run in the workers: exchanges and calls in, fragments of bytes out (see outputs/base.py for why)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rover_plugin.access_log.encoders.json import JsonEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.model import Call, Exchange, ProtocolName


class Encoder(Protocol):
    """Turns what a worker found into fragments; the connection they belong to is put in front later.

    Every fragment says what it was spoken in: the connection in front may speak something else by then.
    """

    def set_clock(self, offset_ns: int) -> None:
        """Wall clock minus CLOCK_MONOTONIC, for encodings that carry wall-clock times."""

    def exchange(self, exchange: Exchange) -> tuple[bytes, int]:
        """The fragment of one exchange with its calls, and how many protocol logs are in it (0 or 1)."""

    def calls(self, calls: Sequence[Call], protocol: ProtocolName) -> list[tuple[bytes, int]]:
        """Fragments for stand-alone calls, each with how many calls are in it."""


def make_encoder(encoding: str, *, grpc_status_as_http: bool = True) -> Encoder:
    """Returns the encoder for `encoding`: "json" or "protobuf"."""
    if encoding == "json":
        return JsonEncoder()
    # Imported here: a worker that only prints need not carry protobuf.
    from rover_plugin.access_log.encoders.protobuf import ProtobufEncoder  # noqa: PLC0415

    return ProtobufEncoder(grpc_status_as_http=grpc_status_as_http)
