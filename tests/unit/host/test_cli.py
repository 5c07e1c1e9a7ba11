# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import structlog
from click.testing import CliRunner, Result

from rover_plugin import __version__
from rover_plugin.host.cli import cli
from tests.support.fake_modules import install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("ROVER_")]:
        monkeypatch.delenv(name)
    yield
    structlog.reset_defaults()


def rover_host(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="rover-host")


def rows(result: Result) -> dict[str, list[str]]:
    assert result.exit_code == 0, result.stderr
    return {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}


def test_help_lists_commands_and_exit_codes() -> None:
    result = rover_host("--help")
    assert result.exit_code == 0
    for word in ("--modules", "--config", "--set", "check", "config", "modules", "Exit codes:", "128+n"):
        assert word in result.stdout


def test_version() -> None:
    assert rover_host("--version").stdout == f"rover-host, version {__version__}\n"


def test_without_modules_or_command_it_says_what_to_name() -> None:
    result = rover_host()
    assert result.exit_code == 2
    assert "name the modules to run, such as --modules access_log" in result.stderr


def test_modules_and_a_command_exclude_each_other() -> None:
    result = rover_host("--modules", "core", "config")
    assert result.exit_code == 2
    assert "--modules does not go with the command config" in result.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    result = rover_host("confg")
    assert result.exit_code == 2
    assert "No such command 'confg'" in result.stderr


def test_config_shows_values_and_origins(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[access_log]\noutputs = ['console', 'jsonl']\n")
    shown = rows(rover_host("config", "--config", str(file), "--set", "access_log.flush.period=1s"))
    assert shown["access_log.outputs"] == ["console,jsonl", f"{file}:2"]
    assert shown["access_log.flush.period"] == ["1s", "--set"]
    assert shown["access_log.flush.max_count"] == ["2000", "default"]


def test_options_count_before_and_after_the_commands_name() -> None:
    arguments = ("--set", "access_log.flush.period=1s", "--set", "access_log.flush.max_count=1", "config")
    shown = rows(rover_host(*arguments, "--set", "access_log.flush.max_count=2"))
    assert shown["access_log.flush.period"][0] == "1s"
    assert shown["access_log.flush.max_count"][0] == "2"


def test_config_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROVER_BACKEND_AUTHENTICATION", "s3cret")
    result = rover_host("config")
    assert rows(result)["core.backend.authentication"] == ["***", "ROVER_BACKEND_AUTHENTICATION"]
    assert "s3cret" not in result.output


def test_an_unknown_variable_is_logged_as_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROVER_ACCES_LOG_ACTIVE", "true")
    (line,) = rover_host("config").stderr.splitlines()
    warning = json.loads(line)
    assert (warning["level"], warning["event"]) == ("warning", "variable_unknown")
    assert "ROVER_ACCESS_LOG_ACTIVE" in warning["detail"]


@pytest.mark.parametrize("command", ["config", "modules", "check"])
def test_a_bad_setting_ends_any_command_with_one_line_and_exit_2(command: str) -> None:
    result = rover_host(command, "--set", "access_log.flush.period=5")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "rover-host: --set: bad value for access_log.flush.period: '5' is not a duration such as 300ms, 5s or 1m30s\n"
    )


def test_modules_lists_what_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shown = rows(rover_host("modules"))
    assert shown["alpha"] == ["active"]
    assert shown["beta"] == ["active", "requires", "alpha"]
    assert shown["gamma"] == ["inactive", "requires", "alpha"]


def test_named_modules_run_until_a_signal_and_inactive_ones_are_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FAKE", "alpha.notify=signal")
    result = rover_host("--modules", "alpha, gamma,")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["alpha start", "alpha notify", "alpha shutdown"]
    inactive, *_ = (json.loads(line) for line in result.stderr.splitlines())
    assert (inactive["event"], inactive["module"]) == ("module_inactive", "gamma")


def test_a_failure_while_debugging_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FAKE", "alpha.start=error")
    result = rover_host("--modules", "alpha", "--set", "logger.level=DEBUG")
    assert result.exit_code == 1
    assert "CaptureError: no such probe" in result.stderr


def test_an_unknown_module_exits_2() -> None:
    result = rover_host("--modules", "acces_log")
    assert result.exit_code == 2
    assert result.stderr == "rover-host: unknown module acces_log: did you mean access_log?\n"


def test_nothing_active_exits_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = rover_host("--modules", "gamma")
    assert result.exit_code == 2
    assert result.stderr.startswith("rover-host: no module is active: gamma")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("process_discovery.local.include=nonsense", "process_discovery.local.include"),
        ("process_discovery.local.layer=NO_SUCH_LAYER", "process_discovery.local.layer"),
        ("access_log.protocol_analyze.parallels=12", "more than 8"),
    ],
)
def test_config_refuses_what_a_start_would_refuse(setting: str, words: str) -> None:
    result = rover_host("config", "--set", setting)
    assert result.exit_code == 2
    assert words in result.stderr
