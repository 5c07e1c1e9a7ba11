# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 (RFC 9113), passively: bytes of both directions with their calls in, exchanges out."""

from __future__ import annotations

from rover_plugin.access_log.protocols.http2.analyzer import Http2Analyzer

__all__ = ["Http2Analyzer"]
