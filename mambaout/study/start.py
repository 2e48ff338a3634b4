"""What a sweep's function starts from: the data, the user's options and recipes that fit them.

    def kernels(start: Start) -> Study:
        "Does a kernel of 3, 5 or 7 matter on my images?"
        recipes = {f"k{k}": tuned(start.recipe(), kernel_size=k) for k in (3, 5, 7)}
        return Study(name="kernels", question=str(kernels.__doc__), recipes=recipes)

`start.recipe()` returns the recipe that the rules (mambaout/rules.py) choose for the data and for
the devices of the trials. It contains every field that the user gave on the command line. The study
then varies some fields of this recipe. `check_given` raises an error if the user gave a field that
the study varies.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mambaout.applied_rules import AppliedRule
from mambaout.errors import WrongRequest
from mambaout.fields import flat_fields
from mambaout.options import check_used, option
from mambaout.recipe import Recipe
from mambaout.rules import (
    DataFacts,
    WeightsFacts,
    fitted,
    fitting_shape,
    is_small,
)
from mambaout.study.axes import BLOCKS, WIDTH, Search, axis_names
from mambaout.study.study import Study
from mambaout.variants import VARIANTS, ModelConfig

# Some axes are not fields of a recipe. These are the fields that they change.
_FIELDS_OF_AXIS = {WIDTH: ("dims", "hidden_multiple"), BLOCKS: ("depths",)}
_SHAPE_FIELDS = ("depths", "dims")
OWN_QUESTION = "sweeps/mine.py --shapes small=1,1,1,1/16,32,64,96 femto, or --grid FIELD=A,B"


@dataclass(kw_only=True)
class Start:
    """The data and the user's options, from which a study is built."""

    facts: DataFacts
    given: Mapping[str, Any] = field(default_factory=dict)  # fields from the command line
    variants: Sequence[str] | None = None  # what --variants names; None: the study's own
    smoke: bool = False
    weights: WeightsFacts | None = None  # what --init names: trials start from it
    precision: AppliedRule | None = None  # the rule of the devices that trials will have
    rules: list[AppliedRule] = field(default_factory=list)  # those that have acted so far
    took_variants: bool = False  # whether the study has asked for its shapes

    @property
    def epochs(self) -> int:
        """The epochs of the recipe that fits the data."""
        return self._rules_recipe.schedule.epochs

    @property
    def train_images(self) -> int | None:
        """How many images a trial of the fitting recipe trains on; None means all."""
        return self._rules_recipe.train_images

    @property
    def _rules_recipe(self) -> Recipe:
        return fitted(
            self.facts, given=self.given, weights=self.weights, study=True, smoke=self.smoke
        ).recipe

    @property
    def small(self) -> bool:
        """Whether small shapes fit: the images are few or small, or this is a smoke run."""
        return self.smoke or is_small(self.facts, self.given.get("train_images"))

    @property
    def fitting(self) -> ModelConfig:
        """The network if the study names none: that of --init, or one that fits the data."""
        return fitting_shape(self.weights, is_small=self.small)

    def recipe(self, shape: ModelConfig | None = None, **defaults: Any) -> Recipe:
        """The recipe that fits the data, for `shape` (None: a shape that fits, too).

        `defaults` are fields that this study wants. A field that the user gave overrides them. A
        rule sets the fields that neither of them gives.
        """
        return self._fitted(shape, defaults, paper=False)

    def paper(self, shape: ModelConfig | None = None, **defaults: Any) -> Recipe:
        """The paper's recipe at the size of the data. Length and augmentation stay the paper's."""
        return self._fitted(shape, defaults, paper=True)

    def _fitted(
        self, shape: ModelConfig | None, defaults: Mapping[str, Any], paper: bool
    ) -> Recipe:
        found = fitted(
            self.facts,
            shape,
            given=self.given,
            defaults=defaults,
            precision=self.precision,
            weights=self.weights,
            paper=paper,
            study=True,
            smoke=self.smoke,
        )
        told = {rule.name for rule in self.rules}
        self.rules += [rule for rule in found.rules if rule.name not in told]
        return found.recipe

    def shapes(self, catalogue: Mapping[str, ModelConfig]) -> dict[str, ModelConfig]:
        """The shapes to train: those in --variants, or else the whole catalogue.

        --variants may name shapes of the catalogue and published variants.
        """
        self.took_variants = True
        known = dict(VARIANTS) | dict(catalogue)
        names = list(catalogue) if self.variants is None else list(self.variants)
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise WrongRequest(
                    f"--variants: {name!r} is no shape of this study; "
                    f"choose from {', '.join(known)}{hint}"
                )
        own = [option(name) for name in _SHAPE_FIELDS if name in self.given]
        if own and len(names) > 1:
            raise WrongRequest(
                f"{own[0]}: this study varies it, over the shapes {', '.join(names)}; "
                f"ask your own question: {OWN_QUESTION}"
            )
        return {name: known[name] for name in names}


def check_given(study: Study, start: Start) -> None:
    """Raise ValueError if the study ignores the command line.

    It does so if it varies a given field or does not use --variants."""
    if start.variants is not None and not start.took_variants:
        raise WrongRequest(
            f"--variants: study {study.name} has no catalogue of shapes; leave it out, or give the "
            "network with --depths and --dims"
        )
    for name, value in start.given.items():
        found = {_plain(flat_fields(recipe)[name]) for recipe in study.recipes.values()}
        found |= {_plain(flat_fields(search.base)[name]) for search in study.searches}
        if any(name in _searched(search) for search in study.searches):
            raise WrongRequest(
                f"{option(name)}: study {study.name} searches {name} itself; leave the option out, "
                f"or ask your own question: {OWN_QUESTION}"
            )
        if found != {_plain(value)}:
            values = ", ".join(sorted(map(str, found)))
            raise WrongRequest(
                f"{option(name)}: study {study.name} varies {name} itself ({values}); leave the "
                f"option out, or ask your own question: {OWN_QUESTION}"
            )


def check_mixer_fields(study: Study, given: Collection[str]) -> None:
    """Raise WrongRequest if a field that is given or varied acts in no network of the study."""
    recipes = [*study.recipes.values(), *(search.base for search in study.searches)]
    searched = set().union(*map(_searched, study.searches))
    if "mixer" in searched:
        return
    rows = [flat_fields(recipe.model) for recipe in recipes]
    varied = {name for row in rows for name, value in row.items() if value != rows[0][name]}
    check_used({*given, *searched, *varied}, [recipe.model for recipe in recipes])


def _searched(search: Search) -> set[str]:
    """The fields that a search's axes change."""
    names = axis_names(search.axes)
    return {field for name in names for field in _FIELDS_OF_AXIS.get(name, (name,))}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
