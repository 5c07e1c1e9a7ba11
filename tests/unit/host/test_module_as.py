# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rover_plugin.host.module import module_as
from tests.support.fake_modules import FakeModule


def test_a_module_of_the_kind_is_returned() -> None:
    module = FakeModule("a")
    assert module_as(module, FakeModule) is module


@pytest.mark.parametrize("other", [None, "text"])
def test_anything_else_is_an_error_that_names_both_kinds(other: object) -> None:
    with pytest.raises(TypeError, match=f"expected module of FakeModule, got {type(other).__name__}"):
        module_as(other, FakeModule)  # type: ignore[arg-type]
