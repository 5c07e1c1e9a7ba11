# SPDX-License-Identifier: Apache-2.0
"""`scripts/install`: the environment in .venv is made once, and anew where it is of no use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A Python that makes environments of which only this is known: what they say they find, and what was installed.
_PYTHON = """#!/bin/sh
echo "python $*" >>"$LOG"
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  { echo '#!/bin/sh'
    echo 'echo "environment $*" >>"$LOG"'
    echo 'case "$1 $2" in "-m pip") touch "${0%/*}/installed" ;; *) [ -e "${0%/*}/installed" ] && echo '"$PWD"' ;; esac'
  } >"$3/bin/python"
  chmod 755 "$3/bin/python"
fi
"""


class Checkout:
    """A checkout with the scripts, a Python of its own, and what was done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts/install", folder / "scripts")
        for name, text in {"scripts/packages": "#!/bin/sh\n", "python": _PYTHON}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "pyproject.toml").touch()

    def install(self, kind: str = "run") -> tuple[list[str], str]:
        """Runs the script; what it asked Python to make or install, and what it said."""
        log = self.folder / "log"
        log.write_text("")
        environment = os.environ | {"PYTHON": str(self.folder / "python"), "LOG": str(log)}
        done = subprocess.run(
            [self.folder / "scripts/install", kind], env=environment, check=True, capture_output=True, text=True
        )
        made = [line for line in log.read_text().splitlines() if "-m venv" in line or "-m pip" in line]
        return [line.split()[2] + line.split()[-1].removeprefix(".venv") for line in made], done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path.resolve() / "checkout")


def test_it_is_made_once(checkout: Checkout) -> None:
    assert checkout.install() == (["venv", "pip."], "")
    assert checkout.install() == ([], "")
    assert checkout.install("dev") == (["pip.[dev]"], "")
    assert checkout.install("dev") == ([], "")
    assert checkout.install() == ([], "")


def test_what_pyproject_asks_for_anew_is_installed_into_it(checkout: Checkout) -> None:
    checkout.install()
    stamp = (checkout.folder / ".venv/.installed-run").stat().st_mtime
    os.utime(checkout.folder / "pyproject.toml", (stamp + 10, stamp + 10))
    assert checkout.install() == (["pip."], "")


def test_an_interpreter_that_has_gone_has_it_made_anew_with_a_word(checkout: Checkout) -> None:
    checkout.install("dev")
    python = checkout.folder / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.0-which-the-upgrade-took-away")
    made, said = checkout.install()
    assert made == ["venv", "pip."]
    assert "another Python" in said
    assert checkout.install("dev") == (["pip.[dev]"], "")


def test_an_interpreter_of_another_version_finds_nothing_and_has_it_made_anew(checkout: Checkout) -> None:
    checkout.install()
    (checkout.folder / ".venv/bin/installed").unlink()
    made, said = checkout.install()
    assert made == ["venv", "pip."]
    assert "another Python" in said


def test_a_checkout_that_was_moved_makes_its_own(checkout: Checkout, tmp_path: Path) -> None:
    checkout.install()
    checkout.folder = checkout.folder.rename(tmp_path.resolve() / "moved")
    made, said = checkout.install()
    assert made == ["venv", "pip."]
    assert "folder" in said


def test_one_that_was_interrupted_before_anything_was_installed_is_made_anew(checkout: Checkout) -> None:
    (checkout.folder / ".venv/bin").mkdir(parents=True)
    assert checkout.install() == (["venv", "pip."], "")
