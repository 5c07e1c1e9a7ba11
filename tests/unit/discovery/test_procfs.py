# SPDX-License-Identifier: Apache-2.0
"""What is read of real processes, and of some that /proc only pretends to have."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rover_plugin.discovery.listeners import listening_ports
from rover_plugin.discovery.procfs import MAX_CMDLINE_BYTES, parse_cmdline, pids, read_process

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command) as process:
        try:
            # Popen returns as soon as execve(2) has begun; arguments come last.
            while psutil.Process(process.pid).cmdline()[1:] != list(command[1:]):
                os.sched_yield()
            yield process
        finally:
            process.kill()


def test_a_process_is_read_as_psutil_reads_it() -> None:
    with running("sleep", "60") as process:
        facts, other = read_process(process.pid), psutil.Process(process.pid)
        assert facts is not None
        assert facts.exe == other.exe()
        assert list(facts.cmdline) == other.cmdline() == ["sleep", "60"]
        assert facts.parent == os.getpid()
        assert facts.comm == other.name()
        assert facts.uid == other.uids().effective
        ticks = os.sysconf("SC_CLK_TCK")
        assert abs(facts.key.start_time / ticks - (other.create_time() - psutil.boot_time())) < 2
        assert facts.pid_namespace == Path("/proc/self/ns/pid").stat().st_ino


def test_all_processes_of_the_host_can_be_read() -> None:
    found = {pid for pid in pids() if read_process(pid) is not None}
    assert os.getpid() in found
    assert os.getppid() in found


def test_threads_of_the_kernel_are_not_processes() -> None:
    kthreadd = 2
    assert read_process(kthreadd) is None


def test_a_process_that_is_gone_is_nothing() -> None:
    process = subprocess.Popen(["true"])
    assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is not None
    assert read_process(process.pid) is None  # a zombie
    process.wait()
    assert read_process(process.pid) is None


def test_a_leader_that_ended_before_its_threads_is_still_a_process() -> None:
    program = (
        "import ctypes,threading,time; threading.Thread(target=time.sleep,args=(60,)).start(); print(flush=True); "
    )
    program += "ctypes.CDLL(None).pthread_exit(None)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
                os.sched_yield()
            facts = read_process(process.pid)
            assert facts is not None
            assert facts.key.pid == process.pid
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_name_with_parentheses_and_spaces_does_not_confuse_the_reader(tmp_path: Path) -> None:
    program = tmp_path / ") R 1 (x"
    program.symlink_to("/bin/sleep")
    with running(str(program), "60") as process:
        facts = read_process(process.pid)
        assert facts is not None
        assert facts.comm == program.name
        assert facts.parent == os.getpid()


def test_a_directory_without_the_expected_files_is_a_process_that_just_ended(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    assert list(pids(str(tmp_path))) == [42]
    assert read_process(42, str(tmp_path)) is None


def test_command_lines_are_split_and_bounded() -> None:
    assert parse_cmdline(b"nginx\0-g\0\0x\0") == ("nginx", "-g", "", "x")
    assert parse_cmdline(b"gunicorn: master [x]\0\0\0\0") == ("gunicorn: master [x]",)
    assert parse_cmdline(b"") == ()
    with running("sleep", "60", *["0" * 1000] * 10) as process:
        facts = read_process(process.pid)
        assert facts is not None
        assert sum(len(argument) + 1 for argument in facts.cmdline) <= MAX_CMDLINE_BYTES + 1


def test_listening_ports_are_found_for_both_families_and_no_others() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.create_connection(four.getsockname()),
    ):
        expected = {four.getsockname()[1], six.getsockname()[1]}
        gone = 2**22 + 1  # above any pid_max
        found = listening_ports([os.getpid(), gone])
        assert found.keys() == {os.getpid()}
        assert expected <= found[os.getpid()]
        assert four.getsockname()[1] in expected
    assert not expected & listening_ports([os.getpid()])[os.getpid()]
