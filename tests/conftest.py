# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _logging_is_as_new() -> Iterator[None]:
    """What one test configures (`capture_logs` does, too) is not the next one's."""
    yield
    structlog.reset_defaults()
