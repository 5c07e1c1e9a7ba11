# SPDX-License-Identifier: Apache-2.0
"""Replays what fuzzing has found worth keeping (tests/fuzz/corpus/http1): any bytes, never an uncounted exception."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rover_plugin.access_log.model import Side
from tests.fuzz import fuzz_http1
from tests.fuzz.fuzz_http1 import BYTES, LOST, UNSEEN, Step, read_steps, write_steps

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus" / "http1").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_kept_input(path: Path) -> None:
    fuzz_http1.test_one_input(path.read_bytes())


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) > 50


@given(
    st.integers(0, 7),
    st.lists(st.tuples(st.sampled_from([BYTES, UNSEEN]), st.sampled_from(Side), st.binary(max_size=300)), max_size=8),
)
def test_any_bytes(flags: int, said: list[tuple[int, Side, bytes]]) -> None:
    fuzz_http1.test_one_input(write_steps(flags, [Step(kind, side, data) for kind, side, data in said]))


def test_input_is_read_as_it_was_written() -> None:
    steps = [Step(BYTES, Side.REQUEST, b"abc"), Step(LOST, Side.RESPONSE, b"", 7), Step(BYTES, Side.RESPONSE, b"")]
    assert read_steps(write_steps(3, steps)) == (3, steps)
