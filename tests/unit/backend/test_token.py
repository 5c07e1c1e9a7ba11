# SPDX-License-Identifier: Apache-2.0
"""The backend's token: where it may stand, and where it must not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from rover_plugin.backend.security import Security
from rover_plugin.errors import BackendError, SettingsError
from rover_plugin.settings import load

if TYPE_CHECKING:
    from pathlib import Path

KEY = "core.backend.authentication"


def token(value: str, **variables: str) -> str:
    return Security.from_settings(load(environ=variables, overrides=[f"{KEY}={value}"] if value else [])).token


def test_a_file_holds_the_token_in_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\r\nrest\n")
    with capture_logs() as logs:
        assert token(f"@{tmp_path}/token") == "s3cret"
    assert "token_on_command_line" not in {entry["event"] for entry in logs}


def test_a_file_that_cannot_be_read_stops_the_start_with_the_keys_name(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=KEY):
        token(f"@{tmp_path}/none")


@pytest.mark.parametrize("bad", ["größe", "a\nb", "a\0b"])
def test_a_token_that_http_cannot_carry_stops_the_start_without_showing_it(bad: str) -> None:
    with pytest.raises(BackendError) as caught:
        token(bad)
    assert bad not in str(caught.value)


def test_a_token_on_the_command_line_and_one_in_plaintext_are_warned_of() -> None:
    with capture_logs() as logs:
        token("s3cret")
    assert [entry["event"] for entry in logs] == ["token_on_command_line", "token_sent_in_plaintext"]
    with capture_logs() as logs:
        assert token("", ROVER_BACKEND_AUTHENTICATION="s3cret", ROVER_BACKEND_ENABLE_TLS="true") == "s3cret"
    assert logs == []


def test_a_token_of_the_wrong_type_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[core.backend]\nauthentication = 8675309\n")
    with pytest.raises(SettingsError) as caught:
        load([file], environ={})
    assert "8675309" not in str(caught.value)
    assert f"{file}:2" in str(caught.value)
    assert caught.value.__cause__ is None
