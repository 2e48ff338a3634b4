"""Recipes that differ only in the network and in the length of training: the ladders of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TypeVar

from mambaout.recipe import BASELINE, Recipe

Key = TypeVar("Key", bound=Hashable)


def largest_group(recipes: Mapping[Key, Recipe]) -> list[Key]:
    """The keys of the recipes that differ only in shape and length; of several groups, the largest.

    In a tie it is the first one.
    """
    groups = {key: _besides_shape(recipe) for key, recipe in recipes.items()}
    counts = Counter(groups.values())
    largest = max(counts, key=lambda group: counts[group], default=None)
    return [key for key, group in groups.items() if group == largest]


def _besides_shape(recipe: Recipe) -> Recipe:
    """The recipe without the fields that a ladder varies.

    These are depths, widths, and the drop path, which follows the size in the paper. They are also
    the epochs, and the warm-up, which follows the epochs.
    """
    model, schedule = BASELINE.model, BASELINE.schedule
    return replace(
        recipe,
        model=replace(
            recipe.model, depths=model.depths, dims=model.dims, drop_path=0.0, hidden_multiple=1
        ),
        schedule=replace(
            recipe.schedule,
            epochs=schedule.epochs,
            warmup_epochs=schedule.warmup_epochs,
            cooldown_epochs=0,
        ),
        eval_every_epochs=1,
    )
