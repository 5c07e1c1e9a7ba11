# SPDX-License-Identifier: Apache-2.0
"""The quick form of the programs builds with every bpftool: newer ones declare the kernel's functions, too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rover_plugin.capture import headers
from rover_plugin.capture.session import Capture, CaptureOptions
from tests.support.capture import needs_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, needs_capture]

_DECLARATIONS = """
#ifndef __ksym
#define __ksym __attribute__((section(".ksyms")))
#endif
#ifndef __weak
#define __weak __attribute__((weak))
#endif
extern void *bpf_rdonly_cast(const void *obj__ign, u32 btf_id__k) __weak __ksym;
extern struct task_struct *bpf_task_acquire(struct task_struct *p) __weak __ksym;
"""
_LOAD = """
import json
from structlog.testing import capture_logs
from rover_plugin.capture.session import Capture, CaptureOptions
with capture_logs() as logs:
    capture = Capture(CaptureOptions())
print(json.dumps([capture.plain_reason, [line["event"] for line in logs]]))
"""
_OLD, _GUARDED, _UNGUARDED = "", f"#ifndef BPF_NO_KFUNC_PROTOTYPES\n{_DECLARATIONS}\n#endif\n", _DECLARATIONS


@pytest.fixture
def loaded() -> Iterator[Capture]:
    capture = Capture(CaptureOptions())
    yield capture
    capture.close()


def test_this_machine_loads_the_quick_form(loaded: Capture) -> None:
    assert loaded.plain_reason == ""


@pytest.mark.parametrize("functions", [_OLD, _GUARDED, _UNGUARDED], ids=["none", "guarded", "unguarded"])
def test_declared_kernel_functions_do_no_harm(tmp_path: Path, functions: str) -> None:
    installed = headers.bpftool_path()
    real = shutil.copy(installed, tmp_path / "real")
    (tmp_path / "functions.h").write_text(functions)
    tool = tmp_path / "bpftool"
    # What this machine's bpftool declares itself is left out.
    tool.write_text(
        f"#!/bin/sh\n{real} \"$@\" | sed '/^extern .*__ksym;$/d'\n[ $1 = version ] || cat {tmp_path}/functions.h\n"
    )
    tool.chmod(0o755)
    # The headers made of it are nobody else's, and the tool stands where it alone is found.
    mounts = f'mount -t tmpfs -o mode=755 none /var/cache; mount --bind {tool} {Path(installed).resolve()}; exec "$@"'
    apart = ("unshare", "--mount", "sh", "-ec", mounts, "sh")
    done = subprocess.run(
        [*apart, sys.executable, "-c", _LOAD],
        env={"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["", []]
