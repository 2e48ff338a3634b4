"""The order of a study's recipes, and the reasons not to trust it.

Recipes are ranked on minival: training images that are held out to choose on. Val is the test set.
It is shown, but ranks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

from mambaout.numbers import counted, percent_text
from mambaout.recipe import Recipe
from mambaout.rules import LEAST_MINIVAL
from mambaout.study.axes import Search, search_from_json
from mambaout.study.law.noise import Difference, SeedNoise, noise_of_runs
from mambaout.study.report.rows import Row, rows
from mambaout.study.search.best import best, runs_of
from mambaout.study.speeds import Speeds, own_speeds
from mambaout.study.study import Run
from mambaout.train.metrics import MINIVAL_TOP1, TOP1

SURE = 0.95
# A network this much better than chance has learned something, even on small data: a tenth of the
# way from chance to 100 %, or twice chance if there are many classes.
LEARNED_SHARE, LEARNED_FACTOR = 0.1, 2.0
# Facts of studies and outcomes that are read here. Each may be missing.
NUM_MINIVAL, NUM_VAL, NUM_CLASSES = "num_minival", "num_val", "num_classes"
CHANCE_TOP1 = "chance_top1"  # percent: the share of the most frequent class
_AUGMENTS = ("randaugment", "mixup", "cutmix", "erasing")


@dataclass(frozen=True, kw_only=True)
class Chance:
    """The accuracy of a network that has learned nothing."""

    top1: float  # percent
    num_classes: int
    is_share: bool  # the most frequent class's share, else 1 / num_classes
    num_recipes: int  # of the study; the best of many that guess is lucky

    @property
    def text(self) -> str:
        if self.is_share:
            return f"always naming the most frequent class gives {percent_text(self.top1, 1)}"
        return f"guessing among {self.num_classes} classes gives {percent_text(self.top1, 1)}"

    def bound(self, num_images: int) -> float:
        """The top-1 in percent above which a result on `num_images` images is not chance.

        If all recipes of a study guess, one in 20 such studies has a recipe above it.
        """
        learned = min(LEARNED_FACTOR * self.top1, self.top1 + LEARNED_SHARE * (100 - self.top1))
        if not num_images:
            return learned
        quantile = NormalDist().inv_cdf(1 - (1 - SURE) / max(self.num_recipes, 1))
        spread = math.sqrt(self.top1 * (100 - self.top1) / num_images)
        return max(learned, self.top1 + quantile * spread)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A study's recipes in order, and how sure the order is."""

    rows: tuple[Row, ...]  # best first, those without a finished seed last
    noise: SeedNoise  # of val
    minival_noise: SeedNoise
    searches: tuple[Search, ...]
    confirmed: frozenset[Recipe]  # recipes of searches that have all their seeds, if several
    search_bests: frozenset[Recipe]  # those of the confirmed that are the best of their search
    chance: Chance | None  # None if the number of classes is not known
    near_chance: frozenset[Recipe]
    num_minival: int | None  # the smallest minival of any recipe
    speeds: Speeds = field(default_factory=Speeds)  # its runs are those of `rows`

    @cached_property
    def ready(self) -> list[Row]:
        return [row for row in self.rows if row.mean(TOP1)]

    @cached_property
    def best(self) -> Row | None:
        """The best recipe on minival; None before any has finished."""
        return next((row for row in self.rows if row.mean(MINIVAL_TOP1)), None)

    @property
    def best_run(self) -> Run | None:
        """The run of the best recipe's seed that is highest on minival."""
        runs = self.best.finished if self.best else ()
        scored = [run for run in runs if math.isfinite(run.metrics.get(MINIVAL_TOP1, math.nan))]
        return max(scored, key=lambda run: run.metrics[MINIVAL_TOP1], default=None)

    @cached_property
    def guessing(self) -> bool:
        """Whether the study is near chance: its best recipe is, or half of all recipes are."""
        best = self.best
        if best is None:
            return False
        return best.recipe in self.near_chance or 2 * len(self.near_chance) > len(self.ready)

    @property
    def has_verdict(self) -> bool:
        """Whether the study can tell a difference between recipes from luck at all."""
        return self.noise.has_seeds and not self.guessing

    def is_elsewhere(self, row: Row) -> bool:
        """Whether a seed of the row was trained on another device than the study's."""
        return any(run.trial.key in self.speeds.elsewhere for run in row.runs)

    def score(self, row: Row) -> float:
        """Minival's mean minus half its interval, so one lucky seed does not beat a sure mean."""
        return score(row, self.minival_noise)

    @cached_property
    def ranks(self) -> list[int | None]:
        """The ranks of `rows`, from 1. Equal recipes share a rank; None without a result."""
        found: list[int | None] = []
        before = None
        for place, row in enumerate(self.rows, 1):
            now = (row.recipe in self.confirmed, row.recipe in self.search_bests, self.score(row))
            found.append((found[-1] if now == before else place) if row.mean(TOP1) else None)
            before = now
        return found

    def is_within_noise(self, row: Row) -> bool:
        """Whether the noise is known and minival cannot tell the row from the best one."""
        best = self.best
        if best is None or row is best or not row.mean(MINIVAL_TOP1):
            return False
        return self.lead(best, row).is_within_noise

    def lead(self, first: Row, second: Row) -> Difference:
        """How far the first is above the second on minival."""
        return self.minival_noise.difference(first.mean(MINIVAL_TOP1), second.mean(MINIVAL_TOP1))

    def difference(self, first: Row, second: Row) -> Difference:
        """How far the first is above the second on val."""
        return self.noise.difference(first.mean(TOP1), second.mean(TOP1))

    # -- in words

    def warnings(self) -> list[str]:
        """Doubts about the order, the most serious first. Empty if there are none."""
        if not self.ready:
            return []
        said = [self._guessing()] if self.guessing else []
        if not self.noise.has_seeds and len(self.ready) > 1 and not self.guessing:
            said.append(self._one_seed())
        others = [row for row in self.ready if row is not self.best]
        if self.has_verdict and others and all(map(self.is_within_noise, others)):
            said.append(
                "No recipe is clearly the best: all others are within noise of #1. More seeds "
                "(--seeds) or more epochs (--epochs) tell more."
            )
        said += [self._small_minival()] if self.minival_noise.least_points else []
        return said + ([self._some_near()] if self.near_chance and not self.guessing else [])

    def _guessing(self) -> str:
        assert self.best is not None
        assert self.chance is not None
        best, of = self.best, len(self.ready)
        learned = of - len(self.near_chance)
        if learned:
            who = f"Only {learned} of {of} recipes {_is(learned)}"
        else:
            who = "No recipe is" if of > 1 else f"{best.label} is not"
        order = " The order of the recipes says little." if of > 1 else ""
        return (
            f"No verdict: the study is near chance. {who} clearly better than guessing. "
            f"{best.label}, the highest on minival, has "
            f"{percent_text(best.mean(MINIVAL_TOP1).value, 1)} there and "
            f"{percent_text(best.mean(TOP1).value, 1)} on val; {self.chance.text}, and up to "
            f"{percent_text(self.chance.bound(_images(best)), 1)} counts as near chance "
            f"here.{order} What to try: {'; '.join(self._remedies())}."
        )

    def _remedies(self) -> list[str]:
        recipes = [row.recipe for row in self.ready]
        epochs = max(recipe.schedule.total_epochs for recipe in recipes)
        rate = max(recipe.optim.peak_lr for recipe in recipes)
        on = [n for n in _AUGMENTS if any(getattr(r.augment, n) > 0 for r in recipes)]
        # A field that is an axis of the search cannot also be set by hand.
        axes = {axis.name for search in self.searches for axis in search.axes}

        def option(name: str, value: str = "") -> list[str]:
            return [] if name in axes else [f"--{name.replace('_', '-')}{value}"]

        advice = {
            f"more than {counted(epochs, 'epoch')}": option("epochs"),
            f"a higher learning rate than {rate:.2g}": option("peak_lr"),
        }
        if on:
            advice["less augmentation"] = [o for name in on for o in option(name, " 0")]
        found = [f"{t} ({' '.join(options)})" if options else t for t, options in advice.items()]
        return [*found, "check that the labels belong to the images"]

    def _one_seed(self) -> str:
        text = (
            "No verdict: no recipe has finished with two seeds, so no difference between recipes "
            "can be told from luck."
        )
        if self.best is not None and self.num_minival is not None:
            half = half_width(self.best.mean(MINIVAL_TOP1).value, self.num_minival)
            text += f" The {self.num_minival} images of minival alone leave ± {half:.1f} points."
        more = "; the best recipes of the search then get more seeds" if self.searches else ""
        return f"{text} Run the study again with --seeds 3{more}. What has finished is kept."

    def _small_minival(self) -> str:
        text = (
            f"Minival has {self.num_minival} images, fewer than {LEAST_MINIVAL}: it cannot choose "
            f"between recipes that are closer than {self.minival_noise.least_points:.0f} points."
        )
        assert self.best is not None
        assert self.num_minival is not None
        # The share of all training images, before `train_images` takes a part of them.
        fraction = self.best.recipe.minival_fraction * LEAST_MINIVAL / max(self.num_minival, 1)
        if fraction < 0.5:  # the largest share that a recipe takes
            share = math.ceil(100 * fraction) / 100
            return f"{text} A larger one: --minival-fraction {min(share, 0.49):g}."
        return f"{text} The data has too few images for a minival of {LEAST_MINIVAL}."

    def _some_near(self) -> str:
        assert self.chance is not None
        names = [row.label for row in self.ready if row.recipe in self.near_chance]
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        return (
            f"{len(names)} of {len(self.ready)} recipes {_is(len(names))} near chance ({shown}): "
            f"{self.chance.text}."
        )


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def score(row: Row, noise: SeedNoise) -> float:
    mean = row.mean(MINIVAL_TOP1)
    return mean.value - (noise.half_width(mean) or 0.0) if mean else -math.inf


def half_width(top1: float, num_images: int) -> float:
    """Half of Wilson's 95 % interval, in points, for a top-1 in percent on `num_images` images."""
    z, p, n = NormalDist().inv_cdf((1 + SURE) / 2), top1 / 100, max(num_images, 1)
    return 100 * z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))


def standing(runs: Iterable[Run], study: Mapping[str, Any] | None = None) -> Standing:
    """The runs in order. `study` is the content of study.json."""
    speeds, study = own_speeds(list(runs)), study or {}
    table = rows(speeds.runs)
    searches = tuple(search_from_json(body) for body in study.get("searches", ()))
    confirmed = _confirmed(table, searches)
    bests = [best(search, speeds.runs) for search in searches]
    search_bests = confirmed & {one.recipe for one in bests if one is not None}
    noise = noise_of_runs(speeds.runs, MINIVAL_TOP1)

    def order(row: Row) -> tuple[Any, ...]:
        has_result = bool(row.mean(TOP1))
        macs = row.train_macs if math.isfinite(row.train_macs) else math.inf
        # If recipes are equal on minival, the cheaper one comes first.
        by_search = (row.recipe not in confirmed, row.recipe not in search_bests)
        return (not has_result, *by_search, -score(row, noise), macs)

    ordered = tuple(sorted(table, key=order))
    ready = [row for row in ordered if row.mean(TOP1)]
    chance = _chance(study, ready)
    near = [row for row in ready if chance and _is_near(row, chance)]
    counts = [row.facts[NUM_MINIVAL] for row in ready if NUM_MINIVAL in row.facts]
    num_minival = min(counts, default=study.get(NUM_MINIVAL))
    num_val = next((row.facts[NUM_VAL] for row in table if NUM_VAL in row.facts), None)
    return Standing(
        rows=ordered,
        noise=noise_of_runs(speeds.runs, TOP1, num_val),
        minival_noise=replace(noise, least_points=_least_points(ordered, num_minival)),
        searches=searches,
        confirmed=confirmed,
        search_bests=search_bests,
        chance=chance,
        near_chance=frozenset(row.recipe for row in near),
        num_minival=num_minival,
        speeds=speeds,
    )


def _least_points(ordered: Sequence[Row], num_minival: int | None) -> float:
    """The points that a minival of under 100 images cannot resolve; 0 for a larger one."""
    first = next((mean for row in ordered if (mean := row.mean(MINIVAL_TOP1))), None)
    if first is None or num_minival is None or num_minival >= LEAST_MINIVAL:
        return 0.0
    return half_width(first.value, num_minival)


def _confirmed(table: Sequence[Row], searches: Sequence[Search]) -> frozenset[Recipe]:
    found = []
    for search in searches:
        own = {run.trial.recipe for row in table for run in runs_of(search, row.runs)}
        found += [
            row.recipe
            for row in table
            if len(search.seeds) > 1
            and row.recipe in own
            and set(search.seeds) <= {run.trial.seed for run in row.finished}
        ]
    return frozenset(found)


def _chance(study: Mapping[str, Any], ready: Sequence[Row]) -> Chance | None:
    sources = [study, *(row.facts for row in ready)]
    classes = next((int(s[NUM_CLASSES]) for s in sources if s.get(NUM_CLASSES)), None)
    share = next((float(s[CHANCE_TOP1]) for s in sources if s.get(CHANCE_TOP1)), None)
    if classes is None or classes < 2:
        return None
    return Chance(
        top1=100 / classes if share is None else share,
        num_classes=classes,
        is_share=share is not None,
        num_recipes=len(ready),
    )


def _images(row: Row) -> int:
    """The images of minival and val together; 0 if not known."""
    return sum(int(row.facts.get(name, 0)) for name in (NUM_MINIVAL, NUM_VAL))


def _is_near(row: Row, chance: Chance) -> bool:
    """Whether guessing could have reached the row's top-1 on minival and val together.

    More seeds do not count as more images, because all seeds are tested on the same images.
    """
    parts = [
        (row.mean(metric).value, int(row.facts.get(name, 0)))
        for metric, name in ((MINIVAL_TOP1, NUM_MINIVAL), (TOP1, NUM_VAL))
        if row.mean(metric)
    ]
    images = sum(count for _, count in parts)
    if not images:
        return max(value for value, _ in parts) <= chance.bound(0)
    pooled = sum(value * count for value, count in parts) / images
    return pooled <= chance.bound(images)
