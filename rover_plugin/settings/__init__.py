# SPDX-License-Identifier: Apache-2.0
"""The configuration: layers, units, validation with origins (design §4, "Configuration")."""

from __future__ import annotations

from rover_plugin.settings.settings import Settings, load

__all__ = ["Settings", "load"]
