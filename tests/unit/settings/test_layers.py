# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rover_plugin.errors import SettingsError
from rover_plugin.settings import load

if TYPE_CHECKING:
    from pathlib import Path

KEY = "access_log.flush.max_count"
VARIABLE = "ROVER_ACCESS_LOG_FLUSH_MAX_COUNT"


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return written(tmp_path / "first.toml", "[access_log.flush]\nmax_count = 1\nperiod = '1s'\n")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return written(tmp_path / "second.toml", "# two\n\naccess_log.flush.max_count = 2\n")


def test_a_later_file_wins_over_an_earlier_one_key_by_key(first: Path, second: Path) -> None:
    settings = load([first, second], environ={})
    assert (settings.integer(KEY), settings.origin(KEY)) == (2, f"{second}:3")
    assert settings.origin("access_log.flush.period") == f"{first}:3"


def test_a_variable_wins_over_files(first: Path) -> None:
    settings = load([first], environ={VARIABLE: "3"})
    assert (settings.integer(KEY), settings.origin(KEY)) == (3, VARIABLE)


def test_set_wins_over_all_and_the_last_set_over_the_others(first: Path) -> None:
    settings = load([first], environ={VARIABLE: "3"}, overrides=[f"{KEY}=4", f"{KEY}=5"])
    assert (settings.integer(KEY), settings.origin(KEY)) == (5, "--set")


def test_a_list_replaces_the_list_of_the_layer_below(tmp_path: Path) -> None:
    file = written(tmp_path / "x.toml", 'access_log.outputs = ["console"]\n')
    assert load([file], environ={}).items("access_log.outputs") == ("console",)


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(environ={VARIABLE: ""}).origin(KEY) == "default"


def test_variables_of_dynaconf_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGE_ENABLED_FOR_DYNACONF", "true")
    monkeypatch.setenv("DYNACONF_ACCESS_LOG__FLUSH__MAX_COUNT", "9")
    settings = load(environ={"ROVER_ACCESS_LOG_OUTPUTS": "jsonl"})
    assert settings.items("access_log.outputs") == ("jsonl",)
    assert settings.integer(KEY) == 2000


@pytest.mark.parametrize("token", ["@int 5", "@format {env[HOME]}", "a#b=c", "[1]", "007"])
def test_text_is_kept_letter_by_letter(token: str) -> None:
    settings = load(environ={}, overrides=[f"core.backend.authentication={token}"])
    assert settings.text("core.backend.authentication") == token


def test_without_an_environment_this_process_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "7")
    assert load().integer(KEY) == 7


def test_keys_may_be_written_in_any_case_and_by_their_alias(tmp_path: Path) -> None:
    file = written(
        tmp_path / "x.toml", "core.backend.enable_tls = true\n[access_log_protocol_analyze]\nper_cpu_buffer = '1MB'\n"
    )
    settings = load([file], environ={})
    assert settings.flag("core.backend.enable_TLS") is True
    assert settings.size("access_log.protocol_analyze.per_cpu_buffer") == 1 << 20
    assert settings.origin("access_log.protocol_analyze.per_cpu_buffer") == f"{file}:3"


def test_inline_tables_and_empty_tables_are_tables(tmp_path: Path) -> None:
    text = "[access_log]\nflush = { max_count = 8, period = '9s' }\n[telemetry]\n[core]\n"
    file = written(tmp_path / "x.toml", text)
    settings = load([file], environ={})
    assert (settings.integer(KEY), settings.origin(KEY)) == (8, f"{file}:2")
    assert settings.seconds("access_log.flush.period") == 9.0


def test_an_unknown_rover_variable_is_a_warning_with_the_nearest_name() -> None:
    environ = {"ROVER_ACCES_LOG_ACTIVE": "1", "ROVER_ZZZZZZ": "1", "ROVER_HOST_PROC_MAPPING": "/host", "PATH": "/bin"}
    assert load(environ=environ).warnings == (
        "variable ROVER_ACCES_LOG_ACTIVE sets nothing: did you mean ROVER_ACCESS_LOG_ACTIVE?",
        "variable ROVER_ZZZZZZ sets nothing",
    )


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ('access_log.outputs=["jsonl"]', ("jsonl",)),
        ("access_log.outputs=['jsonl', \"console\"]", ("jsonl", "console")),
        ('access_log.outputs="jsonl,console"', ("jsonl", "console")),
        ("access_log.outputs=jsonl,console", ("jsonl", "console")),
        ('access_log.flush={period="2s", max_count=7}', None),
        ('access_log.flush.period="2s"', 2.0),
        ("access_log.flush.period=2s", 2.0),
        ("access_log.flush.max_count=1_000", 1000),
        ("access_log.flush.max_count = 0x10", 16),
        ("access_log.protocol_analyze.per_cpu_buffer=1_048_576", 1 << 20),
        ('access_log.protocol_analyze.per_cpu_buffer="1MB"', 1 << 20),
        ("access_log.active=true", True),
        ('access_log.active="yes"', True),
        ("access_log.active=1", True),
        ('core.cluster_name="a b"', "a b"),
        ("core.cluster_name='a\"b'", 'a"b'),
        ("core.cluster_name=12", "12"),
        ("core.cluster_name=2026-01-01", "2026-01-01"),
        ("core.cluster_name=true", "true"),
        ("core.cluster_name=[1]", "[1]"),
        ("core.cluster_name=a # b", "a # b"),
        ("core.cluster_name=1\nother = 2", "1\nother = 2"),
        ("core.backend.addr=[::1]:11800,b:1", ("[::1]:11800", "b:1")),
        ('core.backend.addr=["[::1]:11800"]', ("[::1]:11800",)),
        ("process_discovery.local.include=cmdline~=:80[01]\\b,port=80-81", ("cmdline~=:80[01]\\b", "port=80-81")),
        ("access_log.exclude_namespaces=80", ("80",)),
        ("access_log.exclude_namespaces=[]", ()),
    ],
)
def test_set_takes_toml_and_plain_text(override: str, value: object) -> None:
    settings = load(environ={}, overrides=[override])
    name = override.partition("=")[0].strip()
    if value is None:
        assert (settings.get("access_log.flush.period"), settings.get(KEY)) == (2.0, 7)
    else:
        assert settings.get(name) == value
    assert settings.origin(name if value is not None else KEY) == "--set"


@pytest.mark.parametrize("override", ['access_log.outputs=["jsonl"', "access_log.outputs=[1]", 'core.nothing=["a"]'])
def test_set_of_what_is_no_value_is_refused_by_name(override: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        load(environ={}, overrides=[override])
