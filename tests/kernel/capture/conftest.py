# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the capture's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.capture import recorder, shared_recorder
from tests.support.mover import SOURCE, Mover, build

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["mover", "recorder", "shared_recorder"]


@pytest.fixture(scope="session")
def mover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mover]:
    """The program that moves bytes, running."""
    with Mover(build(SOURCE, tmp_path_factory.mktemp("mover"))) as running:
        yield running
