"""Seeds that a study adds until it knows width against depth well enough: `--until POINTS`.

When the recipes have ended, the half of the 95 % interval is computed as the report computes it
(law/shape.py). While a ladder's half is above the wanted one, the shape gets another seed that
makes the gain most precise for its MACs. The rule looks at the width of the interval only, and
never at the gain. So it does not stop on a lucky result: over simulated studies without a gain, 2
to 4 % end with a significant one (tests/study/test_power.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from mambaout.endings import Ending
from mambaout.numbers import counted
from mambaout.recipe import Recipe
from mambaout.study.law.fit import Size
from mambaout.study.law.noise import SeedNoise, noise_of_runs
from mambaout.study.law.planned import PlannedSize, planned_ladders
from mambaout.study.law.power import expected_interval, next_seed
from mambaout.study.law.shape import gain_of_shape
from mambaout.study.origin import AddedSeed
from mambaout.study.search.ledger import Ledger
from mambaout.study.study import Run, StudyFolder, Trial
from mambaout.train.metrics import TOP1

# Of a shape, failed ones included. It is less than a plan may ask for (law/power.py): seeds are
# added here because the interval is still wide, and if 20 do not narrow it, the shapes scatter.
MOST_UNTIL_SEEDS = 20


class MoreSeeds:
    """The added seeds of one study."""

    def __init__(
        self,
        until: float,
        trials: Sequence[Trial],
        folder: StudyFolder,
        ledger: Ledger,
        *,
        num_train: Callable[[Recipe], int],
        num_classes: int,
    ) -> None:
        self.until, self.folder, self.ledger = until, folder, ledger
        self.notice: str | None = None  # why the interval stays wider than wanted
        self._num_train, self._num_classes = num_train, num_classes
        sized = planned_ladders(trials, num_train, num_classes)
        labels = {size.label for sizes in sized.values() for size in sizes}
        self._trials = [trial for trial in trials if trial.label in labels]
        self._closed: dict[str, Run] = {}
        for trial in self._trials:
            run = folder.run(trial)
            if run.status.is_over:
                self._closed[trial.key] = run
        self._decided: int | None = None  # how many had ended at the last decision to wait
        self.over = False
        self._chosen()  # a study that knows enough starts nothing
        self.num_undecided = self._estimate()

    def next(self) -> Trial | None:
        """Another seed to start now; None if trials must end first, or if all is known."""
        if self.over or self._decided == len(self._closed):
            return None
        trial = self._next()
        self._decided = len(self._closed) if trial is None else None
        self.num_undecided = self._estimate()
        return trial

    def ended(self, run: Run) -> None:
        if any(run.trial.key == trial.key for trial in self._trials):
            self._closed[run.trial.key] = run
            self.num_undecided = self._estimate()

    # -- the decision

    def _next(self) -> Trial | None:
        label = self._chosen()
        if label is None:
            return None
        own = [trial for trial in self._trials if trial.label == label]
        seed = max(trial.seed for trial in own) + 1
        trial = replace(own[0], seed=seed, origins=(AddedSeed(),))
        self._trials.append(trial)
        self.ledger.given.add(trial.key)
        self.ledger.write(trial, self.folder)
        return trial

    def _chosen(self) -> str | None:
        """The label that gets the next seed; None if trials must end first, or if all is over."""
        is_idle = len(self._closed) == len(self._trials)
        wide = self._too_wide()
        if wide is None:  # the noise is not known yet
            if not is_idle:
                return None
            wide = [(math.inf, sizes) for sizes in self._planned(self._trials).values()]
        if not wide:
            self.over = is_idle
            return None
        _, sizes = wide[0]
        label = sizes[next_seed(sizes)].label
        num_seeds = sum(trial.label == label for trial in self._trials)
        if num_seeds >= MOST_UNTIL_SEEDS:
            self.over = is_idle
            self.notice = (
                f"The interval of width against depth stays wider than ± {self.until:g} points: "
                f"{label} has {counted(num_seeds, 'seed')}. The shapes scatter by more than their "
                "seeds, or seeds have failed; more shapes would tell more."
            )
            return None
        return label

    def _too_wide(self) -> list[tuple[float, list[PlannedSize]]] | None:
        """The ladders whose expected interval is too wide, with running trials counted in.

        Each with half of that interval; the widest comes first. None if no shape has two finished
        seeds.
        """
        finished = [run for run in self._closed.values() if run.status is Ending.FINISHED]
        noise = noise_of_runs(finished)
        if not noise.has_seeds:
            return None
        now = self._planned([run.trial for run in finished])
        later = self._planned(
            [trial for trial in self._trials if trial.key not in self._closed]
            + [run.trial for run in finished]
        )
        found = []
        for epochs, sizes in later.items():
            half = self._half(now.get(epochs, []), finished, noise)
            expected = self._expected(sizes, noise)
            if half is None or expected is None:
                continue
            before = self._expected(now[epochs], noise)
            # The shapes may scatter by more than their seeds; that stays.
            half = expected if not before else half * expected / before
            if half > self.until:
                found.append((half, sizes))
        return sorted(found, key=lambda row: -row[0])

    def _planned(self, trials: Sequence[Trial]) -> dict[int, list[PlannedSize]]:
        return planned_ladders(trials, self._num_train, self._num_classes)

    def _half(
        self, sizes: Sequence[PlannedSize], finished: Sequence[Run], noise: SeedNoise
    ) -> float | None:
        """Half of the interval that the report computes; None if it has none."""
        errors: dict[str, dict[int, float]] = {}
        for run in finished:
            own = errors.setdefault(run.trial.label, {})
            own[run.trial.seed] = 100 - run.metrics[TOP1]
        measured = [
            Size(
                label=size.label,
                cost=size.cost,
                errors=tuple(errors[size.label].values()),
                seed_numbers=tuple(errors[size.label]),
                depth=size.depth,
                width=size.width,
                epochs=size.epochs,
            )
            for size in sizes
        ]
        gain = gain_of_shape(measured, noise)
        return None if gain is None else gain.high - gain.value

    def _expected(self, sizes: Sequence[PlannedSize], noise: SeedNoise) -> float | None:
        spread = noise.spread(sizes[0].epochs)
        assert spread is not None
        own = sum(size.num_seeds - 1 for size in sizes)
        sd = spread.points if spread.own_points is None else spread.own_points
        shared = math.sqrt(spread.shared_variance)
        found = expected_interval(sizes, sd, max(0, spread.degrees - own), shared)
        return found and found.half

    def _estimate(self) -> int:
        """About how many seeds will be added, for the ETA. Intervals narrow as 1 / sqrt(n)."""
        more = 0
        for half, sizes in () if self.over else self._too_wide() or ():
            num = sum(size.num_seeds for size in sizes)
            wanted = math.ceil(num * ((half / self.until) ** 2 - 1))
            more += min(wanted, MOST_UNTIL_SEEDS * len(sizes) - num)
        return max(more, 0)
