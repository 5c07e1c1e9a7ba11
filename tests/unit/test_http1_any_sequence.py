# SPDX-License-Identifier: Apache-2.0
"""Any sequence of messages, cut into calls of any size, copied up to any limit, joined anywhere, with records lost.

What is said to be complete is exact, no response goes to another's request, nothing comes out that was not said, and
nobody is said not to have answered who did. With nothing missing, everything is complete.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rover_plugin.access_log.model import Completeness, EndedBy
from rover_plugin.capture.records import CLOSE_BY_PEER, CLOSE_PEER_ENDED
from tests.support.http1_dialogue import ALL_COPIED, View, calls_of, check, dialogue, watch

if TYPE_CHECKING:
    from rover_plugin.access_log.model import Side

SEEDS = st.integers(0, 1 << 48)
FLAGS = (0, CLOSE_BY_PEER, CLOSE_PEER_ENDED)


def view_of(chance: Random) -> View:
    return View(client=chance.random() < 0.5, flags=chance.choice(FLAGS))


def cut_off(calls: list[tuple[Side, bytes]], chance: Random) -> list[tuple[Side, bytes]]:
    """The calls up to a byte at which the connection ends."""
    kept = calls[: chance.randrange(len(calls)) + 1]
    side, data = kept[-1]
    return [*kept[:-1], (side, data[: chance.randrange(len(data)) + 1])]


@settings(max_examples=400, deadline=None)
@given(seed=SEEDS)
def test_what_is_seen_whole_comes_out_whole(seed: int) -> None:
    chance = Random(seed)
    made = dialogue(chance, pipelining=chance.random() < 0.4, look_alikes=True)
    view = view_of(chance)
    outcome = watch(calls_of(made, chance), view, chance)
    check(made, outcome, view)
    assert [seen.path for seen in outcome.exchanges] == [truth.path for truth in made.truths]
    for truth, seen in zip(made.truths, outcome.exchanges, strict=True):
        if not truth.until_close:
            assert seen.completeness is Completeness.COMPLETE


@settings(max_examples=400, deadline=None)
@given(seed=SEEDS)
def test_a_connection_that_ends_at_any_byte(seed: int) -> None:
    chance = Random(seed)
    made = dialogue(chance, pipelining=chance.random() < 0.4, look_alikes=True)
    view = view_of(chance)
    outcome = watch(cut_off(calls_of(made, chance), chance), view, chance)
    check(made, outcome, view)
    for seen in outcome.exchanges:
        assert (seen.ended_by is None) == (seen.completeness is Completeness.COMPLETE)
        assert seen.ended_by is not EndedBy.AGENT


@settings(max_examples=600, deadline=None)
@given(seed=SEEDS, limit=st.sampled_from([0, 64, 100, 300, ALL_COPIED]), skipping=st.sampled_from([0, 0.5, 1]))
@pytest.mark.parametrize("pipelining", [False, True])
def test_any_limit_of_copying(seed: int, limit: int, skipping: float, pipelining: bool) -> None:
    chance = Random(seed)
    # Where messages come in a row, nothing tells content from the next one once framing is lost.
    made = dialogue(chance, pipelining=pipelining, look_alikes=not pipelining)
    view = view_of(chance)
    view.limit, view.skipping = limit, skipping
    check(made, watch(calls_of(made, chance), view, chance), view)


@settings(max_examples=600, deadline=None)
@given(seed=SEEDS)
def test_joined_anywhere(seed: int) -> None:
    chance = Random(seed)
    made = dialogue(chance)
    calls = calls_of(made, chance)
    view = view_of(chance)
    view.join = chance.randrange(len(calls))
    check(made, watch(calls, view, chance), view)


@settings(max_examples=1000, deadline=None)
@given(seed=SEEDS, lossy=st.sampled_from([0, 0.02, 0.1, 0.4]), limit=st.sampled_from([10, 100, 300, ALL_COPIED]))
def test_everything_at_once(seed: int, lossy: float, limit: int) -> None:
    chance = Random(seed)
    made = dialogue(chance)
    calls = calls_of(made, chance)
    view = view_of(chance)
    view.lossy, view.limit, view.skipping = lossy, limit, chance.choice([0, 0.5, 1])
    if chance.random() < 0.5:
        view.join = chance.randrange(len(calls))
    if chance.random() < 0.5:
        calls = cut_off(calls, chance)
    check(made, watch(calls, view, chance), view)
