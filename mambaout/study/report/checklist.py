"""What a reader of a scaling study should be told, filled in from the study itself.

The points are those that a survey of scaling laws (arXiv 2502.18969) found to be missing most
often: the form of the law, the trainings, what was measured, and how the law was fitted. A point
that the study cannot answer says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from mambaout.endings import Ending
from mambaout.numbers import count_text, counted
from mambaout.recipe import Recipe
from mambaout.study.law.fit import Law
from mambaout.study.report.content import Section, Table
from mambaout.study.report.reading import Reading
from mambaout.study.report.rows import Row
from mambaout.study.training_images import training_images_text
from mambaout.train.metrics import MACS, PARAMS

UNKNOWN = "not recorded"
ALL_IMAGES = "all training images, for every seed"
_MOST = 6  # names or values in a cell


def checklist(reading: Reading) -> list[Section]:
    """A section for a study with laws or with a contrast of shapes; else none."""
    if reading.standing.guessing or not reading.standing.ready:
        return []
    has_law = any(one.law for one in reading.laws)
    if not has_law and not any(one.growth.contrast for one in reading.grown):
        return []
    points = [*_form(reading), *_trainings(reading), *_measured(reading), *_fit(reading)]
    said = (
        "The points that a survey of scaling laws asks every study to state (arXiv 2502.18969), "
        "filled in from the files of this one."
    )
    table = Table(("part", "point", "this study"), points, (1, 2))
    return [Section("Checklist", [said], [table])]


# -- the law --------------------------------------------------------------------------------------


def _form(reading: Reading) -> list[tuple[str, str, str]]:
    laws = [one.law for one in reading.laws if one.law]
    form = "none was fitted: " + "; ".join(dict.fromkeys(one.reason for one in reading.laws))
    if laws:
        form = "error = a (C + d)^-b + c, with the four parameters a, b, c and d for each length"
    contrast = (
        "accuracy = k0 + k1 x + k2 x^2 + k3 s, with x = log2 MACs and s = log2 (width / depth); "
        "k3 is the gain at equal MACs"
    )
    return [
        ("law", "form and free parameters", form),
        ("law", "model for width against depth", contrast),
        (
            "law",
            "variables",
            "C: multiply-adds of one image, forward, as `mambaout account` counts them; error: "
            "100 - top-1 on val, in percent; width: channels of the first stage; depth: all blocks",
        ),
        (
            "law",
            "where the form comes from",
            "Zhai et al. (arXiv 2106.04560, section 2.2): a power of the cost down to a floor",
        ),
    ]


# -- the trainings --------------------------------------------------------------------------------


def _trainings(reading: Reading) -> list[tuple[str, str, str]]:
    ready = reading.standing.ready
    states = Counter(run.status for run in reading.runs)
    ends = ", ".join(f"{number} {status.text}" for status, number in states.items())
    seeds = _range(len(row.finished) for row in ready)
    recipes = [row.recipe for row in ready if isinstance(row.recipe, Recipe)]
    return [
        ("trainings", "networks", _networks(ready)),
        ("trainings", "trials", f"{len(reading.runs)}: {ends}"),
        ("trainings", "seeds of a recipe", seeds),
        ("trainings", "data", _data(reading)),
        ("trainings", "draw of the images", training_images_text(recipes) or ALL_IMAGES),
        (
            "trainings",
            "repeated data",
            f"every image is seen once an epoch: {_range(row.epochs for row in ready)} times",
        ),
        ("trainings", "hyper-parameters", _choice(reading)),
        ("trainings", "precision", _values(recipe.precision for recipe in recipes)),
        ("trainings", "devices", _facts(reading, "device")),
        ("trainings", "code", f"commits {_facts(reading, 'git_commit')}; mambaout is open source"),
    ]


def _networks(ready: Sequence[Row]) -> str:
    shapes = {(row.recipe.model.depths, row.recipe.model.dims) for row in ready}
    macs = [row.mean(MACS).value for row in ready if row.mean(MACS)]
    params = [row.mean(PARAMS).value for row in ready if row.mean(PARAMS)]
    text = counted(len(shapes), "shape")
    for name, values in (("MACs", macs), ("parameters", params)):
        if values:
            text += f", {count_text(min(values))} to {count_text(max(values))} {name}"
    return text


def _data(reading: Reading) -> str:
    name = reading.study.get("data_name") or _facts(reading, "data_name")
    num_train = _facts(reading, "num_train")
    return f"{name}, {num_train} training images"


def _choice(reading: Reading) -> str:
    if reading.searches:
        return f"searched in {counted(len(reading.searches), 'search')}, on minival"
    rules = len(reading.study.get("rules") or ())
    given = reading.study.get("given") or {}
    text = f"one recipe for all sizes; {counted(rules, 'field')} follow the data by fixed rules"
    if given:
        text += f", {counted(len(given), 'field')} given on the command line"
    return text + "; the learning rate is not tuned for each size"


# -- what was measured ----------------------------------------------------------------------------


def _measured(reading: Reading) -> list[tuple[str, str, str]]:
    return [
        ("measured", "metric", f"top-1 on val; images: {_facts(reading, 'num_val')}"),
        (
            "measured",
            "chosen on",
            f"minival, held out of training; images: {_facts(reading, 'num_minival')}",
        ),
        ("measured", "points of a training", "one, at the last step; no averaging of weights"),
        ("measured", "noise between seeds", reading.noise.text()),
        ("measured", "files", "every trial with its command: trials.csv, trials.parquet, MLflow"),
    ]


# -- the fit --------------------------------------------------------------------------------------


def _fit(reading: Reading) -> list[tuple[str, str, str]]:
    laws = [(one.name, one.law) for one in reading.laws if one.law]
    if not laws:
        return []
    return [
        (
            "fit",
            "objective",
            "squared error in points, each size weighted by one over the variance of its mean",
        ),
        (
            "fit",
            "algorithm and start",
            "a grid over exponent and shift, the rest is linear; then 30 Levenberg-Marquardt "
            "steps. There is no start value",
        ),
        ("fit", "points used", "; ".join(f"{name}: {_points(law)}" for name, law in laws)),
        (
            "fit",
            "intervals",
            "95 %, by a bootstrap that moves every size by its noise, whose size is drawn too",
        ),
        ("fit", "largest size held out", "; ".join(f"{n}: {_held(law)}" for n, law in laws)),
        ("fit", "predicted before training", _predicted(reading)),
    ]


def _points(law: Law) -> str:
    used, left = len(law.sizes), len(law.left_out)
    return f"{used} of {used + left} sizes" + (", the rest is beaten by cheaper ones" * bool(left))


def _held(law: Law) -> str:
    if law.holdout is None:
        return "too few sizes"
    off = law.holdout.error
    sigmas = law.holdout.sigmas
    return f"{off:+.2f} points" + (f" ({sigmas:+.1f} sigma)" if math.isfinite(sigmas) else "")


def _predicted(reading: Reading) -> str:
    told = [
        f"{said['label']}, {'not finished yet' if found.reached is None else 'finished'}"
        for said, found in reading.judged
        if found is not None
    ]
    return "; ".join(told) or "nothing"


# -- small texts ----------------------------------------------------------------------------------


def _facts(reading: Reading, name: str) -> str:
    finished = (run for run in reading.runs if run.status is Ending.FINISHED)
    return _values(run.facts[name] for run in finished if name in run.facts)


def _values(values: Iterable[object]) -> str:
    """The different values, joined; "not recorded" without any."""
    found = list(dict.fromkeys(map(str, values)))
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return ", ".join(found[:_MOST]) + more or UNKNOWN


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    if not found:
        return UNKNOWN
    return ", ".join(map(str, found)) if len(found) <= _MOST else f"{found[0]} to {found[-1]}"
