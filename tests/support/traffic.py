# SPDX-License-Identifier: Apache-2.0
"""Real HTTP/1 and HTTP/2 traffic of all shapes between real programs, with words planted that must stay secret."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final, Self

from tests.support.servers import Nginx, free_port, tool, wait_for_port

if TYPE_CHECKING:
    from pathlib import Path

# Each where it says, and nowhere else.
SECRETS: Final = {
    where: f"secret-{where}-0451"
    for where in ("path", "query", "header", "cookie", "authorization", "body", "answer", "chunk", "user")
}
LOCATIONS: Final = f"""
    location / {{ return 200 "hello {SECRETS["answer"]}\\n"; add_header X-Session "{SECRETS["header"]}"; }}
    location /status/404 {{ return 404; }}
    location /files/ {{ }}
    location /chunked {{ gzip on; gzip_min_length 1; gzip_types *; gzip_http_version 1.0; try_files /files/text =404; }}
"""
H1_LOAD: Final = 300
H2_LOAD: Final = 200


class Nghttpd:
    """nghttpd without TLS, which serves a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [tool("nghttpd"), "--no-tls", "--echo-upload", "-d", str(self._folder), str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def _run(command: list[str]) -> None:
    # A child of a shell whose own command line names the server: rules that choose clients by that hold from its fork
    # on. What the feed says of the time before the exec can come after it.
    subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *command], check=True, capture_output=True)


def run_http1(nginx: Nginx, folder: Path, load: int = H1_LOAD) -> int:
    """curl over one kept-alive connection, then h2load; returns how many exchanges that makes."""
    secret = SECRETS
    (nginx.files / "text").write_text(f"{secret['answer']} " * 3000)
    body, chunked = folder / "body", folder / "chunked"
    body.write_text(f"{secret['body']} " * 200)
    chunked.write_text(f"{secret['chunk']} " * 200)
    requests = (
        ["-A", f"agent/{secret['user']}", nginx.url("/plain")],
        [nginx.url(f"/api/{secret['path']}/items?token={secret['query']}")],
        ["-H", f"X-Api-Key: {secret['header']}", "-b", f"session={secret['cookie']}", nginx.url("/keys")],
        ["-u", f"{secret['user']}:{secret['authorization']}", nginx.url("/login")],
        ["-H", f"Authorization: Bearer {secret['authorization']}", nginx.url("/status/404")],
        ["--data-binary", f"@{body}", nginx.url("/post")],
        ["-T", str(chunked), "-H", "Transfer-Encoding: chunked", "-H", "Expect:", nginx.url("/upload")],
        ["-H", "Accept-Encoding: gzip", nginx.url("/chunked")],
        ["--head", nginx.url("/files/text")],
        [nginx.url("/files/text")],
    )
    command = [tool("curl"), "-s"]
    for number, request in enumerate(requests):
        command += [*(["--next", "-s"] if number else []), "-o", "/dev/null", *request]
    _run(command)
    loader = [tool("h2load"), "--h1", "-t1", "-c4", f"-n{load}", f"-HX-Api-Key: {secret['header']}"]
    _run([*loader, nginx.url(f"/load?{secret['query']}")])
    return len(requests) + load


def run_http2(nghttpd: Nghttpd, folder: Path, load: int = H2_LOAD, body_words: int = 2000) -> int:
    """curl, then h2load with many streams at once; returns how many exchanges that makes. `folder` is served."""
    secret = SECRETS
    (folder / "text").write_text(f"{secret['answer']} " * 40)
    (folder / secret["path"]).write_text("hello\n")
    body = folder / "h2-body"
    body.write_text(f"{secret['body']} " * body_words)
    requests = (
        ["-A", f"agent/{secret['user']}", nghttpd.url("/text")],
        ["-b", f"session={secret['cookie']}", nghttpd.url(f"/{secret['path']}?token={secret['query']}")],
        ["-H", f"Authorization: Bearer {secret['authorization']}", nghttpd.url("/none")],
        ["--data-binary", f"@{body}", nghttpd.url("/text")],
    )
    for request in requests:  # a connection each: curl 7.88 fails to use one again after prior knowledge
        command = [tool("curl"), "-s", "--http2-prior-knowledge", "-o", "/dev/null", *request]
        _run(command)
    loader = [tool("h2load"), "-t1", "-c3", "-m8", f"-n{load}", f"-Hx-api-key: {secret['header']}"]
    _run([*loader, nghttpd.url(f"/text?{secret['query']}")])
    return len(requests) + load
