# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rover_plugin.settings import load

if TYPE_CHECKING:
    from pathlib import Path

    from rover_plugin.settings import Settings


def from_toml(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    return load([file], environ={})


@pytest.mark.parametrize("text", ["true", "True", "1", "t", "yes", "ON"])
def test_words_for_true(text: str) -> None:
    assert load(environ={"ROVER_ACCESS_LOG_ACTIVE": text}).flag("access_log.active") is True


@pytest.mark.parametrize("text", ["false", "FALSE", "0", "f", "no", "off"])
def test_words_for_false(text: str) -> None:
    settings = load(environ={"ROVER_ACCESS_LOG_GRPC_STATUS_MAPPING": text})
    assert settings.flag("access_log.grpc_status_mapping") is False


@pytest.mark.parametrize("written", ['[" a", "", "b "]', '"a, ,b"', '"a,b,"'])
def test_a_list_is_an_array_or_a_text_with_commas_trimmed_without_empties(tmp_path: Path, written: str) -> None:
    settings = from_toml(tmp_path, f"access_log.exclude_cluster = {written}\n")
    assert settings.items("access_log.exclude_cluster") == ("a", "b")


def test_toml_numbers_are_integers_and_bytes(tmp_path: Path) -> None:
    settings = from_toml(tmp_path, "access_log.protocol_analyze = { parallels = 3, per_cpu_buffer = 8192 }\n")
    assert settings.get("access_log.protocol_analyze.parallels") == 3
    assert settings.get("access_log.protocol_analyze.per_cpu_buffer") == 8192


@pytest.mark.parametrize("written", ["7", '"7"', '"7s"', "7.0"])
def test_a_plain_number_counts_seconds_where_rover_did(tmp_path: Path, written: str) -> None:
    assert from_toml(tmp_path, f"core.backend.check_period = {written}\n").seconds("core.backend.check_period") == 7.0


def test_a_choice_is_spelt_as_documented() -> None:
    settings = load(environ={}, overrides=["logger.level=debug", "access_log.outputs=Console,JSONL"])
    assert settings.text("logger.level") == "DEBUG"
    assert settings.items("access_log.outputs") == ("console", "jsonl")


def test_service_rules_may_be_tables(tmp_path: Path) -> None:
    text = 'process_discovery.local.service_rules = ["exe=a -> x", { rule = "port=80", service = "web" }]\n'
    rules = from_toml(tmp_path, text).items("process_discovery.local.service_rules")
    assert rules == ("exe=a -> x", "port=80 -> web")


def test_service_rules_may_be_a_text_with_commas() -> None:
    settings = load(environ={"ROVER_PROCESS_DISCOVERY_LOCAL_SERVICE_RULES": "exe=a -> x, port=80 -> web"})
    assert settings.items("process_discovery.local.service_rules") == ("exe=a -> x", "port=80 -> web")


def test_asking_for_another_type_is_an_error_in_the_code() -> None:
    settings = load(environ={})
    with pytest.raises(TypeError, match=r"access_log\.active is bool, not int"):
        settings.integer("access_log.active")
    with pytest.raises(TypeError):
        settings.items("logger.level")


def test_asking_for_no_key_is_an_error_in_the_code() -> None:
    with pytest.raises(KeyError):
        load(environ={}).get("access_log.flush")


def test_text_writes_any_type_as_a_variable_would_hold_it() -> None:
    settings = load(environ={})
    keys = (
        "access_log.exclude_namespaces",
        "access_log.active",
        "access_log.flush.period",
        "access_log.connections.max",
    )
    assert [settings.text(key) for key in keys] == ["istio-system,cert-manager,kube-system", "false", "5s", "65536"]


def test_secrets_are_masked_only_where_they_are_shown() -> None:
    settings = load(environ={"ROVER_BACKEND_AUTHENTICATION": "s3cret"})
    assert settings.text("core.backend.authentication") == "s3cret"
    assert settings.shown("core.backend.authentication") == "***"
    assert load(environ={}).shown("core.backend.authentication") == ""
