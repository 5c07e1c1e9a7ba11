# SPDX-License-Identifier: Apache-2.0
"""Replays what fuzzing of bytes from outside has found worth keeping: never an exception."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import fuzz_backend, fuzz_conntrack, fuzz_feed, fuzz_proc, fuzz_recording

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parents[1] / "fuzz" / "corpus"
TARGETS = {
    "backend": fuzz_backend.test_one_input,
    "feed": fuzz_feed.test_one_input,
    "proc": fuzz_proc.test_one_input,
    "recording": fuzz_recording.test_one_input,
    "conntrack": fuzz_conntrack.test_one_input,
}
KEPT = [path for name in TARGETS for path in sorted((FOLDER / name).iterdir())]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_input(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_corpus_is_there(name: str) -> None:
    assert len(list((FOLDER / name).iterdir())) > 10


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@given(data=st.binary(max_size=500))
def test_any_bytes(target: Callable[[bytes], None], data: bytes) -> None:
    target(data)
