# SPDX-License-Identifier: Apache-2.0
"""What is said of a build helper that ends without an answer, by whatever cause; real processes stand for it."""

from __future__ import annotations

import sys
from itertools import takewhile

import pytest
from structlog.testing import capture_logs

from rover_plugin.cancellation import Cancellation
from rover_plugin.capture import loader
from rover_plugin.errors import BuildError


def build(monkeypatch: pytest.MonkeyPatch, program: str, patience: loader.BuildPatience) -> str:
    """Builds with a helper that runs this Python program; returns the error's text."""
    monkeypatch.setattr(loader, "python_command", lambda *told: [sys.executable, "-c", program, *told])
    with pytest.raises(BuildError) as caught:
        loader._build({}, Cancellation(), patience)
    return str(caught.value)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGABRT", "SIGSEGV", "SIGBUS"])
def test_an_end_for_want_of_memory_names_what_is_needed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program = f"import os, signal; os.kill(os.getpid(), signal.{name})"
    said = build(monkeypatch, program, loader.BuildPatience())
    assert name in said
    assert "it needs 170 MB beside the agent" in said


def test_any_other_end_shows_its_code_and_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as logs:
        said = build(monkeypatch, "import sys; print('clang says'); sys.exit(3)", loader.BuildPatience())
    assert "(exit code 3): report it with the log above" in said
    assert [entry["text"] for entry in logs if entry["event"] == "bpf_build_log"] == ["clang says\n"]


def test_a_map_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import socket, sys
print("could not open bpf map: policies, error: Cannot allocate memory", flush=True)
socket.socket(fileno=int(sys.argv[-1])).sendall(b'{"error": "does not compile", "hint": "", "cause": ""}\\n')
"""
    said = build(monkeypatch, program, loader.BuildPatience())
    assert "no room for the BPF map policies" in said
    assert "access_log.connections.max" in said


@pytest.mark.parametrize(
    "program",
    ["import signal; signal.pause()", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"],
    ids=["waits", "stopped"],
)
def test_one_that_has_stopped_working_is_given_up_with_that_reason(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    said = build(monkeypatch, program, loader.BuildPatience(idle=1.5))
    assert "has not worked for 2 s" in said
    assert "report" not in said


def test_one_that_works_on_and_on_is_said_to_be_slow_and_given_up_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as logs:
        said = build(monkeypatch, "while True: pass", loader.BuildPatience(idle=60, total=4, notice=1))
    assert "took longer than 4 s" in said
    assert "CPU" in said
    events = [entry["event"] for entry in logs]
    assert len(list(takewhile("bpf_build_slow".__eq__, events))) >= 2
