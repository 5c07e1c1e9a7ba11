# SPDX-License-Identifier: Apache-2.0
"""Twenty shapes of requests, as curl makes them and nginx answers: both ends' logs say what curl itself says."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.agent import Agent, oap_settings, only_with
from tests.support.oap_process import OapProcess
from tests.support.servers import Nginx, tool

if TYPE_CHECKING:
    from pathlib import Path

_WRITE_OUT = (
    '{"status":%{http_code},"header":%{size_header},"body":%{size_download},"request":%{size_request},'
    '"upload":%{size_upload}}'
)


@dataclass(frozen=True)
class Shape:
    """One request: its path is its name."""

    name: str
    arguments: tuple[str, ...] = ()
    path: str = "/"
    method: str = "GET"
    ipv6: bool = False


SHAPES = (
    Shape("plain"),
    Shape("ipv6", ipv6=True),
    Shape("http-1.0", ("--http1.0",)),
    Shape("connection-close", ("-H", "Connection: close")),
    Shape("head", ("--head",), method="HEAD"),
    Shape("options", ("-X", "OPTIONS"), method="OPTIONS"),
    Shape("delete", ("-X", "DELETE"), method="DELETE"),
    Shape("patch", ("-X", "PATCH", "-d", "x"), method="PATCH"),
    Shape("put", ("-X", "PUT", "-d", "hello"), method="PUT"),
    Shape("post-small", ("-d", "a=1"), method="POST"),
    Shape("post-60k", ("--data-binary", "@body", "-H", "Expect:"), method="POST"),
    Shape("post-expect-continue", ("--data-binary", "@body", "-H", "Expect: 100-continue"), method="POST"),
    Shape(
        "post-chunked", ("--data-binary", "@body", "-H", "Transfer-Encoding: chunked", "-H", "Expect:"), method="POST"
    ),
    Shape("propfind", ("-X", "PROPFIND"), method="PROPFIND"),
    Shape("no-content", path="/status/204"),
    Shape("redirect", path="/status/302"),
    Shape("not-found", path="/status/404"),
    Shape("server-error", path="/status/500"),
    Shape("sendfile-300k", path="/files/300k"),
    Shape("chunked-response", path="/chunked"),
    Shape("many-headers", tuple(part for n in range(40) for part in ("-H", f"X-Header-{n}: {'v' * 100}"))),
)

_LOCATIONS = """
    location / { return 200 "hello\\n"; }
    location /status/404 { return 404; }
    location /status/500 { return 500; }
    location /status/204 { return 204; }
    location /status/302 { return 302 /elsewhere; }
    location /files/ { }
    location /chunked { gzip on; gzip_min_length 1; gzip_types *; gzip_http_version 1.0; try_files /files/300k =404; }
"""


def _curl(nginx: Nginx, shape: Shape, folder: Path) -> dict[str, Any]:
    host = "[::1]" if shape.ipv6 else "127.0.0.1"
    url = f"http://{host}:{nginx.port}{shape.path}?{shape.name}"
    agent = f"shape/{shape.name}"
    extra = ("-H", "Accept-Encoding: gzip") if shape.name == "chunked-response" else ()
    command = [tool("curl"), "-s", "-o", "/dev/null", "-w", _WRITE_OUT, "-A", agent, url, *shape.arguments, *extra]
    done = subprocess.run(command, capture_output=True, check=True, cwd=folder)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_every_shape_is_logged_as_curl_saw_it_and_the_backend_drops_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    (tmp_path / "body").write_bytes(b"b" * 60_000)
    with Nginx(tmp_path / "nginx", locations=_LOCATIONS) as nginx, OapProcess(tmp_path) as oap:
        (nginx.files / "300k").write_bytes(b"f" * 300_000)
        settings = (*oap_settings(oap.address), only_with(nginx.port), "access_log.flush.period=200ms")
        with Agent(tmp_path, "skywalking,jsonl", *settings) as agent:
            seen = {shape: _curl(nginx, shape, tmp_path) for shape in SHAPES}
            # Both ends of every exchange.
            logged = agent.wait_for_exchanges(lambda _: True, 2 * len(SHAPES))
            oap.wait_for(lambda: oap.tally.in_count > 0)
            assert agent.stop() == 0, agent.text
        report = oap.stop()
    for role in ("server", "client"):
        side = sorted((item for item in logged if item["role"] == role), key=lambda item: item["start_ns"])
        assert len(side) == len(SHAPES)
        for item, (shape, curl) in zip(side, seen.items(), strict=True):
            _compare(item, shape, curl, role)
    assert report["dropped"] == 0, report
    assert report["errors"] == 0, report
    assert not report["anomaly_kinds"], report
    assert report["protocol"] == 2 * len(SHAPES), report


def _compare(item: dict[str, Any], shape: Shape, curl: dict[str, Any], role: str) -> None:
    where = f"{shape.name} ({role}): {item}"
    assert item["method"] == shape.method, where
    assert item["path"] == shape.path, where
    assert item["status"] == curl["status"], where
    assert item["response_body_bytes"] == curl["body"], where
    assert item["completeness"] == "complete", where
    # curl counts the interim 100 (Continue) with the header bytes of the response.
    assert item["response_header_bytes"] in {curl["header"], curl["header"] - len("HTTP/1.1 100 Continue\r\n\r\n")}, (
        where
    )
    # curl counts the chunks' framing as uploaded; a body size is without it.
    assert item["request_body_bytes"] == (60_000 if shape.name == "post-chunked" else curl["upload"]), where
    assert 0 < item["end_ns"] - item["start_ns"] < 10**10, where
    assert item["calls"], where
