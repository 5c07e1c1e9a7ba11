# SPDX-License-Identifier: Apache-2.0
"""A test double of the SkyWalking OAP: a real gRPC server that follows oap-contract A-E to the letter.

In-process:

    with OapDouble(token="s3cret") as oap:
        ... agent sends to oap.address ...
        oap.wait_for(lambda: oap.tally.protocol >= 100)
        assert oap.clean

As a process of its own, to be killed and restarted on the same port (see `tests.support.oap_process`):

    python -m tests.support.oap --port 11800 --report report.json --tally tally.bin
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc

from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire
from rover_plugin._generated.skywalking.ebpf.profiling import Process_pb2 as process_wire
from tests.support.oap_processes import ProcessTable
from tests.support.oap_rules import Keep, KernelLog, Kubernetes, Outcome, ProtocolLog, Source, Stream
from tests.support.oap_tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class ServerTls:
    """PEM of the server's certificate and key; with `client_ca` clients must show a certificate of that authority."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.client_ca,
            require_client_auth=self.client_ca is not None,
        )


class Faults:
    """Misbehaviour that can be switched while the server runs.

    Attributes:
        watermark: refuse and end streams with RESOURCE_EXHAUSTED, as the OAP's circuit breaker does.
        unimplemented: act as an OAP with receiver-ebpf off.
        delay_s: seconds each message takes.
        reset_after: end each stream with UNAVAILABLE after that many messages were applied.
        may_read: while cleared, nothing is read from any stream.
        may_reply: while cleared, finished streams get no reply.
    """

    def __init__(self) -> None:
        self.watermark = False
        self.unimplemented = False
        self.delay_s = 0.0
        self.reset_after: int | None = None
        self.may_read = threading.Event()
        self.may_reply = threading.Event()
        self.may_read.set()
        self.may_reply.set()


class OapDouble:
    """The server and everything it has seen.

    Args:
        port: 0 takes a free one.
        host: address to listen on.
        token: value of metadata key `authentication` it insists on; None ignores the key.
        tls: serve TLS, or mTLS.
        kubernetes: what `ip` addresses resolve to; the default has no API server, so they are fatal.
        keep: `all` stores logs and sources; `checks` only validates and counts; `counts` leaves the anomalies out too.
        tally_path: file the counters live in, see `Tally`.
        window: bytes of HTTP/2 flow-control window a stream offers; None leaves it to gRPC.
        check_clock: whether times far from now are anomalies.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        token: str | None = None,
        tls: ServerTls | None = None,
        kubernetes: Kubernetes | None = None,
        keep: Keep = "all",
        tally_path: Path | None = None,
        window: int | None = None,
        check_clock: bool = True,
    ) -> None:
        self.faults = Faults()
        self.tally = Tally(tally_path)
        self.processes = ProcessTable()
        self.kernel_logs: list[KernelLog] = []
        self.protocol_logs: list[ProtocolLog] = []
        self.sources: list[Source] = []
        self.anomalies: Counter[str] = Counter()
        self.drop_reasons: Counter[str] = Counter()
        self.errors: list[str] = []
        self.nodes: list[wire.EBPFAccessLogNodeInfo] = []
        self.messages_per_stream: list[int] = []
        self.calls: Counter[str] = Counter()
        self._token = token
        self._kubernetes = kubernetes or Kubernetes()
        self._keep = keep
        self._now = time.time if check_clock else None
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="oap")
        options: list[tuple[str, int]] = [
            ("grpc.max_receive_message_length", 50 << 20),
            ("grpc.so_reuseport", 0),
            # grpc-java without permitKeepAlive: pings faster than 5 minutes end in GOAWAY (oap-contract E).
            ("grpc.http2.min_ping_interval_without_data_ms", 300_000),
        ]
        if window is not None:
            options += [("grpc.http2.lookahead_bytes", window), ("grpc.http2.bdp_probe", 0)]
        self._server = grpc.server(self._pool, options=options)
        self._server.add_generic_rpc_handlers((self._access_log_handlers(), self._process_handlers()))
        bind = f"{host}:{port}"
        self.port = (
            self._server.add_secure_port(bind, tls.credentials()) if tls else self._server.add_insecure_port(bind)
        )
        self.address = f"{host}:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, grace_s: float | None = None) -> None:
        """Ends all streams, after `grace_s` seconds or at once, and frees the port."""
        self.faults.may_read.set()
        self.faults.may_reply.set()
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=True)

    @property
    def clean(self) -> bool:
        """Nothing was dropped, nothing threw, nothing odd was seen."""
        return not (self.tally.dropped or self.tally.errors or self.tally.anomalies)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        """Blocks until `condition()`, which is asked after each change; raises AssertionError at the time-out."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                message = f"the OAP double saw no such thing in {timeout_s} s: {self.report()}"
                raise AssertionError(message)

    def report(self) -> dict[str, object]:
        """Counters, anomalies and reasons, fit for JSON."""
        return {
            **self.tally.as_dict(),
            "anomaly_kinds": dict(self.anomalies),
            "drop_reasons": dict(self.drop_reasons),
            "error_messages": self.errors[:100],
            "calls": dict(self.calls),
            "processes": len(self.processes.by_id),
        }

    def count(self, scope: str, kind: str | None = None, **where: object) -> int:
        """How many sources of `scope` were emitted, narrowed by kind, entity, detect_point or minute."""
        return sum(
            source.scope == scope
            and kind in {None, source.kind}
            and all(getattr(source, name) == value for name, value in where.items())
            for source in self.sources
        )

    def _access_log_handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "skywalking.v3.EBPFAccessLogService",
            {
                "collect": grpc.stream_unary_rpc_method_handler(
                    self._collect,
                    request_deserializer=wire.EBPFAccessLogMessage.FromString,
                    response_serializer=wire.EBPFAccessLogDownstream.SerializeToString,
                )
            },
        )

    def _process_handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "skywalking.v3.EBPFProcessService",
            {
                "reportProcesses": grpc.unary_unary_rpc_method_handler(
                    lambda request, context: self._unary(context, self.processes.report, request),
                    request_deserializer=process_wire.EBPFProcessReportList.FromString,
                    response_serializer=process_wire.EBPFReportProcessDownstream.SerializeToString,
                ),
                "keepAlive": grpc.unary_unary_rpc_method_handler(
                    lambda request, context: self._unary(context, self.processes.ping, request),
                    request_deserializer=process_wire.EBPFProcessPingPkgList.FromString,
                    response_serializer=lambda reply: reply.SerializeToString(),
                ),
            },
        )

    def _unary(self, context: grpc.ServicerContext, answer: Callable[[object], object], request: object) -> object:
        self._admit(context, answer.__name__)
        try:
            return answer(request)
        finally:
            self._notify()

    def _admit(self, context: grpc.ServicerContext, call: str) -> None:
        """Token, circuit breaker, missing service: refuses by raising, as gRPC's abort does."""
        self.calls[call] += 1
        sent = dict(context.invocation_metadata()).get("authentication")
        if self.faults.unimplemented:
            self._refuse(context, grpc.StatusCode.UNIMPLEMENTED, f"Method not found: {call}")
        if self._token is not None and sent != self._token:
            self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, "")
        if self.faults.watermark:
            self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "Watermark exceeded")

    def _refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> None:
        self.tally.add(refused=1)
        self._notify()
        context.abort(code, details)

    def _collect(
        self, messages: Iterator[wire.EBPFAccessLogMessage], context: grpc.ServicerContext
    ) -> wire.EBPFAccessLogDownstream:
        self.tally.add(streams=1)
        self._admit(context, "collect")
        stream = Stream(self._kubernetes, keep=self._keep, now=self._now)
        taken = 0
        try:
            while True:
                self.faults.may_read.wait()
                message = next(messages, None)
                if message is None:
                    break
                if self.faults.delay_s:
                    time.sleep(self.faults.delay_s)
                self._apply(stream, message)
                taken += 1
                if self.faults.watermark:
                    self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "Watermark exceeded")
                if self.faults.reset_after is not None and taken >= self.faults.reset_after:
                    self._refuse(context, grpc.StatusCode.UNAVAILABLE, "reset by the test")
        finally:
            self.messages_per_stream.append(taken)
        self.faults.may_reply.wait()
        self.tally.add(completed=1)
        self._notify()
        return wire.EBPFAccessLogDownstream()

    def _apply(self, stream: Stream, message: wire.EBPFAccessLogMessage) -> None:
        outcome = stream.take(message)
        self.tally.add(
            kernel=outcome.accepted_kernel,
            protocol=outcome.accepted_protocol,
            dropped=outcome.dropped,
            errors=int(bool(outcome.error)),
            messages=1,
            anomalies=len(outcome.anomalies),
        )
        if self._keep != "counts":
            self._note(message, outcome)
        self._notify()

    def _note(self, message: wire.EBPFAccessLogMessage, outcome: Outcome) -> None:
        with self._changed:
            self.anomalies.update(outcome.anomalies)
            if outcome.dropped:
                self.drop_reasons[outcome.drop_reason] += outcome.dropped
            if outcome.error:
                self.errors.append(outcome.error)
            if self._keep == "all":
                if message.HasField("node"):
                    self.nodes.append(message.node)
                self.kernel_logs += outcome.kernel_logs
                self.protocol_logs += outcome.protocol_logs
                self.sources += outcome.sources

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def main() -> None:
    """Runs the double until SIGTERM; says `listening PORT` on standard output once it does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=11800)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--token")
    parser.add_argument("--report", type=Path, help="JSON, written each second and at the end")
    parser.add_argument("--tally", type=Path, help="counters that survive SIGKILL and restarts")
    parser.add_argument("--keep", choices=["all", "checks", "counts"], default="checks")
    parser.add_argument(
        "--logs-per-second", type=float, default=0, help="what a stream takes, at 3 logs a message; 0: all"
    )
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-client-ca", type=Path)
    options = parser.parse_args()
    tls = None
    if options.tls_certificate:
        client_ca = options.tls_client_ca.read_bytes() if options.tls_client_ca else None
        tls = ServerTls(options.tls_certificate.read_bytes(), options.tls_key.read_bytes(), client_ca)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with OapDouble(
        port=options.port,
        host=options.host,
        token=options.token,
        tls=tls,
        keep=options.keep,
        tally_path=options.tally,
    ) as oap:
        if options.logs_per_second:
            oap.faults.delay_s = 3 / options.logs_per_second
        print(f"listening {oap.port}", flush=True)
        while not ended.wait(1):
            write_report(options.report, oap)
    write_report(options.report, oap)


def write_report(path: Path | None, oap: OapDouble) -> None:
    if path is None:
        return
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(oap.report(), indent=1), encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    main()
