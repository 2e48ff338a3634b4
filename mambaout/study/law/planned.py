"""The shapes of a study before they are trained, by length of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mambaout.accounting import cost, train_macs
from mambaout.recipe import Recipe
from mambaout.study.ladders import largest_group
from mambaout.study.law.fit import Size
from mambaout.study.study import Trial


@dataclass(frozen=True, kw_only=True)
class PlannedSize:
    """A shape of one length of training, before it is trained."""

    label: str
    cost: float  # MACs of one image
    depth: float  # blocks
    width: float  # channels of the first stage
    epochs: int
    num_seeds: int
    price: float = 1.0  # of one more seed, in any unit

    def as_size(self) -> Size:
        """As a size with its seeds. Its errors do not matter for the precision."""
        errors = (50.0,) * self.num_seeds
        return Size(
            label=self.label,
            cost=self.cost,
            errors=errors,
            depth=self.depth,
            width=self.width,
            epochs=self.epochs,
        )


def planned_ladders(
    trials: Sequence[Trial], num_train: Callable[[Recipe], int], num_classes: int
) -> dict[int, list[PlannedSize]]:
    """The sizes of each length of training, with their seeds; the price of a seed is in MACs."""
    seeds: dict[Recipe, list[Trial]] = {}
    for trial in trials:
        if not trial.is_baseline and isinstance(trial.recipe, Recipe):
            seeds.setdefault(trial.recipe, []).append(trial)
    found: dict[int, list[PlannedSize]] = {}
    for recipe in largest_group({recipe: recipe for recipe in seeds}):
        own = seeds[recipe]
        size = PlannedSize(
            label=own[0].label,
            cost=cost(recipe.model, recipe.image_size, num_classes).macs,
            depth=recipe.model.num_blocks,
            width=recipe.model.dims[0],
            epochs=recipe.schedule.total_epochs,
            num_seeds=len({trial.seed for trial in own}),
            price=train_macs(recipe, num_train(recipe), num_classes),
        )
        found.setdefault(size.epochs, []).append(size)
    return dict(sorted(found.items()))


def degrees_of(ladders: Mapping[int, Sequence[PlannedSize]], but: int) -> int:
    """The degrees of freedom that the other lengths give for the spread."""
    others = (sizes for epochs, sizes in ladders.items() if epochs != but)
    return sum(size.num_seeds - 1 for sizes in others for size in sizes)
