# SPDX-License-Identifier: Apache-2.0
"""What the agent starts takes no module, program or setting from whoever can write to its folder or environment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from rover_plugin.host import children
from rover_plugin.host.stop_signals import spawn

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user: needs root")

_SHOW = """
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "path": sys.path}))
"""


def shown(module: str, *arguments: str) -> dict[str, object]:
    read, write = os.pipe()
    with os.fdopen(read) as answer:
        process = spawn(children.python_command(module, *arguments), stdout=write)
        os.close(write)
        text = answer.read()
    assert process.wait(30) == 0
    found: dict[str, object] = json.loads(text)
    return found


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "ours"
    folder.mkdir()
    (folder / "shown_by_a_test.py").write_text(_SHOW)
    monkeypatch.syspath_prepend(folder)
    return "shown_by_a_test"


@pytest.mark.parametrize("planted", ["dis", "json", "runpy", "ctypes", "structlog"])
def test_no_module_is_taken_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, planted: str
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / f"{planted}.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(evil)
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, str(evil))
    found = shown(module, "1", '{"two": 2}')
    assert found["argv"] == ["1", '{"two": 2}']
    assert found["cwd"] == "/"
    assert str(evil) not in json.dumps(found)
    assert set(found["env"]) <= {  # type: ignore[call-overload]
        *("LANG", "PATH", "HOME", "CACHE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_CACHE_HOME", "LC_CTYPE")
    }


def test_what_this_process_imports_from_comes_behind_pythons_own(module: str) -> None:
    path = shown(module)["path"]
    assert isinstance(path, list)
    own = [at for at, item in enumerate(path) if item.startswith(sys.base_prefix) and "packages" not in item]
    assert own
    assert max(own) < next(at for at, item in enumerate(path) if Path(item, f"{module}.py").exists())


def program_in(folder: Path, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    tool = folder / "tool-of-a-test"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(mode)
    return tool


def test_a_program_is_found_by_the_path_where_nobody_else_can_have_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = program_in(tmp_path / "bin")
    monkeypatch.setenv("PATH", f":.:relative:{tmp_path}/missing:{tool.parent}")
    assert children.program(tool.name) == str(tool)
    assert str(tool.parent) in children.environment()["PATH"]
    assert "relative" not in children.environment()["PATH"]
    assert children.program("no-such-tool-of-a-test") is None


@needs_root
@pytest.mark.parametrize(
    "spoil",
    [
        lambda tool: tool.chmod(0o757),
        lambda tool: tool.chmod(0o775),
        lambda tool: os.chown(tool, NOBODY, NOBODY),
        lambda tool: tool.parent.chmod(0o777),
        lambda tool: tool.parent.chmod(0o1777),
        lambda tool: os.chown(tool.parent, NOBODY, NOBODY),
        lambda tool: tool.parent.parent.chmod(0o777),
        lambda tool: os.chown(tool.parent.parent, NOBODY, NOBODY),
    ],
)
def test_a_program_that_others_can_change_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: object
) -> None:
    (tmp_path / "above").mkdir()
    tool = program_in(tmp_path / "above" / "bin")
    monkeypatch.setenv("PATH", str(tool.parent))
    assert children.program(tool.name)
    spoil(tool)  # type: ignore[operator]
    assert children.program(tool.name) is None


@needs_root
def test_a_link_is_worth_what_it_leads_to(tmp_path: Path) -> None:
    theirs = program_in(tmp_path / "theirs")
    os.chown(theirs, NOBODY, NOBODY)
    ours = tmp_path / "link"
    ours.symlink_to(theirs)
    assert not children.is_private(ours)
    os.chown(theirs, 0, 0)
    assert children.is_private(ours)
    assert not children.is_private(tmp_path / "missing")
