# SPDX-License-Identifier: Apache-2.0
"""What a process gives up, it and all it starts no longer have."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from rover_plugin.capture import confinement

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")

STATUS = "import re; print(open('/proc/self/status').read())"


def run(code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what is given up does not come back."""
    head = "import os, subprocess, sys\nfrom rover_plugin.capture.confinement import *\n"
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, timeout=60, check=False)


def fields(status: str) -> dict[str, int]:
    return {
        name: int(value, 16)
        for name, value in re.findall(r"^(Cap\w+|NoNewPrivs|Seccomp):\s*(\w+)$", status, re.MULTILINE)
    }


def test_only_the_named_capabilities_stay_for_itself_and_for_what_it_starts() -> None:
    done = run(
        "keep_capabilities(['bpf', 'sys_ptrace'])\nprint(open('/proc/self/status').read(), flush=True)\n"
        f"subprocess.run([sys.executable, '-c', {STATUS!r}])"
    )
    own, child = (fields(part) for part in done.stdout.split("Name:")[1:])
    kept = 1 << confinement.CAPABILITIES["bpf"] | 1 << confinement.CAPABILITIES["sys_ptrace"]
    for status in (own, child):
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert status[name] & ~kept == 0, (name, done.stdout)
            assert status[name] == own["CapEff"]
        assert status["NoNewPrivs"] == 1
    assert confinement.names_of(own["CapEff"]) == ["sys_ptrace", "bpf"]


def test_as_another_user_the_kept_capabilities_stay_and_pass_on() -> None:
    done = run(
        "keep_capabilities(['bpf'], user='nobody')\nprint(os.getuid(), os.getgroups(), flush=True)\n"
        "subprocess.run(['/bin/cat', '/proc/self/status'])"
    )
    first, _, status = done.stdout.partition("\n")
    assert first.split()[0] != "0"
    assert first.endswith("[]")
    assert confinement.names_of(fields(status)["CapEff"]) == ["bpf"], done


def test_an_unknown_user_is_refused_by_name() -> None:
    assert "there is no user nosuchuser" in run("keep_capabilities([], user='nosuchuser')").stderr


def test_a_process_of_several_threads_is_refused() -> None:
    done = run(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\nkeep_capabilities([])"
    )
    assert "one thread" in done.stderr


@pytest.mark.parametrize(
    "forbidden",
    [
        "open('/etc/passwd')",
        "open('/tmp/x', 'w')",
        "subprocess.run(['/bin/true'])",
        "__import__('socket').socket()",
        "os.kill(1, 0)",
        "os.fork()",
        "os.chdir('/')",
        "os.unlink('/tmp/x')",
    ],
)
def test_a_confined_worker_cannot(forbidden: str) -> None:
    done = run(
        f"print(confine_worker())\ntry:\n    {forbidden}\n"
        "except PermissionError:\n    print('refused')\nelse:\n    print('allowed')"
    )
    assert done.stdout.startswith("True\nrefused"), done


def test_a_confined_worker_still_works_with_memory_descriptors_and_clocks() -> None:
    done = run(
        "import time, select\nr, w = os.pipe()\nconfine_worker(kill=True)\n"
        "x = bytearray(50 << 20); del x; os.write(w, b'a'); select.select([r], [], [], 1); os.read(r, 1)\n"
        "time.sleep(0.001); time.time_ns(); os.urandom(4); [b'%d' % i for i in range(100000)]\n"
        "print('alive', flush=True)"
    )
    assert done.stdout == "alive\n"
    assert done.returncode == 0, done


def test_calls_by_the_numbers_of_another_architecture_end_the_process() -> None:
    # int 0x80 is the 32-bit table on x86-64, where number 5 is open(2).
    if os.uname().machine != "x86_64":
        pytest.skip("the other table is reached by an x86 instruction")
    done = run(
        "import ctypes, mmap\ncode = bytes.fromhex('b814000000cd80c3')  # mov eax, 20 (getpid); int 0x80; ret\n"
        "m = mmap.mmap(-1, 4096, prot=7); m.write(code)\n"
        "call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
        "confine_worker(); call(); print('alive')"
    )
    assert done.returncode < 0
    assert "alive" not in done.stdout
