# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what processes may write into /proc: names, arguments, cgroups. See README.md beside this.

Run: python -m tests.fuzz.fuzz_proc [libFuzzer options] [corpus folders]
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["rover_plugin.discovery"]):
        import rover_plugin.discovery.naming
        import rover_plugin.discovery.procfs
        import rover_plugin.discovery.sockets  # noqa: F401

from rover_plugin.discovery.cgroups import parse_cgroup, unified_id
from rover_plugin.discovery.procfs import parse_cmdline, read_process
from rover_plugin.discovery.secrets import hide_secrets

PROC = TemporaryDirectory(prefix="rover-fuzz-proc-")
_FOLDER = Path(PROC.name, "7")
# The kernel writes the numbers; what a process chooses is its name, arguments and the names of its cgroups.
_STAT = b"7 (%b) S 1 7 7 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 4242 1 1"
_STATUS = b"Name:\t%b\nUmask:\t0022\nUid:\t0\t0\t0\t0\n"


def test_one_input(data: bytes) -> None:
    """The name, the command line and the cgroup, separated by the bytes FF FE: all are read, or the process is none."""
    comm, cmdline, cgroup = ([*data.split(b"\xff\xfe", 2), b"", b""])[:3]
    (_FOLDER / "ns").mkdir(parents=True, exist_ok=True)
    (_FOLDER / "stat").write_bytes(_STAT % comm[:15])
    # fs/proc/array.c escapes line feeds and backslashes in `status`, and nowhere else.
    (_FOLDER / "status").write_bytes(_STATUS % comm[:15].replace(b"\\", b"\\\\").replace(b"\n", b"\\n"))
    (_FOLDER / "cmdline").write_bytes(cmdline)
    (_FOLDER / "cgroup").write_bytes(cgroup)
    for name, target in (("exe", "/bin/x"), ("ns/pid", "pid:[4026531836]")):
        if not (_FOLDER / name).is_symlink():
            (_FOLDER / name).symlink_to(target)
    facts = read_process(7, PROC.name)
    assert facts is not None
    assert facts.key.start_time == 4242
    text = cgroup.decode(errors="replace")
    parse_cgroup(text)
    unified_id(text)
    assert len(list(hide_secrets(parse_cmdline(cmdline)))) == len(facts.cmdline)


def main() -> None:
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
