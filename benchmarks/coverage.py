"""How often do the laws' 95 % intervals hold the truth? Simulated studies, and published families.

Run:    python benchmarks/coverage.py --studies 400 --json results/coverage.json
Costs:  about 12 min on one core for 400 studies of each scenario; nothing is trained
Writes: a row for each scenario: the share of studies whose interval held the truth, with its
        standard error, the root mean square of z, and the median width of the interval

The truth of a study is a law with random parameters. A size is a shape: it lies beside the law by
its own scatter, the same for all its seeds. Each seed adds noise. `noise_growth` is the noise of
the largest size divided by that of the smallest. `scatter` is the standard deviation of the shapes,
in units of the noise of one run at the middle cost. Judged are the law at five costs inside the
range, a new run of a new shape at twice the largest cost, and the largest size, predicted by the
law of the others. z is the miss divided by a quarter of the interval's width.

The joint law over size and length has studies of its own. A shape lies beside the law by the same
points at all its lengths. Judged are the law at all sizes and lengths, a new run of a new shape of
twice the largest size at the longest length, the largest size and the longest length when they are
left out, and the best size for the budget of the largest training.

A published family is judged by its largest model, predicted by the law of the others.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mambaout.accounting import TRAIN_FORWARDS
from mambaout.study.law.fit import Prediction, Size, TooFew, fit_law
from mambaout.study.law.joint import fit_joint
from mambaout.study.law.noise import noise_of
from mambaout.study.law.published import VAL_IMAGES, ladder, published

NOISE = 0.3  # points; of one run at the middle cost
LARGER = 2.0  # cost of the new run, in units of the largest size's
NUM_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A kind of study."""

    num_sizes: int
    seeds: int
    noise_growth: float = 1.0
    scatter: float = 0.0
    num_images: int | None = None  # of val, where known

    @property
    def costs(self) -> np.ndarray:
        return np.geomspace(1, 16 if self.num_sizes < 8 else 32, self.num_sizes)

    def noise_at(self, cost: float) -> float:
        """The standard deviation between the seeds of one size."""
        share = math.log(cost) / math.log(self.costs[-1]) - 0.5
        return NOISE * self.noise_growth**share


DESIGNS = (
    Scenario(num_sizes=4, seeds=2),
    Scenario(num_sizes=6, seeds=2),
    Scenario(num_sizes=8, seeds=1, num_images=10_000),
    Scenario(num_sizes=10, seeds=3),
)
KINDS = ((1.0, 0.0), (2.0, 0.0), (1.0, 1.5), (1.0, 1.0), (1.0, 3.0))  # noise_growth, scatter
SCENARIOS = tuple(
    replace(design, noise_growth=growth, scatter=scatter)
    for growth, scatter in KINDS
    for design in DESIGNS
)


@dataclass(frozen=True, kw_only=True)
class JointScenario:
    """A kind of study of several lengths."""

    num_sizes: int
    lengths: tuple[int, ...]  # epochs
    seeds: int
    noise_growth: float = 1.0  # over the sizes
    scatter: float = 0.0
    num_images: int | None = None

    @property
    def costs(self) -> np.ndarray:
        return np.geomspace(1, 16, self.num_sizes)

    def noise_at(self, cost: float) -> float:
        return NOISE * self.noise_growth ** (math.log(cost) / math.log(self.costs[-1]) - 0.5)


JOINT_DESIGNS = (
    JointScenario(num_sizes=4, lengths=(4, 12, 36), seeds=2),
    JointScenario(num_sizes=8, lengths=(4, 12, 36), seeds=1, num_images=10_000),
    JointScenario(num_sizes=6, lengths=(4, 8, 16, 32), seeds=3),
)
JOINT_SCENARIOS = tuple(
    replace(design, noise_growth=growth, scatter=scatter)
    for growth, scatter in KINDS[:3]
    for design in JOINT_DESIGNS
)


class Tally:
    """Counts how often intervals hold what they are for."""

    def __init__(self) -> None:
        self.held: list[bool] = []
        self.z: list[float] = []
        self.widths: list[float] = []

    def judge(self, prediction: Prediction, truth: float) -> None:
        self.held.append(prediction.low <= truth <= prediction.high)
        if prediction.sigma > 0:
            self.z.append((truth - prediction.value) / prediction.sigma)
        self.widths.append(prediction.high - prediction.low)

    def row(self) -> dict[str, Any]:
        if not self.held:
            return {"n": 0}
        share, n = float(np.mean(self.held)), len(self.held)
        return {
            "n": n,
            "covered": round(share, 4),
            "standard_error": round(math.sqrt(share * (1 - share) / n), 4),
            "z_rms": round(float(np.sqrt(np.mean(np.square(self.z)))), 3),
            "median_width": round(float(np.median(self.widths)), 3),
        }


def simulated(scenario: Scenario, study: int) -> tuple[list[Size], Callable[[float], float], float]:
    """The sizes of a study, its true law, and a new run at LARGER times the largest cost."""
    rng = np.random.default_rng([study, scenario.num_sizes, scenario.seeds])
    a, b, c, d = (rng.uniform(*r) for r in ((6, 20), (0.2, 0.9), (0, 12), (0, 0.5)))

    def truth(cost: float) -> float:
        return a * (cost + d) ** -b + c

    def runs(cost: float, count: int) -> tuple[float, ...]:
        beside = scenario.scatter * NOISE * rng.standard_normal()
        noise = scenario.noise_at(cost) * rng.standard_normal(count)
        return tuple(truth(cost) + beside + noise)

    sizes = [
        Size(label=f"s{i}", cost=float(cost), errors=runs(cost, scenario.seeds))
        for i, cost in enumerate(scenario.costs)
    ]
    return sizes, truth, runs(LARGER * scenario.costs[-1], 1)[0]


def coverage(scenario: Scenario, num_studies: int) -> dict[str, Any]:
    inside, new_run, largest = Tally(), Tally(), Tally()
    num_refused = 0
    for study in range(num_studies):
        sizes, truth, run = simulated(scenario, study)
        noise = noise_of([size.seeds for size in sizes], scenario.num_images)
        try:
            law = fit_law(sizes, noise, num_resamples=NUM_RESAMPLES, seed=study)
        except TooFew:
            num_refused += 1
            continue
        at = [float(cost) for cost in np.geomspace(1, scenario.costs[-1], 5)]
        for point, cost in zip(law.curve(at), at, strict=True):
            inside.judge(point, truth(cost))
        new_run.judge(law.predict(LARGER * scenario.costs[-1]), run)
        if law.holdout:
            largest.judge(law.holdout.prediction, law.holdout.size.error)
    return {
        **asdict(scenario),
        "studies": num_studies,
        "refused": num_refused,
        "new_run": new_run.row(),
        "law_inside": inside.row(),
        "largest_held_out": largest.row(),
    }


def simulated_joint(
    scenario: JointScenario, study: int
) -> tuple[list[Size], Callable[[float, float], float], float, float]:
    """The trainings of a study, its true law over cost and epochs, a new run, the best size."""
    rng = np.random.default_rng([study, scenario.num_sizes, scenario.seeds, len(scenario.lengths)])
    ranges = ((2, 10), (3, 12), (0.2, 0.8), (3, 12), (0.3, 1.0))
    c, large_a, a, large_b, b = (rng.uniform(*r) for r in ranges)

    def truth(cost: float, epochs: float) -> float:
        return c + large_a * cost**-a + large_b * (epochs / scenario.lengths[0]) ** -b

    def runs(cost: float, epochs: int, beside: float, count: int) -> tuple[float, ...]:
        noise = scenario.noise_at(cost) * rng.standard_normal(count)
        return tuple(truth(cost, epochs) + beside + noise)

    sizes = []
    for i, cost in enumerate(scenario.costs):
        beside = scenario.scatter * NOISE * rng.standard_normal()
        sizes += [
            Size(
                label=f"s{i}-e{epochs}",
                cost=float(cost),
                errors=runs(cost, epochs, beside, scenario.seeds),
                epochs=epochs,
            )
            for epochs in scenario.lengths
        ]
    beside = scenario.scatter * NOISE * rng.standard_normal()
    new = runs(LARGER * scenario.costs[-1], scenario.lengths[-1], beside, 1)[0]
    most = scenario.costs[-1] * scenario.lengths[-1]
    low, high = most / (4 * scenario.lengths[-1]), 4 * scenario.costs[-1]
    costs = np.geomspace(low, high, 2000)
    return sizes, truth, new, float(costs[np.argmin([truth(one, most / one) for one in costs])])


def joint_coverage(scenario: JointScenario, num_studies: int) -> dict[str, Any]:
    inside, new_run, largest, longest, best = (Tally() for _ in range(5))
    for study in range(num_studies):
        sizes, truth, run, best_cost = simulated_joint(scenario, study)
        noise = noise_of([size.seeds for size in sizes], scenario.num_images)
        law = fit_joint(sizes, 1000, noise, num_resamples=NUM_RESAMPLES, seed=study)
        for epochs in scenario.lengths:
            at = [float(cost) for cost in np.geomspace(1, scenario.costs[-1], 5)]
            for point, cost in zip(law.curve(at, epochs), at, strict=True):
                inside.judge(point, truth(cost, epochs))
        new_run.judge(law.predict(LARGER * scenario.costs[-1], scenario.lengths[-1]), run)
        for group in law.left_out:
            tally = largest if group.name == "the largest size" else longest
            for one in group.holdouts:
                tally.judge(one.prediction, one.size.error)
        budget = TRAIN_FORWARDS * 1000 * scenario.costs[-1] * scenario.lengths[-1]
        macs = law.optimum(budget).macs
        logs = (math.log(value) for value in (macs.value, macs.low, macs.high))
        best.judge(Prediction(*logs), math.log(best_cost))
    return {
        **asdict(scenario),
        "studies": num_studies,
        "new_run": new_run.row(),
        "law_inside": inside.row(),
        "largest_left_out": largest.row(),
        "longest_left_out": longest.row(),
        "log_best_size": best.row(),
    }


def published_families() -> dict[str, Any]:
    """The largest models of the published families, predicted by the smaller ones."""
    tally, families = Tally(), []
    for family in sorted(Counter(row.family for row in published())):
        sizes = ladder(family)
        try:
            law = fit_law(sizes, noise_of([size.seeds for size in sizes], VAL_IMAGES))
        except TooFew:
            continue
        if law.holdout:
            tally.judge(law.holdout.prediction, law.holdout.size.error)
            families.append({"family": family, "z": round(tally.z[-1], 2), "held": tally.held[-1]})
    return {"published": families, "largest_held_out": tally.row()}


def measured(num_studies: int, num_joint_studies: int) -> Iterator[dict[str, Any]]:
    yield published_families()
    for scenario in SCENARIOS:
        yield coverage(scenario, num_studies)
    for joint in JOINT_SCENARIOS:
        yield joint_coverage(joint, num_joint_studies)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The coverage of the laws' intervals.")
    parser.add_argument("--studies", type=int, default=400, help="of each scenario of one length")
    parser.add_argument("--joint-studies", type=int, default=200, help="of several lengths")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "benchmarks/coverage.py", *given])
    rows = []
    for row in measured(options.studies, options.joint_studies):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.json:
            body = json.dumps({"command": command, "rows": rows}, indent=1)
            options.json.write_text(body + "\n")


if __name__ == "__main__":
    main()
