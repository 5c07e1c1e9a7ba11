# SPDX-License-Identifier: Apache-2.0
"""`rover-host` as a process: signals, exit codes, standard error; a made-up distribution registers its modules."""

from __future__ import annotations

import json
import os
import pty
import queue
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rover_plugin.host import signals
from rover_plugin.host.lifecycle import Stop
from rover_plugin.host.signals import stop_on_signals
from tests.support.fake_modules import install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Host = Callable[..., subprocess.Popen[str]]

ROOT = Path(__file__).parents[3]
MAIN = "from rover_plugin.host.script import main; main()"
# As if Ctrl-C came while the script imports.
HELD = f"""
import os
from rover_plugin.host import script, stop_signals
def hold_and_interrupt():
    stop_signals.hold()
    os.kill(os.getpid(), {signal.SIGINT})
script.hold = hold_and_interrupt
script.main()
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    install(tmp_path)
    running: list[subprocess.Popen[str]] = []

    def start(
        *arguments: str, fake: str = "", stderr: int = subprocess.PIPE, main: str = MAIN
    ) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ROVER_")}
        process = subprocess.Popen(
            [sys.executable, "-c", main, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=clean | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "FAKE": fake},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def await_line(process: subprocess.Popen[str], line: str) -> None:
    """Reads standard output up to `line`; the module prints it when it gets there."""
    for read in process.stdout:
        if read.strip() == line:
            return
    pytest.fail(f"{line!r} never came: {process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_shuts_down_in_reverse_and_exits_0(host: Host, number: int) -> None:
    process = host("--modules", "beta,gamma")
    await_line(process, "beta notify")
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.splitlines() == ["beta shutdown", "alpha shutdown"]
    events = [json.loads(line) for line in errors.splitlines()]
    # The signal may come between the last notification and the line that says so; its thread stops before it speaks.
    inactive, starting, *others = events
    started, stopped, received = sorted(others, key=lambda event: event["event"])
    assert [event["event"] for event in (inactive, starting, started, received, stopped)] == [
        *("module_inactive", "rover_starting", "rover_started", "signal_received", "rover_stopped")
    ]
    assert starting["modules"] == ["alpha", "beta"]
    assert received["signal"] == signal.Signals(number).name


def test_a_second_signal_forces_the_exit_even_while_a_module_hangs_in_c(host: Host) -> None:
    process = host("--modules", "beta", fake="beta.shutdown=hang")
    await_line(process, "beta notify")
    process.send_signal(signal.SIGTERM)
    await_line(process, "beta shutdown")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.splitlines()[-1] == "rover-host: second signal, exit without flushing"


def test_two_signals_end_a_start_that_hangs_in_c(host: Host) -> None:
    process = host("--modules", "alpha", fake="alpha.start=hang")
    await_line(process, "alpha start")
    process.send_signal(signal.SIGTERM)
    while "signal_received" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT


def test_a_signal_that_make_sends_on_to_its_child_is_one_with_what_the_group_got(host: Host) -> None:
    process = host("--modules", "alpha,beta", fake="beta.shutdown=hang")
    await_line(process, "beta notify")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    await_line(process, "beta shutdown")
    # The module hangs; had the second signal counted, nobody would be there for a third.
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.count("signal_received") == 1


def test_the_same_signal_later_forces_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = queue.Queue[int]()
    monkeypatch.setattr(signals, "_ONE_REQUEST_S", 0.0)
    monkeypatch.setattr(signals, "say", lambda _: None)
    monkeypatch.setattr(signals.os, "_exit", ended.put)
    stop = Stop()
    with stop_on_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.get(timeout=30) == 128 + signal.SIGTERM


def test_signals_that_were_held_stop_the_host_before_its_start(host: Host) -> None:
    process = host("--modules", "alpha", main=HELD)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output == ""
    assert "signal_received" in errors
    assert "rover_started" not in errors


def test_signals_of_a_forked_child_are_its_own_and_a_terminals_do_not_end_it(host: Host) -> None:
    process = host("--modules", "beta", fake="alpha.start=fork")
    await_line(process, f"child {-signal.SIGTERM}")
    await_line(process, "beta notify")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.count("signal_received") == 1


def test_a_failed_start_exits_1_with_one_line_and_no_traceback(host: Host) -> None:
    process = host("--modules", "beta", "--set", "logger.level=error", fake="beta.start=error")
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert output.splitlines() == ["alpha start", "beta start", "alpha shutdown"]
    assert errors == "rover-host: module beta could not start: no such probe: use another kernel\n"


def test_an_address_that_telemetry_cannot_have_exits_1_with_one_line(host: Host) -> None:
    process = host("--modules", "beta", "--set", "logger.level=error", "--set", "telemetry.listen=192.0.2.1:9090")
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert output == ""
    assert errors.startswith(
        "rover-host: cannot serve telemetry on 192.0.2.1:9090: Cannot assign requested address: set"
    )
    assert errors.count("\n") == 1


def test_debugging_shows_the_traceback_before_the_line(host: Host) -> None:
    process = host("--modules", "alpha", "--set", "logger.level=debug", fake="alpha.start=bug")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("rover-host: module alpha could not start: ValueError: not thought of")


def test_on_a_terminal_the_log_is_for_people(host: Host) -> None:
    reader, terminal = pty.openpty()
    try:
        process = host("--modules", "alpha", stderr=terminal)
        await_line(process, "alpha notify")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        written = os.read(reader, 65536).decode()
    finally:
        os.close(terminal)
        os.close(reader)
    assert "rover_starting" in written
    assert '{"' not in written


def test_the_installed_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("rover-host")
    answer = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("rover-host, version ")
