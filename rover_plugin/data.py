# SPDX-License-Identifier: Apache-2.0
"""Finds the files that ship beside the code: BPF sources, protos, the default configuration."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_path(relative: str) -> Path:
    """Returns where `relative` (such as `config/default.toml`) is: a checkout's top level, else inside the package."""
    checkout = _PACKAGE.parent / relative
    if (_PACKAGE.parent / "pyproject.toml").exists() and checkout.exists():
        return checkout
    return _PACKAGE / "_data" / relative
