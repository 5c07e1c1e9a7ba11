# SPDX-License-Identifier: Apache-2.0
"""Command lines that leave this host carry no value that looks like a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.discovery.secrets import hide_secrets


@pytest.mark.parametrize(
    "argument",
    [
        "--password=hunter2",
        "--db-password=hunter2",
        "-Dspring.datasource.password=hunter2",
        "--dbPassword=hunter2",
        "--token=hunter2",
        "PGPASSWORD=hunter2",
        "API_KEY=hunter2",
        "--aws-secret-access-key=hunter2",
        "postgres://user:hunter2@db/shop",
        "--url=redis://:hunter2@cache:6379/0",
        "https://api.example/v1?access_token=hunter2&page=3",
        "Authorization: Bearer hunter2",
        "X-Auth-Token: hunter2",
        "--header=Authorization: Basic hunter2",
        "--client-secret=hunter2",
        "--credentials=hunter2",
        "--password:hunter2",
    ],
)
def test_a_secret_within_an_argument_is_hidden(argument: str) -> None:
    (shown,) = hide_secrets([argument])
    assert "hunter2" not in shown
    assert "***" in shown
    assert shown[:3] == argument[:3]


@pytest.mark.parametrize("option", ["--password", "-password", "--api-key", "--authToken", "--secret", "--db.passwd"])
def test_the_value_after_an_option_that_names_a_secret_is_hidden(option: str) -> None:
    assert list(hide_secrets(["tool", option, "hunter2", "file"])) == ["tool", option, "***", "file"]


@pytest.mark.parametrize(
    "argument",
    ["--author=me", "--passive", "-g", "daemon off;", "--compass=north", "/etc/tokens/x", "http://host/path", "a:b"],
)
def test_other_arguments_stay_as_they_are(argument: str) -> None:
    assert list(hide_secrets([argument, "next"])) == [argument, "next"]


def test_an_option_without_value_does_not_hide_the_next_option() -> None:
    assert list(hide_secrets(["--ask-password", "--verbose"])) == ["--ask-password", "--verbose"]


@given(st.lists(st.text(max_size=60), max_size=6))
def test_any_arguments_stay_as_many(arguments: list[str]) -> None:
    assert len(list(hide_secrets(arguments))) == len(arguments)
