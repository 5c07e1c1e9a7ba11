# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.access_log.protocols.path_template import template


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/users/123", "/users/{id}"),
        ("/users/123/orders/4", "/users/{id}/orders/{id}"),
        ("/1/2/3", "/{id}/{id}/{id}"),
        ("/a/550e8400-e29b-41d4-a716-446655440000/b", "/a/{id}/b"),
        ("/blob/DEADBEEF00112233", "/blob/{id}"),
        ("/commit/0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "/commit/{id}"),
        ("/users/123/", "/users/{id}/"),
    ],
)
def test_identifiers_become_placeholders(path: str, expected: str) -> None:
    assert template(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "*",
        "/v1/users",
        "/users/me",
        "/2024-05-01/x",
        "/deadbeef",
        "/deadbeefdeadbeefdead",
        "/a1b2",
        "/x123",
        "123",
    ],
)
def test_everything_else_stays(path: str) -> None:
    assert template(path) == path


@given(st.text(alphabet="/abcdef0123456789-xyz", max_size=200))
def test_templating_twice_changes_nothing_more(path: str) -> None:
    assert template(template(path)) == template(path)


@given(st.lists(st.text(alphabet="abcdef0123456789-xyz", max_size=40)))
def test_the_number_of_segments_stays(segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    assert template(path).count("/") == path.count("/")
