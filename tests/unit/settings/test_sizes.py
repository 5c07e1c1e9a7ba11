# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.settings.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("400KB", 409_600),
        ("400kb", 409_600),
        ("400k", 409_600),
        ("400KiB", 409_600),
        ("400 KB", 409_600),
        ("4096", 4096),
        ("32b", 32),
        ("1.5g", 3 << 29),
        ("16MiB", 16 << 20),
        ("2T", 2 << 40),
        ("1pb", 1 << 50),
        ("0.3K", 307),
        (" 1k ", 1024),
        ("0", 0),
    ],
)
def test_sizes_are_binary_whatever_their_unit_is_called(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KB", "-1", "1 kib b", "1e3", "1,5k", "1xb", "\u0661k", "1 ib", "1.k"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 62))
def test_a_written_size_reads_back_as_the_same_number(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_sizes_are_written_in_the_largest_unit_that_divides_them() -> None:
    assert [format_size(size) for size in (0, 1023, 1024, 409_600, 1 << 20, 3 << 40)] == [
        "0B",
        "1023B",
        "1KB",
        "400KB",
        "1MB",
        "3TB",
    ]
