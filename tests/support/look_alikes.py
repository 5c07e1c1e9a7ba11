# SPDX-License-Identifier: Apache-2.0
"""Streams of other protocols, for detection: recorded from real programs, kept in tests/data/look_alikes.

Record again: python -m tests.support.look_alikes FOLDER-WITH-THE-SERVERS' usr/bin, usr/sbin (see README.md there).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.servers import free_port, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parents[1] / "data" / "look_alikes"

Stream = list[tuple[bool, bytes]]
"""What was read at once, in order: whether the client sent it, and the bytes."""

_MOST_BYTES = 12_000


def load(name: str) -> list[Stream]:
    """The kept connections of one protocol."""
    found: dict[int, Stream] = {}
    for item in map(json.loads, (FOLDER / f"{name}.jsonl").read_text().splitlines()):
        said = (item["from"] == "client", base64.b64decode(item["bytes"]))
        found.setdefault(item["connection"], []).append(said)
    return list(found.values())


def names() -> list[str]:
    """All kept streams."""
    return sorted(path.stem for path in FOLDER.glob("*.jsonl"))


class Relay:
    """Stands between clients and a server, and notes what each reads."""

    def __init__(self, port: int) -> None:
        self.streams: list[Stream] = []
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            stream: Stream = []
            self.streams.append(stream)
            for source, target, from_client in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(stream, source, target, from_client), daemon=True).start()

    def _pump(self, stream: Stream, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        try:
            while data := source.recv(65_536):
                stream.append((from_client, data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def save(name: str, streams: list[Stream]) -> None:
    """Keeps the beginnings of some connections."""
    lines = []
    for number, stream in enumerate(streams):
        kept = 0
        for from_client, data in stream:
            said = {"connection": number, "from": "client" if from_client else "server"}
            lines.append(json.dumps(said | {"bytes": base64.b64encode(data).decode()}))
            kept += len(data)
            if kept > _MOST_BYTES:
                break
    (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{name}: {len(streams)} connections, {len(lines)} reads")


class _Recorder:
    """Runs servers from a folder and clients against them."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder = folder
        self.scratch = scratch
        self._environment = os.environ | {"LD_LIBRARY_PATH": str(folder / "usr/lib/x86_64-linux-gnu")}

    def run(
        self,
        name: str,
        program: str,
        arguments: list[str],
        port: int,
        talk: Callable[[int], object],
        user: str | None = None,
    ) -> None:
        server = subprocess.Popen(
            [str(self._folder / program), *arguments],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user,
        )
        try:
            wait_for_port(port)
            with Relay(port) as relay:
                talk(relay.port)
                save(name, relay.streams)
        finally:
            server.terminate()
            server.wait(20)


def _redis(port: int) -> None:
    import redis  # noqa: PLC0415 only for recording

    for protocol in (2, 3):
        client = redis.Redis(port=port, protocol=protocol)
        client.set("GET / HTTP/1.1", "HTTP/1.1 200 OK\r\n\r\n")
        client.get("GET / HTTP/1.1")
        pipeline = client.pipeline()
        for number in range(20):
            pipeline.hset(f"key:{number}", mapping={"field": os.urandom(20), "other": "x" * number})
        pipeline.execute()
        client.lrange("missing", 0, -1)
        client.info("server")
        client.close()
    with socket.create_connection(("127.0.0.1", port)) as inline:
        inline.sendall(b"PING\r\nGET / HTTP\r\nSET a b\r\n")
        inline.recv(1000)


def _memcached(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        for line in (
            b"version\r\n",
            b"set a 0 0 5\r\nhello\r\n",
            b"get a\r\n",
            b"gets a b c\r\n",
            b"delete a\r\n",
            b"stats\r\n",
        ):
            client.sendall(line)
            client.recv(65_536)
    with socket.create_connection(("127.0.0.1", port)) as client:  # the binary protocol
        client.sendall(b"\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\0\0\0\0\0\0\0\0\0\0\0\0a")
        client.recv(65_536)


def _mysql(port: int) -> None:
    import pymysql  # noqa: PLC0415

    client = pymysql.connect(host="127.0.0.1", port=port, user="root", ssl_disabled=True)
    with client.cursor() as cursor:
        cursor.execute("SELECT VERSION(), NOW(), REPEAT('x', 300)")
        for number in range(10):
            cursor.execute("SELECT %s, 'GET / HTTP/1.1'", (number,))
            cursor.fetchall()
        cursor.execute("SHOW VARIABLES LIKE 'a%'")
        cursor.fetchall()
    client.close()


def _postgres(port: int) -> None:
    import psycopg2  # noqa: PLC0415

    while True:
        try:
            client = psycopg2.connect(host="127.0.0.1", port=port, user="nobody", dbname="postgres", sslmode="disable")
            break
        except psycopg2.OperationalError:  # "starting up"
            time.sleep(0.1)
    with client.cursor() as cursor:
        for number in range(10):
            cursor.execute("SELECT %s, version(), 'GET / HTTP/1.1'", (number,))
            cursor.fetchall()
        cursor.execute("SELECT relname, relpages FROM pg_class LIMIT 60")
        cursor.fetchall()
    client.close()


def _ssh(scratch: Path) -> None:
    import paramiko  # noqa: PLC0415

    key = paramiko.RSAKey.generate(2048)

    def serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        transport = paramiko.Transport(peer)
        transport.add_server_key(key)
        transport.start_server(server=paramiko.ServerInterface())

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    with Relay(listener.getsockname()[1]) as relay:
        options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={scratch}/known", "BatchMode=yes"]
        command = ["ssh", "-p", str(relay.port), *(part for option in options for part in ("-o", option))]
        subprocess.run([*command, "127.0.0.1", "true"], check=False, capture_output=True, timeout=30)
        save("ssh", relay.streams)


def _smtp() -> None:
    import smtplib  # noqa: PLC0415

    from aiosmtpd.controller import Controller  # noqa: PLC0415
    from aiosmtpd.handlers import Sink  # noqa: PLC0415

    server = Controller(Sink(), hostname="127.0.0.1", port=free_port())
    server.start()
    with Relay(server.port) as relay, smtplib.SMTP("127.0.0.1", relay.port) as client:
        body = "Subject: report\r\n\r\nGET / HTTP/1.1\r\nHost: in a mail\r\n\r\n" + "line\r\n" * 100
        client.sendmail("a@example.com", ["b@example.com"], body)
        client.sendmail("a@example.com", ["b@example.com"], "Subject: two\r\n\r\ntwo")
        save("smtp", relay.streams)
    server.stop()


def _mongodb() -> None:
    import bson  # noqa: PLC0415
    import pymongo  # noqa: PLC0415

    hello: dict[str, Any] = {
        "ok": 1.0,
        "ismaster": True,
        "maxWireVersion": 17,
        "minWireVersion": 0,
        "maxBsonObjectSize": 1 << 24,
    }

    def serve(listener: socket.socket) -> None:
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    def answer(peer: socket.socket) -> None:
        while header := peer.recv(16, socket.MSG_WAITALL):
            size, request, _, code = (int.from_bytes(header[at : at + 4], "little") for at in (0, 4, 8, 12))
            peer.recv(size - 16, socket.MSG_WAITALL)
            found = hello | {
                "cursor": {"id": 0, "ns": "test.a", "firstBatch": [{"_id": n, "v": "x" * n} for n in range(20)]},
                "n": 1,
            }
            body = (
                b"\0\0\0\0\0" + bson.encode(found)
                if code == 2013
                else b"\x08" + b"\0" * 15 + b"\x01\0\0\0" + bson.encode(hello)
            )
            kind = 2013 if code == 2013 else 1
            peer.sendall(b"".join(n.to_bytes(4, "little") for n in (16 + len(body), 1, request, kind)) + body)

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    with Relay(listener.getsockname()[1]) as relay:
        client: Any = pymongo.MongoClient("127.0.0.1", relay.port)
        list(client.test.a.find({"path": "GET / HTTP/1.1"}))
        client.test.a.insert_one({"x": 1})
        client.close()
        save("mongodb", relay.streams)


def main() -> None:
    """Records everything."""
    folder = Path(sys.argv[1])
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        scratch.chmod(0o777)
        recorder = _Recorder(folder, scratch)
        port = free_port()
        recorder.run("redis", "usr/bin/redis-server", ["--port", str(port), "--dir", name, "--save", ""], port, _redis)
        port = free_port()
        recorder.run(
            "memcached", "usr/bin/memcached", ["-p", str(port), "-u", "nobody", "-l", "127.0.0.1"], port, _memcached
        )
        port = free_port()
        data = scratch / "mysql"
        (data / "mysql").mkdir(parents=True)
        shutil.chown(data, "nobody")
        arguments = [
            f"--datadir={data}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
            f"--socket={data}/s",
            f"--pid-file={data}/p",
            "--skip-grant-tables",
            "--skip-networking=0",
            f"--lc-messages-dir={folder}/usr/share/mysql",
            "--user=nobody",
            f"--log-error={data}/log",
        ]
        recorder.run("mysql", "usr/sbin/mariadbd", arguments, port, _mysql)
        port = free_port()
        data = scratch / "postgres"
        data.mkdir()
        shutil.chown(data, "nobody")
        subprocess.run(
            ["/usr/lib/postgresql/15/bin/initdb", "-D", str(data), "-A", "trust"],
            check=True,
            capture_output=True,
            user="nobody",
        )
        postgres = _Recorder(Path("/"), scratch)
        postgres.run(
            "postgres",
            "usr/lib/postgresql/15/bin/postgres",
            ["-D", str(data), "-p", str(port), "-k", str(data)],
            port,
            _postgres,
            "nobody",
        )
        _ssh(scratch)
        _smtp()
        _mongodb()


if __name__ == "__main__":
    main()
