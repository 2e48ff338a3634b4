"""All results that a report needs, computed once for its text, charts and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mambaout.endings import Ending
from mambaout.study.law.exponents import ShapeFit, fit_shape
from mambaout.study.law.fit import Law, Size, TooFew, fit_law
from mambaout.study.law.joint import REPEATS, JointLaw, fit_joint
from mambaout.study.law.noise import SeedNoise
from mambaout.study.law.plateau import Plateau, plateaus
from mambaout.study.law.prediction import JudgedPrediction, judged, read_predictions
from mambaout.study.law.shape import Growth, growth
from mambaout.study.law.slices import Slice, iso_mac
from mambaout.study.report.families import Family, families, size
from mambaout.study.report.paired_reading import PairedReading, paired_reading
from mambaout.study.report.ranking import Standing, standing
from mambaout.study.report.rows import Row
from mambaout.study.report.search_findings import SearchFinding, searched
from mambaout.study.study import Run, StudyFolder
from mambaout.train.metrics import MACS, TOP1

IMAGE_MACS, TRAINING_MACS = "MACs of one image", "MACs of the whole training"
PAIRED_SCORE = "top-1 on val"
SLICE_TOLERANCE = 0.25  # shapes whose MACs differ by at most this share count as equal


@dataclass(frozen=True)
class FamilyLaw:
    """The law of one ladder, or the reason why there is none."""

    name: str  # "12 epochs", "all lengths"
    cost: str  # the meaning of C: "MACs of one image"
    rows: tuple[Row, ...]
    sizes: tuple[Size, ...]  # of the rows, with that cost
    law: Law | None
    reason: str = ""  # why there is no law


@dataclass(frozen=True, kw_only=True)
class GrowthFinding:
    """What one ladder shows about how networks should grow."""

    family: Family
    growth: Growth
    slices: tuple[Slice, ...]  # shapes of about equal MACs
    plateaus: tuple[Plateau, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A study's runs with everything that was computed from them."""

    study: Mapping[str, Any] = field(default_factory=dict)  # the content of study.json
    runs: tuple[Run, ...]  # with all speeds, including those of other devices
    standing: Standing  # the recipes in order
    families: tuple[Family, ...]  # shortest training first
    laws: tuple[FamilyLaw, ...]
    grown: tuple[GrowthFinding, ...]  # one for each family of at least two recipes
    exponents: ShapeFit | str  # a str says why there are none
    joint: JointLaw | str  # over size and length; a str says why there is none
    joint_with_repeats: JointLaw | str  # the same if repeated images count for less
    searches: tuple[SearchFinding, ...] = ()
    predictions: Sequence[Mapping[str, Any]] = ()  # prediction.json, one for each size
    paired: PairedReading | None = None  # if the study compares recipes within a seed

    @property
    def table(self) -> tuple[Row, ...]:
        """Best first."""
        return self.standing.rows

    @property
    def noise(self) -> SeedNoise:
        """The noise of val, which all parts of the report use."""
        return self.standing.noise

    @property
    def judged(self) -> list[tuple[Mapping[str, Any], JudgedPrediction | None]]:
        """Each prediction, and it beside its outcome; None if the sizes gave no prediction."""
        rows = {row.label: row for row in self.table}
        return [
            (said, judged(said, rows[label].mean(TOP1).values if label in rows else ()))
            for said in self.predictions
            for label in [said["label"]]
        ]


def read(folder: StudyFolder) -> Reading:
    return reading(folder.runs(), study=folder.read(), predictions=read_predictions(folder))


def reading(
    runs: Sequence[Run],
    *,
    study: Mapping[str, Any] | None = None,
    predictions: Sequence[Mapping[str, Any]] = (),
) -> Reading:
    stands = standing(runs, study)
    table = stands.rows
    searches = searched(study or {}, stands.speeds.runs)
    found = families(table)
    tuned = [*found, *_tuned(searches)]
    ended = all(run.status is not Ending.UNFINISHED for run in runs)
    noise = stands.noise
    return Reading(
        study=study or {},
        runs=tuple(runs),
        standing=stands,
        families=tuple(found),
        laws=tuple(_laws(tuned, noise)),
        grown=tuple(_grown(family, noise) for family in tuned if len(family.rows) > 1),
        exponents=_exponents(found, noise) if ended else "some trials have not ended",
        joint=_joint(found, noise, math.inf),
        joint_with_repeats=_joint(found, noise, REPEATS),
        searches=tuple(searches),
        predictions=predictions,
        paired=paired_reading(study or {}, table, TOP1, PAIRED_SCORE),
    )


def _tuned(searches: Sequence[SearchFinding]) -> list[Family]:
    """The best recipes of the searches as a ladder, if each search tuned another network."""
    best = [one.best_row for one in searches if one.best_row is not None]
    if len({row.recipe.model.dims + row.recipe.model.depths for row in best}) < 2:
        return []
    ordered = tuple(sorted(best, key=lambda row: row.mean(MACS).value))
    return [Family(max(row.epochs for row in ordered), ordered, "tuned per size")]


def _grown(family: Family, noise: SeedNoise) -> GrowthFinding:
    sizes = family.sizes
    return GrowthFinding(
        family=family,
        growth=growth(sizes, noise),
        slices=tuple(iso_mac(sizes, noise, SLICE_TOLERANCE)),
        plateaus=tuple(plateaus(sizes, noise)),
    )


def _exponents(found: Sequence[Family], noise: SeedNoise) -> ShapeFit | str:
    """SoViT's exponents over all lengths, because compute and shape must vary independently.

    Only for a study that has ended, because the fit takes longer than the rest of the report.
    """
    rows = [row for family in found for row in family.rows if row.train_macs > 0]
    try:
        return fit_shape([size(row, row.train_macs) for row in rows], noise)
    except TooFew as error:
        return str(error)


def _joint(found: Sequence[Family], noise: SeedNoise, repeats: float) -> JointLaw | str:
    """The law over size and length of all ladders."""
    sizes = [one for family in found for one in family.sizes]
    num_images = next((row.facts.get("num_train") for family in found for row in family.rows), None)
    if not num_images:
        return "the number of training images is not known"
    try:
        return fit_joint(sizes, int(num_images), noise, repeats=repeats)
    except TooFew as error:
        return str(error)


def _laws(found: Sequence[Family], noise: SeedNoise) -> list[FamilyLaw]:
    """For each length, a law over the MACs of an image; and one law over those of the training."""
    laws = [
        _law(family.name, IMAGE_MACS, family.rows, family.sizes, noise)
        for family in found
        if len(family.rows) > 1
    ]
    everything = tuple(row for family in found for row in family.rows if row.train_macs > 0)
    if len({family.epochs for family in found}) > 1:
        sizes = [size(row, row.train_macs) for row in everything]
        laws.append(_law("all lengths", TRAINING_MACS, everything, sizes, noise))
    return laws


def _law(
    name: str, cost: str, rows: tuple[Row, ...], sizes: Sequence[Size], noise: SeedNoise
) -> FamilyLaw:
    try:
        return FamilyLaw(name, cost, rows, tuple(sizes), fit_law(sizes, noise))
    except TooFew as error:
        return FamilyLaw(name, cost, rows, tuple(sizes), None, str(error))
