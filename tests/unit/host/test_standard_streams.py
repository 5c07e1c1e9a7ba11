# SPDX-License-Identifier: Apache-2.0
"""Standard output and error may be closed, full or unread, at any time: a signal ends the host, with its exit code."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rover_plugin.host.logs import Speaker
from tests.support.fake_modules import install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]
# The module's own words go to descriptor 3: standard output is what is tried.
MAIN = """
import os, sys
from rover_plugin.host.cli import main
import rover_plugin.host.lifecycle as lifecycle
say = os.fdopen(3, "w", buffering=1)
run = lifecycle._start
def start(*arguments):
    done = run(*arguments)
    say.write("started\\n")
    return done
lifecycle._start = start
main()
"""
END_S = 20


class Host:
    """`rover-host` with standard output and error of the given kinds: closed, full, unread, or left by its reader."""

    def __init__(self, folder: Path, out: str, err: str, level: str = "debug") -> None:
        install(folder)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ROVER_")}
        told, self._told = os.pipe()[::-1]
        self._ends: list[int] = []
        kinds = {1: out, 2: err}
        targets = {number: self._open(kind) for number, kind in kinds.items()}

        def prepare() -> None:
            os.dup2(told, 3)
            for number, kind in kinds.items():
                if kind == "closed":
                    os.close(number)

        command = [sys.executable, "-c", MAIN, "--modules", "beta", "--set", f"logger.level={level}"]
        self.process = subprocess.Popen(
            command,
            stdout=targets[1],
            stderr=targets[2],
            pass_fds=(3, told),
            preexec_fn=prepare,  # noqa: PLW1509 the only way to close a standard descriptor
            env=clean | {"PYTHONPATH": f"{folder}:{ROOT}", "FAKE": "quiet"},
        )
        os.close(told)
        for target in targets.values():
            os.close(target)

    def _open(self, kind: str) -> int:
        if kind == "full":
            return os.open("/dev/full", os.O_WRONLY)
        if kind in {"unread", "left"}:
            read_end, write_end = os.pipe()
            self._ends.append(read_end)
            if kind == "unread":
                os.set_blocking(write_end, False)
                while select.select([], [write_end], [], 0)[1]:
                    os.write(write_end, bytes(select.PIPE_BUF))
                os.set_blocking(write_end, True)
            return write_end
        return os.open(os.devnull, os.O_WRONLY)

    def await_start(self) -> None:
        said = os.read(self._told, 100)
        assert said == b"started\n", self.process.wait(END_S)

    def readers_leave(self) -> None:
        for end in self._ends:
            os.close(end)
        self._ends = []

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.readers_leave()
        os.close(self._told)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def start(*kinds: str) -> Host:
        made.append(Host(tmp_path, *kinds))
        return made[-1]

    yield start
    for one in made:
        one.close()


KINDS = ("closed", "full", "unread", "left", "null")


@pytest.mark.parametrize("err", KINDS)
@pytest.mark.parametrize("out", KINDS)
def test_a_signal_ends_it_whatever_its_standard_streams_are(host: Callable[..., Host], out: str, err: str) -> None:
    subject = host(out, err)
    if "left" in {out, err} and "unread" not in {out, err}:
        subject.readers_leave()  # while it starts
    subject.await_start()
    assert subject.stop() == 0


@pytest.mark.parametrize(("out", "err"), [("left", "left"), ("null", "left"), ("left", "null")])
def test_readers_that_leave_a_running_host_do_not_keep_it_from_ending(
    host: Callable[..., Host], out: str, err: str
) -> None:
    subject = host(out, err)
    subject.await_start()
    subject.readers_leave()
    assert subject.process.poll() is None
    assert subject.stop() == 0


def test_a_second_signal_forces_the_exit_of_one_whose_errors_nobody_reads(host: Callable[..., Host]) -> None:
    subject = host("unread", "unread")
    subject.await_start()
    subject.process.send_signal(signal.SIGSTOP)
    subject.process.send_signal(signal.SIGTERM)
    subject.process.send_signal(signal.SIGINT)
    subject.process.send_signal(signal.SIGCONT)
    assert subject.process.wait(END_S) in {0, 128 + signal.SIGINT, 128 + signal.SIGTERM}


def test_a_closed_standard_stream_is_not_the_next_file_that_is_opened(tmp_path: Path) -> None:
    script = f"exec {sys.executable} -c 'import rover_plugin.host.cli as c, os; c.prepare_standard_descriptors();"
    script += 'print([os.readlink(f"/proc/self/fd/{n}") for n in range(3)], file=open("seen", "w"))\' <&- >&- 2>&-'
    subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "seen").read_text() == f"{['/dev/null'] * 3}\n"


# -- what is said --


def test_lines_that_nobody_reads_are_counted_and_the_number_is_said_later() -> None:
    read_end, write_end = os.pipe()
    with open(write_end, "w") as stream:  # noqa: PTH123 a descriptor
        speaker = Speaker(stream)
        for _ in range(3000):
            speaker.write("x" * 100 + "\n")
        unsaid = speaker.unsaid
        assert 0 < unsaid < 3000
        assert len(os.read(read_end, 1 << 20)) < 1 << 17
        speaker.write("again\n")
    lines = os.read(read_end, 1 << 20).decode().splitlines()
    os.close(read_end)
    assert json.loads(lines[-2]) == {"event": "log_lines_unsaid", "lines": unsaid}
    assert lines[-1] == "again"


def test_a_line_that_was_cut_gets_an_end_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with path.open("a") as stream:
        speaker = Speaker(stream)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            speaker.write("a long first line\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        speaker.write("second\n")
    lines = path.read_text().splitlines()
    assert lines[0] == "a long fir"
    assert json.loads(lines[1])["lines"] == 1
    assert lines[2:] == ["second"]


def test_lines_of_many_threads_stay_whole() -> None:
    read_end, write_end = os.pipe()
    lines: list[bytes] = []
    with open(read_end, "rb") as reading:  # noqa: PTH123 a descriptor
        reader = threading.Thread(target=lambda: lines.extend(reading))
        reader.start()
        with open(write_end, "w") as stream:  # noqa: PTH123 see above
            speaker = Speaker(stream)
            threads = [
                threading.Thread(target=lambda n=n: [speaker.write(f"{n}" * 5000 + "\n") for _ in range(20)])
                for n in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        speaker._outlet.close()  # type: ignore[union-attr]
        reader.join()
    assert speaker.unsaid == 0
    assert {line.rstrip(b"\n") for line in lines} == {b"%d" % n * 5000 for n in range(4)}
    assert len(lines) == 80
