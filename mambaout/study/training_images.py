"""Which training images the seeds of a study see, as sentences for the plan, the report and MLflow.

Pure values: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mambaout.recipe import Recipe


def training_images_text(recipes: Iterable[Any]) -> str:
    """The sentences; "" if every recipe trains on all images, or if none is a classifier's."""
    numbers: dict[str, set[int]] = {}
    for recipe in recipes:
        if isinstance(recipe, Recipe) and recipe.train_images is not None:
            numbers.setdefault(recipe.subset, set()).add(recipe.train_images)
    said = []
    if own := numbers.get("seed"):
        said.append(
            f"Each seed draws its own {_counts(own)} training images, for all recipes alike: "
            "intervals over seeds cover the draw of the images."
        )
    if same := numbers.get("shared"):
        said.append(
            f"All seeds train on the same {_counts(same)} images: intervals over seeds do not "
            "cover the draw of the images."
        )
    return " ".join(said)


def _counts(numbers: set[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(numbers))
