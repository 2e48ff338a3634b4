"""The finished trials of all studies in a storage folder: what rates and spreads come from.

A plan needs them several times. Each file is read once, and again only if it has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mambaout.durable import read_whole
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, recipe_from_json
from mambaout.study.run_files import look
from mambaout.study.study import OUTCOME_FILE, RECIPE_FILE, REUSED_FILE


@dataclass(frozen=True)
class FinishedTrial:
    """What is known of a trial that has finished in its own study."""

    directory: Path
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def study(self) -> str:
        return self.directory.parents[1].name

    @cached_property
    def recipe(self) -> Recipe | None:
        """None if it is of another version or of another task."""
        try:
            return recipe_from_json((self.directory / RECIPE_FILE).read_text())
        except (WrongRequest, UnicodeDecodeError, FileNotFoundError):
            return None


# By the path of an outcome: its state when it was read, and what it says.
_known: dict[Path, tuple[Any, FinishedTrial | None]] = {}


def finished_trials(storage: Path) -> list[FinishedTrial]:
    """All of them, in the order of their paths; copies of another study's trial are left out."""
    found = []
    for path in sorted(Path(storage).glob(f"*/trials/*/{OUTCOME_FILE}")):
        state, trial = _known.get(path, (None, None))
        now = [look(path.parent / name) for name in (OUTCOME_FILE, RECIPE_FILE, REUSED_FILE)]
        if now != state:
            trial = _read(path)
            _known[path] = (now, trial)
        if trial is not None:
            found.append(trial)
    return found


def _read(path: Path) -> FinishedTrial | None:
    """None if the trial has not finished, or if a power loss damaged its outcome."""
    text = read_whole(path)
    if text is None or (path.parent / REUSED_FILE).exists():
        return None
    outcome = json.loads(text)
    if outcome.get("status") != Ending.FINISHED:
        return None
    return FinishedTrial(path.parent, outcome["metrics"], outcome.get("facts", {}))
