# SPDX-License-Identifier: Apache-2.0
"""An exchange carries what it was spoken in to every output, whatever its connection speaks before and after."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin._generated.skywalking.ebpf import accesslog_pb2 as wire
from rover_plugin.access_log.encoders.protobuf import UNKNOWN_PATH
from rover_plugin.access_log.model import Direction
from rover_plugin.access_log.outputs.console import ConsoleOutput
from rover_plugin.access_log.outputs.lines import opening
from rover_plugin.access_log.outputs.skywalking_names import connection_prefix
from rover_plugin.access_log.resolver import FOREVER_NS
from rover_plugin.capture.records import OpenCause
from tests.support import http2_wire as h2
from tests.support.http2_conversation import PREFACE, get
from tests.support.pipeline import Keep, Pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.access_log.model import ResolvedConnection
    from rover_plugin.access_log.outputs.base import Output
    from rover_plugin.telemetry.counters import Counters

REQUEST, RESPONSE = True, False
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TLS_HELLO = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03" + bytes(40)
TUNNELLED = (b"\x81\x05hello", TLS_HELLO, PREFACE + h2.settings(), b"GET /inside HTTP/1.1\r\nHost: x\r\n\r\n")
CHANGES = ("none", "websocket", "connect", "tls", "h2c", "refused")


class JsonKeep(Keep):
    """Keeps whole JSON lines."""

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        return opening(connection)


class ProtobufKeep(Keep):
    """Keeps whole messages for the backend."""

    def connection_prefix(self, connection: ResolvedConnection) -> bytes:
        return connection_prefix(connection, "", "host-1", resolve_in_backend=False)


@dataclass
class Script:
    """One connection's calls, as (side, bytes), and what is to come of them: path -> protocol."""

    steps: list[tuple[bool, bytes]] = field(default_factory=list)
    spoken: dict[str, str] = field(default_factory=dict)

    def http1(self, path: str, head: bytes = b"", method: bytes = b"GET", response: bytes = OK) -> None:
        target = path.encode()
        self.steps += [(REQUEST, method + b" " + target + b" HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n")]
        self.steps += [(RESPONSE, response)]
        self.spoken[path if path.startswith("/") else "?"] = "http/1"  # CONNECT has no path

    def http2(self, paths: Sequence[str], first_stream: int) -> None:
        up, down = hpack.Encoder(), hpack.Encoder()
        for number, path in enumerate(paths):
            stream = first_stream + 2 * number
            self.steps += [(REQUEST, h2.headers(stream, up.encode(get(path, "a"))))]
            self.steps += [(RESPONSE, h2.headers(stream, down.encode([(":status", "200")])))]
            self.spoken[path] = "http/2"


def script(change: str, before: int, after: int, tunnelled: bytes) -> Script:
    made = Script()
    if change == "refused":
        request = h2.headers(1, hpack.Encoder().encode(get("/refused", "a")))
        made.steps = [
            (REQUEST, PREFACE + h2.settings() + request),
            (RESPONSE, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        ]
        return made
    for number in range(before):
        made.http1(f"/before/{number}")
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n"
    if change == "h2c":
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        made.http1("/change", upgrade, response=switching % b"h2c" + h2.settings())
        made.steps += [
            (REQUEST, PREFACE + h2.settings()),
            (RESPONSE, h2.headers(1, hpack.Encoder().encode([(":status", "200")]))),
        ]
        made.spoken["/change"] = "http/2"
        made.http2([f"/after/{number}" for number in range(after)], 3)
    elif change == "connect":
        made.http1("a:443", method=b"CONNECT", response=b"HTTP/1.1 200 OK\r\n\r\n")
    elif change != "none":
        name = b"websocket" if change == "websocket" else b"TLS/1.2"
        made.http1("/change", b"Connection: Upgrade\r\nUpgrade: %s\r\n" % name, response=switching % name)
    if change in {"websocket", "connect", "tls"}:
        inside = TLS_HELLO if change == "tls" else tunnelled
        made.steps += [(REQUEST, inside), (RESPONSE, inside)] * after
    return made


class Outputs:
    """All three ways out."""

    def __init__(self) -> None:
        self.screen = io.StringIO()
        self.json: list[bytes] = []
        self.protobuf: list[bytes] = []

    def make(self, counters: Counters) -> list[Output]:
        json_lines, protobuf = JsonKeep(counters, "jsonl"), ProtobufKeep(counters, "skywalking", "protobuf")
        self.json, self.protobuf = json_lines.messages, protobuf.messages
        return [ConsoleOutput(counters, self.screen), json_lines, protobuf]

    def check(self, spoken: dict[str, str], *, exactly: bool) -> None:
        items = [json.loads(line) for line in self.json]
        exchanges = [item for item in items if item["kind"] == "exchange"]
        assert all(("stream" in item) == (item["protocol"] == "http/2") for item in exchanges)
        shown = {line.split()[4]: line for line in self.screen.getvalue().splitlines()[1:]}
        assert len(shown) == len(exchanges)
        sent = [wire.EBPFAccessLogMessage.FromString(message) for message in self.protobuf]
        for message in sent:
            if message.HasField("protocolLog"):
                http = message.protocolLog.http
                assert message.connection.protocol == (wire.HTTP_2 if http.version == wire.HTTP2 else wire.HTTP_1)
        if not exactly:
            return
        assert {item["path"] or "?": item["protocol"] for item in exchanges} == spoken
        assert {path: ("http/1", "http/2")["h2#" in line] for path, line in shown.items()} == spoken
        logs = {
            message.protocolLog.http.request.path.replace(UNKNOWN_PATH, "?"): message.connection.protocol
            for message in sent
            if message.HasField("protocolLog")
        }
        assert logs == {path: {"http/1": wire.HTTP_1, "http/2": wire.HTTP_2}[name] for path, name in spoken.items()}
        if spoken:
            first = next(iter(spoken.values()))
            opened = [item["protocol"] for item in items if item.get("call") in {"accept4", "accept", "connect"}]
            assert opened in ([first], ["http/1"])  # before an upgrade to h2c, or after it
            accepts = [message.connection.protocol for message in sent if _opens(message)]
            assert wire.TCP not in accepts


def _opens(message: wire.EBPFAccessLogMessage) -> bool:
    return any(log.WhichOneof("operation") in {"accept", "connect"} for log in message.kernelLogs)


BOUNDARIES = st.lists(st.sampled_from(["", "hand_over", "flush", "settle"]), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    change=st.sampled_from(CHANGES),
    before=st.integers(0, 3),
    after=st.integers(0, 2),
    tunnelled=st.sampled_from(TUNNELLED),
    served=st.booleans(),
    named_after=st.integers(0, 30),
    boundaries=BOUNDARIES,
)
def test_every_output_shows_every_exchange_as_it_was_spoken(
    *,
    change: str,
    before: int,
    after: int,
    tunnelled: bytes,
    served: bool,
    named_after: int,
    boundaries: list[str],
) -> None:
    made = script(change, before, after, tunnelled)
    outputs = Outputs()
    subject = Pipeline(encodings=("json", "protobuf"), known=False, more_outputs=outputs.make)
    (worker,) = subject.workers
    kernel = worker.kernel
    records = [kernel.open(1, OpenCause.ACCEPT if served else OpenCause.CONNECT)]
    for is_request, data in made.steps:
        records.append(kernel.call(1, Direction.INGRESS if is_request is served else Direction.EGRESS, data))
    records.append(kernel.close(1))
    for number, record in enumerate(records):
        if number == named_after:
            subject.name_process()
        worker.read(record)
        boundary = boundaries[number % len(boundaries)]
        if boundary == "flush":
            worker.shard.flush(kernel.now_ns)
        if boundary:
            worker.hand_over()
        if boundary == "settle":
            subject.resolver.settle(0)
    if named_after >= len(records):
        subject.name_process()
    worker.report()
    subject.settle()
    for output in subject.resolver._outputs:
        output.tick()
    worker.report()
    assert subject.ledger.imbalance() == 0
    outputs.check(made.spoken, exactly=change != "refused")


def test_what_stands_alone_before_an_upgrade_is_not_of_the_tunnel() -> None:
    outputs = Outputs()
    subject = Pipeline(encodings=("json", "protobuf"), more_outputs=outputs.make)
    (worker,) = subject.workers
    made = script("websocket", 1, 1, TUNNELLED[0])
    worker.read(worker.kernel.open(1))
    for is_request, data in made.steps:
        worker.read(worker.kernel.call(1, Direction.INGRESS if is_request else Direction.EGRESS, data))
    worker.read(worker.kernel.close(1))
    worker.report()
    subject.settle()
    calls = [(item["call"], item["protocol"]) for item in map(json.loads, outputs.json) if item["kind"] == "call"]
    assert calls == [("accept", "http/1"), ("read", "tcp"), ("writev", "tcp"), ("close", "tcp")]


def test_an_accept_waits_for_the_protocol_and_not_for_ever() -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    opened_ns = worker.kernel.now_ns
    worker.read(worker.kernel.open(1))
    worker.shard.flush(opened_ns + 4_900_000_000)
    worker.hand_over()
    assert subject.messages("call") == []
    worker.shard.flush(opened_ns + 5_100_000_000)
    worker.hand_over()
    assert [(item["call"], item["protocol"]) for item in subject.messages("call")] == [("accept", "tcp")]


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.2\r\n", TLS_HELLO])
def test_an_accept_goes_out_once_it_is_known_that_nothing_is_understood(data: bytes) -> None:
    subject = Pipeline()
    (worker,) = subject.workers
    worker.read(worker.kernel.open(1), worker.kernel.call(1, Direction.INGRESS, data))
    undecided = worker.shard.connections[1].conversation.undecided
    worker.shard.flush(worker.kernel.now_ns)
    worker.hand_over()
    assert [item["call"] for item in subject.messages("call")] == ([] if undecided else ["accept", "read"])
    worker.shard.flush(FOREVER_NS)
    worker.hand_over()
    assert re.fullmatch(r"accept", str(subject.messages("call")[0]["call"]))


def test_the_exchange_under_way_when_the_agent_comes_is_no_request_of_the_backends() -> None:
    outputs = Outputs()
    subject = Pipeline(encodings=("json", "protobuf"), more_outputs=outputs.make)
    (worker,) = subject.workers
    kernel = worker.kernel
    worker.read(kernel.open(1, OpenCause.MET))
    worker.read(kernel.call(1, Direction.EGRESS, OK))
    worker.read(kernel.call(1, Direction.INGRESS, b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"))
    worker.read(kernel.call(1, Direction.EGRESS, OK), kernel.close(1))
    worker.report()
    subject.settle()
    seen = [item for item in map(json.loads, outputs.json) if item["kind"] == "exchange"]
    assert [(item["path"], item["completeness"]) for item in seen] == [(None, "late_join"), ("/next", "complete")]
    sent = [wire.EBPFAccessLogMessage.FromString(message) for message in outputs.protobuf]
    assert [m.protocolLog.http.request.path for m in sent if m.HasField("protocolLog")] == ["/next"]
    assert sum(len(message.kernelLogs) for message in sent) == 4
    assert all(message.connection.protocol == wire.HTTP_1 for message in sent)
    assert subject.balance("protocol", "skywalking").filtered == {"no_request": 1}
