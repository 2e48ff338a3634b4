"""The code version: it tells which code computed a run's numbers. Every run stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# CODE_VERSION is part of every trial's key and of every run's identity. It is raised by hand when
# the same recipe, seed and data give other numbers than before. Then a result of older code is not
# mistaken for one of the new code, and no run is resumed by code that computes other numbers.
# tests/train/test_code_version.py trains a few steps and fails if the numbers have changed.
CODE_VERSION = 4
# The version of runs that store none. Runs store their version since version 4; older runs store
# none either, and count as this version.
UNSAID = 4


def said_version(identity: Mapping[str, Any]) -> int:
    """The code version in a stored identity; UNSAID if it has none."""
    return identity.get("code_version", UNSAID)
