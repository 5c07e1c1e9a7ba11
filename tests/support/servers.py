# SPDX-License-Identifier: Apache-2.0
"""Real servers on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def let_others_read(folder: Path) -> None:
    """Lets users other than root enter a folder and read in it, and changes nothing else of its mode."""
    folder.chmod(folder.stat().st_mode & 0o7777 | 0o055)


def free_port(family: int = socket.AF_INET) -> int:
    """A port nobody listens on now."""
    with socket.socket(family) as probe:
        probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, host: str = "127.0.0.1", timeout_s: float = 10) -> None:
    """Returns once somebody listens; a foreign server cannot tell us in another way."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {host}:{port}"
            time.sleep(0.01)
        else:
            return


def tool(name: str) -> str:
    """Path of a program, or skips the test."""
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


_NGINX = """
worker_processes {workers};
daemon off;
master_process on;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 64m;
  sendfile on;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    listen [::1]:{port};
    root {folder}/www;
{locations}
  }}
}}
"""

_LOCATIONS = """
    location / { return 200 "hello\\n"; }
    location /status/404 { return 404; }
    location /status/500 { return 500; }
    location /status/204 { return 204; }
    location /status/302 { return 302 /elsewhere; }
    location /files/ { }
"""


class Nginx:
    """nginx with `return 200`, some status codes and files below /files/.

    Attributes:
        port: on 127.0.0.1 and ::1.
        files: folder whose files are served by sendfile.
    """

    def __init__(self, folder: Path, *, workers: int = 1, locations: str = _LOCATIONS) -> None:
        self._binary = tool("nginx")
        self.port = free_port()
        self.files = folder / "www" / "files"
        self.files.mkdir(parents=True)
        # nginx's workers are another user when the master is root.
        for path in (folder, folder / "www", self.files):
            path.chmod(0o755)
        self._config = folder / "nginx.conf"
        self._config.write_text(_NGINX.format(folder=folder, port=self.port, workers=workers, locations=locations))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([self._binary, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        wait_for_port(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    @property
    def pid(self) -> int:
        """The master's."""
        assert self._process is not None
        return self._process.pid

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"
