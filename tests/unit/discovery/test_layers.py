# SPDX-License-Identifier: Apache-2.0
"""Layers are checked before the backend is asked."""

from __future__ import annotations

import pytest

from rover_plugin.discovery.layers import checked_layer
from rover_plugin.errors import SettingsError


def test_a_layer_of_the_oap_is_taken_as_it_is() -> None:
    assert checked_layer("k", "OS_LINUX") == "OS_LINUX"


def test_another_is_an_error_that_suggests_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"k: 'os_linx' is no layer of the OAP: did you mean OS_LINUX\?"):
        checked_layer("k", "os_linx")
