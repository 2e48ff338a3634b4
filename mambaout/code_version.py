"""The version of this code's numbers, which every run is stored with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Part of every trial's key and of every run's identity: raised by hand when the same recipe, seed
# and data come to other numbers than before, so that no result of older code is taken for one of
# the new, and no run goes on with other numbers than it began with.
# tests/train/test_code_version.py trains a few steps and fails when that has happened.
CODE_VERSION = 4
# Of runs that do not say theirs: it came into a run's identity at version 4. Runs of older versions
# do not say it either, and are taken for this one.
UNSAID = 4


def said_version(identity: Mapping[str, Any]) -> int:
    """The code version that a stored identity says."""
    return identity.get("code_version", UNSAID)
