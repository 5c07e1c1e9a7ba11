# SPDX-License-Identifier: Apache-2.0
"""Random faults under steady load: at the end what was logged and what was counted lost is what was sent.

A backend that dies, or halts; a disk that is full; a reader that stops reading; a feed that goes and comes; a worker
that halts. `ROVER_TEST_FAULTS_SECONDS` makes it longer, `ROVER_TEST_FAULTS_SEED` repeats one. A step of the wall clock
is not among them: no namespace has a CLOCK_REALTIME of its own (time_namespaces(7)), and the host's is everybody's.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from rover_plugin.access_log.outputs.skywalking_pace import MOST_MESSAGES
from tests.support.agent import ROOT, ROVER_HOST, Agent
from tests.support.oap_process import OapProcess
from tests.support.servers import Nginx, free_port, tool, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

SECONDS = int(os.environ.get("ROVER_TEST_FAULTS_SECONDS", "40"))
SEED = int(os.environ.get("ROVER_TEST_FAULTS_SEED", random.randrange(1 << 32)))
REQUESTS_PER_SECOND = 80
LONGEST_FAULT_S = 4.0 if SECONDS < 120 else 15.0
OUTPUTS = ("skywalking", "jsonl", "console")


class Reader:
    """Counts the lines of a pipe; may be halted."""

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe()
        self._may_read = threading.Event()
        self._may_read.set()
        self._file = os.fdopen(read_end, "rb", buffering=1 << 16)
        self.exchanges = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        self._may_read.clear()
        yield
        self._may_read.set()

    def close(self) -> None:
        """After the last writer has gone."""
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with self._file:
            for line in self._file:
                self._may_read.wait()
                self.exchanges += b" GET " in line


class FeedHost:
    """Another host's process discovery, whose feed the agent follows."""

    def __init__(self, socket: Path, *settings: str) -> None:
        told = (f"process_discovery.feed.socket={socket}", "process_discovery.local.active=true", *settings)
        self._command = [ROVER_HOST, "--modules", "process_discovery"]
        self._command += [word for setting in told for word in ("--set", setting)]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if '"rover_started"' in line:
                return
        pytest.fail("the feed's host did not start")

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        assert "Traceback" not in self._process.communicate(timeout=30)[1]

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        yield
        self.start()


@contextlib.contextmanager
def halted(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def away(oap: OapProcess) -> Iterator[None]:
    oap.kill()
    yield
    oap.start()


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    yield
    filler.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def worker(agent: Agent, chance: random.Random) -> int:
    children = psutil.Process(agent.pid).children()
    return chance.choice([child.pid for child in children if "rover_plugin.access_log.worker" in child.cmdline()])


def made_of(totals: dict[str, Any], output: str) -> tuple[int, dict[str, int]]:
    """Exchanges exported by an output (or kept by it), and those it lost, by reason."""
    prefix = f"{output}_protocol_"
    lost = {name.removeprefix(f"{prefix}lost_"): n for name, n in totals.items() if name.startswith(f"{prefix}lost_")}
    return totals[f"{prefix}exported"] + totals.get(f"{prefix}kept_on_disk", 0), lost


@pytest.mark.timeout(300 + 2 * SECONDS)
def test_what_is_logged_and_what_is_counted_lost_is_what_was_sent(tmp_path: Path, nginx: Nginx) -> None:
    chance = random.Random(SEED)
    print(f"ROVER_TEST_FAULTS_SEED={SEED}")
    requests = REQUESTS_PER_SECOND * SECONDS
    load_command = [tool("h2load"), "--h1", f"--rps={REQUESTS_PER_SECOND // 4}", "-c4", "-t1", f"-n{requests}"]
    # Only the server, which is there before the agent: the first records of a client that starts later wait in a ring
    # that all else that starts on this machine can fill, and are counted there (provisional_full), not as exchanges.
    chosen = (f"process_discovery.local.include=port={nginx.port}",)
    feed = FeedHost(tmp_path / "other.sock", *chosen)
    feed.start()
    reader = Reader()
    telemetry = free_port()
    with (
        small_disk(tmp_path / "disk", f"{4 + SECONDS // 4}m") as disk,
        OapProcess(tmp_path, "--keep", "counts") as oap,
    ):
        settings = (
            f"core.backend.addr={oap.address}",
            f"access_log.feed=unix:{tmp_path}/other.sock",
            f"access_log.jsonl.path={disk}/log.jsonl",
            f"access_log.spool.directory={tmp_path}/spool",
            "access_log.spool.max_bytes=256KB",
            "access_log.flush.period=1s",
            "access_log.protocol_analyze.per_cpu_buffer=4MB",
            f"telemetry.listen=127.0.0.1:{telemetry}",
            *chosen,
        )
        with Agent(tmp_path, ",".join(OUTPUTS), *settings, stdout=reader.write_end) as agent:
            os.close(reader.write_end)
            faults: dict[str, Callable[[], AbstractContextManager[None]]] = {
                "backend_killed": lambda: away(oap),
                "backend_halted": lambda: halted(oap.pid),
                "disk_full": lambda: full(disk),
                "reader_halted": reader.halted,
                "feed_restarted": feed.away,
                "worker_halted": lambda: halted(worker(agent, chance)),
            }
            happened: dict[str, int] = dict.fromkeys(faults, 0)
            load = subprocess.Popen([*load_command, nginx.url()], stdout=subprocess.PIPE, text=True)
            oap.wait_for(lambda: oap.tally.protocol > 100)
            while load.poll() is None:
                name = min(chance.sample(sorted(faults), 3), key=happened.__getitem__)
                happened[name] += 1
                with faults[name]():
                    # A fault's length is what the test is about, not a wait for something.
                    time.sleep(chance.uniform(0.2, LONGEST_FAULT_S))
                wait_for_port(telemetry)
                time.sleep(chance.uniform(0.2, 1.0))
            printed, _ = load.communicate()
            assert agent.stop() == 0, agent.text
        reader.close()
        lines = (disk / "log.jsonl").read_bytes().splitlines(keepends=True)
        report = oap.stop()
    feed.stop()
    sent = int(re.search(r"(\d+) succeeded", printed)[1])  # type: ignore[index]
    totals = agent.wait_for_event("access_log_totals")
    print(f"sent {sent}, faults {happened}, {totals}, {report}")
    assert sent == requests
    assert totals["imbalance"] == totals["held"] == 0
    # A lost record may be an exchange's, or not; none is lost unless a ring ran over.
    unread = totals["lost_ring"]
    for output in OUTPUTS:
        exported, lost = made_of(totals, output)
        assert sent - unread <= exported + sum(lost.values()) <= sent, (output, exported, lost)
    assert all(line.endswith(b"}\n") for line in lines)
    assert sum(b'"kind":"exchange"' in line for line in lines) == totals["jsonl_protocol_exported"]
    assert reader.exchanges == totals["console_protocol_exported"]
    unconfirmed = made_of(totals, "skywalking")[1].get("send_unconfirmed", 0)
    assert totals["skywalking_protocol_exported"] <= report["protocol"]
    assert report["protocol"] <= totals["skywalking_protocol_exported"] + unconfirmed
    assert unconfirmed <= MOST_MESSAGES * (happened["backend_killed"] + happened["backend_halted"])
    assert report["dropped"] == 0
