# SPDX-License-Identifier: Apache-2.0
"""The settings `access_log.*`, in the form in which capture and analysis take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rover_plugin.capture.bpf import possible_cpus
from rover_plugin.capture.recording import AnalysisOptions
from rover_plugin.capture.session import CaptureOptions

if TYPE_CHECKING:
    from rover_plugin.settings import Settings


def capture_options(settings: Settings, *, least_ring_bytes: int = 0) -> CaptureOptions:
    """Sizes of the kernel side.

    Args:
        settings: the host's.
        least_ring_bytes: all rings together have at least this.
    """
    configured = settings.size("access_log.protocol_analyze.per_cpu_buffer") * possible_cpus()
    return CaptureOptions(
        shards=settings.integer("access_log.protocol_analyze.parallels"),
        ring_bytes=max(configured, least_ring_bytes),
        capture_limit=settings.size("access_log.protocol_analyze.capture_limit"),
        max_connections=settings.integer("access_log.connections.max"),
    )


def shard_connections(settings: Settings) -> int:
    """Connections that one shard follows at once.

    Of the kernel's table an eighth is left for what is new, until a worker has seen it and let older ones go.
    """
    most = settings.integer("access_log.connections.max")
    return max(1, most * 7 // 8 // settings.integer("access_log.protocol_analyze.parallels"))


def analysis_options(settings: Settings) -> AnalysisOptions:
    """What a recording has to remember of them."""
    return AnalysisOptions(
        exclude_namespaces=settings.items("access_log.exclude_namespaces"),
        exclude_clusters=settings.items("access_log.exclude_cluster"),
        max_connections=shard_connections(settings),
        exchange_timeout_s=settings.seconds("access_log.exchange.timeout"),
        grpc_status_as_http=settings.flag("access_log.grpc_status_mapping"),
        path_templates=settings.flag("access_log.path_templates"),
        open_report_s=settings.seconds("access_log.exchange.open_report_period"),
        translations=True,
        max_bytes=settings.size("access_log.connections.max_bytes"),
    )


def feed_address(settings: Settings) -> str:
    """Where the process feed is: `access_log.feed`, or that of this host."""
    return settings.text("access_log.feed") or settings.text("process_discovery.feed.socket")
