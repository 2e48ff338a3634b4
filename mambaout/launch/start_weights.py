"""`--init FILE`: the weights that trials or one training start from, named on the command line.

The file is read once, where the command is given. The recipe gets the digest of its content, so
that a trial's key depends on the content and on no path. A study keeps a copy in its storage
(study/kept_weights.py), where workers on any machine find it. So a study, too, goes on without the
file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mambaout.errors import WrongRequest
from mambaout.launch.named import named_weights
from mambaout.recipe import Recipe
from mambaout.rules import WeightsFacts
from mambaout.study.kept_weights import WEIGHTS_FOLDER
from mambaout.study.search.space import corners
from mambaout.study.study import Study

if TYPE_CHECKING:
    from mambaout.model.initial import InitialWeights

INIT = "init"  # the recipe's field, and the option
_HELP = (
    "start from these weights: a file of ours, timm's or the authors' (.ckpt, .safetensors, .pth), "
    "a run's folder, or STUDY/TRIAL; a head of other classes is replaced, and the recipe becomes "
    "one for fine-tuning. Default: none (random weights)"
)


def add_init_option(add: Callable[..., argparse.Action]) -> None:
    """Add the option; `add` is the add_argument of a parser or a group."""
    add("--init", metavar="FILE", help=_HELP)


def start_weights(text: str, storage: Path) -> InitialWeights:
    """The weights that --init names, or the copy in the storage if their file is gone.

    Raises WrongRequest, which begins with --init, if there are none to start from.
    """
    from mambaout.model.initial import copies_of, read_initial

    if not text:
        raise WrongRequest("--init is empty; give a file of weights")
    try:
        path = named_weights(text, storage).path
    except WrongRequest as error:
        copies = copies_of(Path(text), storage / WEIGHTS_FOLDER)
        if len(copies) != 1:
            names = ", ".join(map(str, copies.values()))
            several = f"; the storage has copies of several contents of it, {names}; name one"
            raise WrongRequest(f"--init: {error}{several if copies else ''}") from error
        (path,) = copies.values()
        print(f"--init: {text} is not there any more; its copy {path} is taken")
    try:
        return read_initial(path)
    except WrongRequest as error:
        raise WrongRequest(f"--init: {error}") from error


def facts_of_weights(initial: InitialWeights) -> WeightsFacts:
    return WeightsFacts(digest=initial.digest, model=initial.model)


def about_weights(study: Study, initial: InitialWeights | None, num_classes: int) -> str:
    """A line on the weights that the study's trials start from; "" if they start from none.

    Raises WrongRequest if a trial has another network than the weights, or starts from others.
    """
    said, fitting = "", set()  # the shapes that fit; most recipes share one
    for what, recipe in _recipes(study, with_corners=initial is not None):
        if recipe.init is None and initial is None:
            continue
        if initial is None or recipe.init != initial.digest:
            raise WrongRequest(
                f"{what} starts from weights {recipe.init}; give their file with --init FILE, and "
                "no other value of init"
            )
        if recipe.model in fitting:
            continue
        try:
            load = initial.plan(recipe.model, num_classes)
        except WrongRequest as error:
            raise WrongRequest(
                f"--init: {what}: {error}. Weights start one shape only, so every trial must have "
                "it: --variants can name it, or one shape in --shapes of sweeps/mine.py"
            ) from error
        fitting.add(recipe.model)
        said = said or initial.about(load)
    return said


def _recipes(study: Study, *, with_corners: bool) -> Iterable[tuple[str, Recipe]]:
    """The recipes of the study, and the outermost ones of its searches, each with its name."""
    for label, recipe in study.recipes.items():
        yield f"trial {label}", recipe
    for search in study.searches:
        yield f"search {search.label}", search.base
        for recipe in corners(search) if with_corners else ():
            yield f"search {search.label}", recipe
