# SPDX-License-Identifier: Apache-2.0
"""Serves `/metrics` and `/healthz` over HTTP. Imported only where `telemetry.listen` is set: it costs 2 MB."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from rover_plugin.errors import ModuleError
from rover_plugin.telemetry.metrics import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric as Family

    from rover_plugin.telemetry.telemetry import Histograms, Telemetry

log = structlog.get_logger(__name__)

# Connections at a time; a further one ends the oldest. A scraper needs one.
_MOST_AT_ONCE: Final = 8
# From its connection to the end of its answer.
_REQUEST_S: Final = 10.0


class TelemetryServer:
    """Serves until it is closed, in threads of its own.

    Args:
        listen: host:port, `[ip6]:port`, or `:port` for every address; port 0 takes a free one.
        telemetry: what is served.

    Raises:
        ModuleError: the address cannot be used.
    """

    def __init__(self, listen: str, telemetry: Telemetry) -> None:
        host, _, port = listen.rpartition(":")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(telemetry))
        try:
            self._server = _Server((host.strip("[]"), int(port)), telemetry, registry)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ModuleError(
                f"cannot serve telemetry on {listen}: {reason}",
                hint="set telemetry.listen to a free host:port, or to nothing to serve none",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="telemetry", daemon=True)
        self._thread.start()
        log.info("telemetry_listening", address=self.address)

    @property
    def address(self) -> str:
        """Where it really listens, as host:port."""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], telemetry: Telemetry, registry: CollectorRegistry) -> None:
        self.telemetry = telemetry
        self.registry = registry
        self._lock = threading.Lock()
        self._deadlines: dict[Any, float] = {}  # of open connections, oldest first
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks DNS for this host's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._deadlines) >= _MOST_AT_ONCE:
                self._drop(next(iter(self._deadlines)))
            self._deadlines[request] = time.monotonic() + _REQUEST_S
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._deadlines.pop(request, None)

    def service_actions(self) -> None:
        """Twice a second: ends requests whose time is up."""
        now = time.monotonic()
        with self._lock:
            for request in [late for late, deadline in self._deadlines.items() if deadline <= now]:
                self._drop(request)

    def _drop(self, request: Any) -> None:
        # Its thread is in a read or a write, which end with this.
        del self._deadlines[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        log.debug("telemetry_client_failed")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_S
    server_version = "rover"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers."""
        url = urlsplit(self.path)
        if url.path == "/metrics":
            if parse_qs(url.query).get("probes") == ["1"]:
                self.server.telemetry.want_probes()
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            try:
                body = encode(self.server.registry)
            except Exception:
                log.exception("telemetry_scrape_failed")
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", b"see the agent's log\n")
                return
            self._answer(HTTPStatus.OK, content_type, body)
        elif url.path == "/healthz":
            reasons = self.server.telemetry.unhealthy()
            body = json.dumps({"healthy": not reasons, "reasons": reasons}).encode() + b"\n"
            status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
            self._answer(status, "application/json", body)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"/metrics or /healthz\n")

    do_HEAD = do_GET  # noqa: N815 http.server's names

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 the base class's name
        """Says nothing: a scrape is no event."""

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Collector:
    """Turns samples into prometheus_client's families."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Family]:
        for metric, samples in self._telemetry.samples():
            make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for sample in samples:
                family.add_metric(sample.labels, sample.value)
            yield family
        for metric, histograms in self._telemetry.histograms():
            buckets = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, counts in list(histograms.counts.items()):
                buckets.add_metric(labels, _cumulated(histograms, counts), histograms.sums[labels])
            yield buckets


def _cumulated(histograms: Histograms, counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    result = []
    for bound, count in zip([*map(str, histograms.bounds), "+Inf"], counts, strict=True):
        total += count
        result.append((bound, float(total)))
    return result
