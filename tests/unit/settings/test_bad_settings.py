# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import pytest

from rover_plugin.errors import SettingsError
from rover_plugin.settings import load
from rover_plugin.settings.schema import read_schema

if TYPE_CHECKING:
    from pathlib import Path


def refusal(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load([path], environ={})
    assert caught.value.exit_code == 2
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[access_log.flush]\nmax_cuont = 1\n",
            "FILE:2: unknown key access_log.flush.max_cuont: did you mean access_log.flush.max_count?",
        ),
        (
            "[acces_log]\nactive = true\n",
            "FILE:1: unknown key acces_log: did you mean access_log?",
        ),
        ("\nqqqqqqqqqqq = 1\n", "FILE:2: unknown key qqqqqqqqqqq: `rover-host config` lists all keys"),
        (
            "[access_log]\n# why\nflush = 5\n",
            "FILE:3: access_log.flush is a table, not a key: did you mean access_log.flush.period?",
        ),
        (
            "[access_log]\nflush.period = 'five'\n",
            ("FILE:2: bad value for access_log.flush.period: 'five' is not a duration such as 300ms, 5s or 1m30s"),
        ),
        (
            "[access_log]\nactive = 2\n",
            "FILE:2: bad value for access_log.active: 2 is neither true nor false",
        ),
        ("logger.level = true\n", "FILE:1: bad value for logger.level: true is not a text"),
        (
            "[access_log]\nexclude_cluster = [\n  'a',\n  1,\n]\n",
            (
                "FILE:2: bad value for access_log.exclude_cluster: "
                "['a', 1] is neither an array of texts nor a text with commas"
            ),
        ),
        (
            "access_log.flush.max_count = 1.5\n",
            "FILE:1: bad value for access_log.flush.max_count: 1.5 is not an integer",
        ),
        (
            "access_log.flush.max_count = true\n",
            "FILE:1: bad value for access_log.flush.max_count: true is not an integer",
        ),
        (
            "access_log.spool.max_bytes = -1\n",
            "FILE:1: bad value for access_log.spool.max_bytes: '-1' is not a size such as 4096, 400KB or 16MB",
        ),
        (
            "process_discovery.local.service_rules = [{ rule = 'exe=a', name = 'b' }]\n",
            (
                "FILE:1: bad value for process_discovery.local.service_rules: "
                "{'rule': 'exe=a', 'name': 'b'} is not of the form { rule = …, service = … }"
            ),
        ),
        (
            "[[process_discovery.local.service_rules]]\nrule = 'exe=a'\n",
            "FILE:1: arrays of tables are not understood here: write service_rules = [{ … }, { … }]",
        ),
        (
            "[access_log\n",
            (
                "FILE is not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 12): "
                "strings need quotes, lists need brackets"
            ),
        ),
    ],
)
def test_a_file_is_refused_with_the_line_and_a_way_out(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path / "x.toml", text) == message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read configuration file .*absent\.toml: No such file") as caught:
        load([tmp_path / "absent.toml"], environ={})
    assert caught.value.hint == "check the path given with --config"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(b"a = '\xff'\n")
    with pytest.raises(SettingsError, match="is not valid TOML"):
        load([file], environ={})


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(SettingsError, match=r"ROVER_ACCESS_LOG_FLUSH_MAX_COUNT: bad value for access_log\.flush\.max"):
        load(environ={"ROVER_ACCESS_LOG_FLUSH_MAX_COUNT": "many"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("access_log.active", "--set access_log.active has no value: write --set key=value"),
        ("access_log.activ=1", "--set: unknown key access_log.activ: did you mean access_log.active?"),
        ("flush.period=1s", "--set: unknown key flush.period: did you mean access_log.flush.period?"),
    ],
)
def test_a_bad_set_is_named(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ={}, overrides=[override])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("key", "bad", "good", "reason"),
    [
        ("access_log.flush.max_count", "0", "1", "0 is less than 1"),
        ("access_log.flush.period", "0s", "1ns", "0s is not more than 0s"),
        ("access_log.protocol_analyze.parallels", "0", "1", "0 is less than 1"),
        ("access_log.protocol_analyze.queue_size", "0", "1", "0 is less than 1"),
        ("access_log.protocol_analyze.capture_limit", "255", "256B", "255B is less than 256B"),
        ("access_log.protocol_analyze.capture_limit", "65KB", "64KB", "65KB is more than 64KB"),
        (
            "access_log.protocol_analyze.per_cpu_buffer",
            f"{mmap.PAGESIZE - 1}",
            f"{mmap.PAGESIZE}",
            f"{mmap.PAGESIZE - 1}B is less than {mmap.PAGESIZE >> 10}KB",
        ),
        ("core.backend.check_period", "0", "1", "0s is not more than 0s"),
        ("process_discovery.properties_report_period", "0", "1", "0 is less than 1"),
        ("access_log.outputs", "", "console", "needs at least one item"),
        ("access_log.outputs", "kafka", "jsonl", "'kafka' is not one of skywalking, console, jsonl"),
        ("core.backend.addr", "oap", "oap:11800,[::1]:11800", "'oap' is not of the form "),
        ("telemetry.listen", "80", ":80", "'80' is not of the form "),
    ],
)
def test_limits_are_kept_to_the_edge(key: str, bad: str, good: str, reason: str) -> None:
    load(environ={}, overrides=[f"{key}={good}"])
    with pytest.raises(SettingsError) as caught:
        load(environ={}, overrides=[f"{key}={bad}"])
    assert caught.value.message.startswith(f"--set: bad value for {key}: {reason}")


def test_a_bad_value_is_refused_even_where_a_later_layer_overrides_it(tmp_path: Path) -> None:
    assert "FILE:1" in refusal(tmp_path / "x.toml", "access_log.flush.max_count = 0\naccess_log.flush.period = '1s'\n")


def test_a_default_without_its_note_means_a_broken_installation(tmp_path: Path) -> None:
    file = tmp_path / "default.toml"
    file.write_text("# What it does.\nlevel = 1\n")
    with pytest.raises(
        SettingsError, match=r"default\.toml:2: key without 'env' in its note: the installation is broken"
    ):
        read_schema(file)
