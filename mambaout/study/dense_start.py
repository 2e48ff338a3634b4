"""What the function of a sweep over detectors or segmenters starts from.

    def detect(start: DenseStart) -> Study:
        "How does AP grow with the backbone?"
        shapes = start.shapes(("tiny", "small", "base"))
        return Study(..., recipes={name: start.recipe(shape) for name, shape in shapes.items()})

`start.recipe(shape)` is the recipe that fits the data, with every field that the user gave. The
study then varies some fields. A field that is given and varied is refused.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mambaout.dense_options import dense_field, dense_field_types
from mambaout.errors import WrongRequest
from mambaout.options import field_text, option
from mambaout.train.tasks import TaskKind
from mambaout.variants import VARIANTS, ModelConfig

# The recipe that fits the data: (network or None, fields) -> recipe, a line for each rule.
Fit = Callable[[ModelConfig | None, Mapping[str, Any]], tuple[Any, list[str]]]
_SHAPE_FIELDS = ("depths", "dims")
_NOT_COMPARED = {  # fields that --grid does not take -> what to do
    **dict.fromkeys(_SHAPE_FIELDS, "--variants compares networks"),
    "init": "--init gives each network its weights",
}


@dataclass(kw_only=True)
class DenseStart:
    """The data and the user's options, from which a study is built."""

    kind: TaskKind
    fit: Fit
    given: Mapping[str, Any] = field(default_factory=dict)  # fields from the command line
    variants: Sequence[str] | None = None  # what --variants names; None: the study's own
    is_small: bool = False  # whether the data are the small generated set
    smoke: bool = False
    has_weights: bool = False  # whether --init is given
    digest_of: Callable[[ModelConfig], str | None] = lambda shape: None  # of --init, by network
    rules: list[str] = field(default_factory=list)  # those that have acted so far
    took_variants: bool = False

    def recipe(self, shape: ModelConfig | None = None, **varied: Any) -> Any:
        """The recipe that fits the data, for `shape` (None: one that fits, too).

        `varied` are the fields that this study varies. Raises WrongRequest if one is given too.
        """
        for name in varied:
            if name in self.given:
                raise WrongRequest(
                    f"{option(name)}: this study varies it; leave the option out, or give its "
                    "values with --grid"
                )
        recipe, lines = self.fit(shape, {**self.given, **varied})
        self.rules += [line for line in lines if line not in self.rules]
        if (digest := self.digest_of(recipe.model)) is not None:
            recipe = replace(recipe, init=digest)
        return recipe

    def shapes(
        self, names: Sequence[str], own: Mapping[str, ModelConfig] | None = None
    ) -> dict[str, ModelConfig]:
        """The networks to train: those in --variants, or else those of `names`.

        `own` are networks of this study; published variants are known anyway.
        """
        self.took_variants = True
        known = dict(VARIANTS) | dict(own or {})
        chosen = list(names if self.variants is None else self.variants)
        for name in chosen:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise WrongRequest(
                    f"--variants: {name!r} is no network of this study; choose from "
                    f"{', '.join(known)}{hint}"
                )
        given = [option(name) for name in _SHAPE_FIELDS if name in self.given]
        if given and len(chosen) > 1:
            raise WrongRequest(
                f"{given[0]}: this study varies it, over {', '.join(chosen)}; name one with "
                "--variants"
            )
        return {name: known[name] for name in chosen}

    def grid(self, texts: Sequence[str] | None) -> list[dict[str, Any]]:
        """Every combination of the values in `texts`, like ["peak_lr=1e-4,2e-4", "epochs=3,6"]."""
        axes: dict[str, list[Any]] = {}
        known = dense_field_types(self.kind.recipe_type)
        for text in texts or ():
            name, _, values = text.partition("=")
            name = name.strip().replace("-", "_")
            if not name or not values:
                raise WrongRequest(f"--grid {text!r}: write FIELD=A,B,C")
            if name not in known or name in _NOT_COMPARED:
                near = difflib.get_close_matches(name, known.keys() - _NOT_COMPARED.keys(), n=1)
                hint = f"did you mean {near[0]!r}?" if near else "--help lists the fields"
                hint = _NOT_COMPARED.get(name, hint)
                raise WrongRequest(f"--grid: {name!r} cannot be compared; {hint}")
            if name in axes:
                raise WrongRequest(f"--grid names {name} twice; give its values at once")
            try:
                axes[name] = [
                    dense_field(name, part, self.kind.recipe_type) for part in values.split(",")
                ]
            except WrongRequest as error:
                raise WrongRequest(f"--grid {text}: {error}") from error
            if len(set(axes[name])) < len(axes[name]):
                raise WrongRequest(f"--grid {text}: a value is there twice; give each value once")
        return [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]

    def crossed(
        self, shapes: Mapping[str, ModelConfig], texts: Sequence[str] | None
    ) -> dict[str, Any]:
        """Every network with every combination of the values in `texts`, by label."""
        found = {}
        for name, shape in shapes.items():
            for fields in self.grid(texts):
                values = [f"{field}={field_text(value)}" for field, value in fields.items()]
                found[" ".join([name, *values])] = self.recipe(shape, **fields)
        return found
