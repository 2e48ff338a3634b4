"""Which of Optuna's samplers finds the best front of accuracy against MACs in one search?

Run:    python benchmarks/samplers.py --seeds 40 --json results/samplers.json
Costs:  about 4 min on one core; nothing is trained
Prints: the hypervolume after all trials, mean and standard deviation over seeds of the sampler, and
        each sampler's lead over random draws, seed by seed, with its 95 % interval

The search is the second one of sweeps/recipe.py: shape, learning rate and drop path, two goals. A
trial's accuracy is an invented function of its recipe and MACs (`truth`), plus the noise of a
seed, which the sampler sees. The hypervolume is that of the true accuracies: the share of the box
of accuracy by the logarithm of MACs that the tried recipes dominate, in percent.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from scipy import stats

from mambaout.accounting import cost
from mambaout.endings import Ending
from mambaout.errors import WrongRequest
from mambaout.recipe import BASELINE, Recipe, tuned
from mambaout.study.axes import Choice, LinearRange, LogRange, Search, WholeRange
from mambaout.study.law.pareto import front
from mambaout.study.search.candidates import candidates
from mambaout.study.search.memory import Memory, quiet
from mambaout.study.search.space import base_values, recipe_of
from mambaout.train.metrics import MACS, MINIVAL_TOP1

Sampler = Literal["tpe", "nsga2", "random"]
SAMPLERS: tuple[Sampler, ...] = ("tpe", "nsga2", "random")
LENGTHS = (24, 50, 200)  # trials of a search; sweeps/recipe.py has 24
BASE = tuned(
    BASELINE, global_batch=64, epochs=9, warmup_epochs=1, image_size=28, stem_stride=2,
    minival_fraction=0.1, hidden_multiple=8, dims=(16, 32, 64, 96), depths=(1, 1, 3, 1),
    peak_lr=1e-3,
)  # fmt: skip
AXES = (
    LogRange("width", 0.5, 1.5),
    WholeRange("blocks", -2, 6),
    Choice("kernel_size", (3, 5, 7, 9)),
    Choice("expansion", (2.0, 8 / 3, 4.0)),
    Choice("conv_ratio", (0.5, 1.0, 2.0)),
    LogRange("peak_lr", 5e-4, 4e-3),
    LinearRange("drop_path", 0.0, 0.3),
)
SEED_SD = 0.5  # points of top-1 between seeds of a recipe, as on 6,000 images of Fashion-MNIST
LOW_TOP1, HIGH_TOP1 = 65.0, 90.0  # the box's other sides are the least and the most MACs


def truth(recipe: Recipe, macs: float) -> float:
    """A recipe's mean top-1: a law in its MACs, less the loss by a shape or a rate off its best."""
    model, off = recipe.model, math.log
    error = 9 + 11 * (macs / 3e6) ** -0.4
    error += 0.8 * (off(model.dims[0] / model.num_blocks) - off(2.5)) ** 2
    error += 1.5 * off(recipe.optim.peak_lr / (2e-3 * (16 / model.dims[0]) ** 0.7)) ** 2
    error += {3: 1.2, 5: 0.3, 7: 0.0, 9: 0.1}[model.kernel_size]
    error += 0.3 * off(model.expansion / 2.4) ** 2 + 0.2 * off(model.conv_ratio) ** 2
    return 100 - error - 25 * (model.drop_path - 0.02 * model.num_blocks / 6) ** 2


def searched(sampler: Sampler, seed: int, num_trials: int) -> float:
    """The hypervolume of one search in percent."""
    search = Search(
        label="shape",
        base=BASE,
        axes=AXES,
        num_trials=num_trials,
        goals=((MINIVAL_TOP1, "max"), (MACS, "min")),
        sampler=sampler,
        sampler_seed=seed,
    )
    memory = Memory(optuna.storages.InMemoryStorage(), search, "surrogate")
    noise, tried = random.Random(seed), dict[Recipe, tuple[float, float]]()
    for index in range(num_trials):
        found = base_values(search), BASE
        if index:
            found = next(pair for pair in valid(memory, index) if pair[1] not in tried)
        values, recipe = found
        macs = float(cost(recipe.model, recipe.image_size, 10).macs)
        tried[recipe] = macs, truth(recipe, macs)
        number = memory.add(values, key=str(index), label=str(index))
        memory.tell(number, Ending.FINISHED, (tried[recipe][1] + noise.gauss(0, SEED_SD), macs))
    return hypervolume(list(tried.values()))


def valid(memory: Memory, index: int) -> Any:
    """The values and recipes that the search may try as number `index`."""
    for values in candidates(memory, index):
        try:
            yield values, recipe_of(memory.search, values)
        except WrongRequest:
            continue


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """The share of the box that (MACs, top-1) points dominate, in percent."""
    ends = [_end(width, blocks) for width, blocks in ((0.5, -2), (1.5, 6))]
    low, high = (math.log(cost(one.model, one.image_size, 10).macs) for one in ends)
    order, area = front(points), 0.0
    for place, index in enumerate(order):
        until = math.log(points[order[place + 1]][0]) if place + 1 < len(order) else high
        start = min(max(math.log(points[index][0]), low), high)
        height = min(max(points[index][1] - LOW_TOP1, 0.0), HIGH_TOP1 - LOW_TOP1)
        area += max(min(until, high) - start, 0.0) * height
    return 100 * area / ((high - low) * (HIGH_TOP1 - LOW_TOP1))


def _end(width: float, blocks: int) -> Recipe:
    plain = Search(label="ends", base=BASE, axes=AXES, num_trials=1)
    shape = {"width": width, "blocks": blocks}
    shape |= {"expansion": 4.0, "conv_ratio": 2.0} if width > 1 else {"expansion": 2.0}
    return recipe_of(plain, base_values(plain) | shape)


def compared(num_trials: int, num_seeds: int) -> dict[str, list[float]]:
    """The hypervolume of each sampler's searches, printed with the leads over random draws."""
    found = {
        name: [searched(name, seed, num_trials) for seed in range(num_seeds)] for name in SAMPLERS
    }
    print(f"hypervolume in % after {num_trials} trials, n={num_seeds} searches each")
    for name, values in found.items():
        text = f"{name:7} {statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
        if name != "random":
            lead = [own - other for own, other in zip(values, found["random"], strict=True)]
            mean = statistics.fmean(lead)
            low, high = stats.t.interval(0.95, len(lead) - 1, mean, stats.sem(lead))
            text += f"   over random {mean:+.2f} ({low:+.2f} to {high:+.2f})"
        print(text, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Samplers of a search with two goals, compared.")
    parser.add_argument("--seeds", type=int, default=40, help="searches of each sampler")
    parser.add_argument("--trials", type=int, nargs="+", default=LENGTHS, help="of a search")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args(argv)
    quiet()
    found = {str(length): compared(length, options.seeds) for length in options.trials}
    if options.json:
        rows = {"seed_sd": SEED_SD, "hypervolume_percent_by_trials": found}
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
