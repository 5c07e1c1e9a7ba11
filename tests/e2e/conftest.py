# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.agent import needs_bpf
from tests.support.servers import Nginx, let_others_read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = needs_bpf()
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.root)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    # nginx's workers are not root: they must be able to reach what they serve.
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        let_others_read(folder)
    with Nginx(tmp_path / "nginx") as server:
        yield server
