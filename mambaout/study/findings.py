"""The study's answer in words, computed from its runs and no surer than they are.

Differences are held against the noise between seeds: a difference counts as beyond it when it is
outside the 95 % interval of Student's t, with the spread pooled over all recipes that have more
than one seed. What the size of val adds to the noise is not in it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from mambaout.recipe import BASELINE, content_key
from mambaout.study.pareto import front
from mambaout.study.rows import Row, chosen, count_text, rate_text
from mambaout.train.metrics import IMAGES_PER_SECOND, MACS, MINIVAL_TOP1, PARAMS, TOP1

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T95 = (
    12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
CLOSE_POINTS = 1.0  # of top-1: how far behind the best a cheaper variant may be to be named


@dataclass(frozen=True)
class Noise:
    """The spread of val top-1 between seeds, pooled over recipes."""

    spread: float  # points
    degrees: int  # of freedom

    def bound(self, first: Row, second: Row) -> float:
        """Points that two recipes' means must differ by to be told apart."""
        share = 1 / len(first.mean(TOP1).values) + 1 / len(second.mean(TOP1).values)
        quantile = _T95[self.degrees - 1] if self.degrees <= len(_T95) else 1.96
        return quantile * self.spread * math.sqrt(share)


def seed_noise(table: Sequence[Row]) -> Noise | None:
    """None where no recipe has two finished seeds."""
    squares, degrees = 0.0, 0
    for row in table:
        values = row.mean(TOP1).values
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            degrees += len(values) - 1
    return Noise(math.sqrt(squares / degrees), degrees) if degrees else None


def ladder(table: Sequence[Row]) -> list[Row]:
    """The finished recipes that differ in their network alone, fewest MACs first.

    Of several such families it is the largest, and the baseline recipe is not part of it.
    """
    ready = [row for row in table if row.mean(TOP1) and row.mean(MACS) and not row.is_baseline]

    def family(row: Row) -> str:
        return content_key(replace(row.recipe, model=BASELINE.model))

    sizes = Counter(map(family, ready))
    largest = max(sizes, key=lambda key: sizes[key], default=None)
    return sorted(
        (row for row in ready if family(row) == largest), key=lambda row: row.mean(MACS).value
    )


def answer(table: Sequence[Row]) -> list[str]:
    """Sentences that answer the study's question as far as its runs do."""
    ready = [row for row in table if row.mean(TOP1)]
    if not ready:
        return ["No trial has finished yet, so there is no answer yet."]
    noise = seed_noise(ready)
    steps = ladder(ready)
    return [
        *_missing(table),
        _best(ready, noise),
        *_bigger(steps, noise),
        *_axes(steps),
        *_value(ready),
        *_baseline(ready, noise),
        *_unsure(ready, noise),
    ]


def _best(ready: Sequence[Row], noise: Noise | None) -> str:
    """Which recipe is best, at what cost, and how sure that is."""
    best = chosen(ready) or ready[0]
    text = (
        f"{best.label} comes out best: {best.mean(TOP1).text(unit=' %')} top-1 on val for "
        f"{count_text(best.mean(MACS).value)} MACs, {count_text(best.mean(PARAMS).value)} "
        f"parameters and {rate_text(best.mean(IMAGES_PER_SECOND).value)} images/s in training; "
        f"it was chosen on minival ({best.mean(MINIVAL_TOP1).value:.2f} %)."
    )
    others = sorted((row for row in ready if row is not best), key=_top1, reverse=True)
    if not others:
        return text
    other = others[0]
    lead = _top1(best) - _top1(other)
    judged = _judged(abs(lead), best, other, noise)
    if lead >= 0:
        return f"{text} Its lead over {other.label}, the next on val, is {judged}."
    return f"{text} On val {other.label} is higher by {judged}."


def _judged(points: float, first: Row, second: Row, noise: Noise | None) -> str:
    """ "1.83 points, beyond seed noise (...)"."""
    if noise is None:
        return f"{points:.2f} points"  # what that is worth is said once, at the end
    bound = noise.bound(first, second)
    where = "beyond" if points > bound else "within"
    return (
        f"{points:.2f} points, {where} seed noise (spread {noise.spread:.2f} points between "
        f"seeds, so {bound:.2f} is needed)"
    )


def _value(ready: Sequence[Row]) -> list[str]:
    """The cheapest recipe that is nearly as good, where that is not the best itself."""
    priced = [row for row in ready if row.mean(MACS)]
    if len(priced) < 2:
        return []
    best = max(priced, key=_top1)
    near = [row for row in priced if _top1(best) - _top1(row) <= CLOSE_POINTS]
    cheap = min(near, key=lambda row: row.mean(MACS).value)
    on_front = front([(row.mean(MACS).value, _top1(row)) for row in priced])
    names = ", ".join(priced[i].label for i in on_front)
    text = f"On the front of accuracy against MACs: {names}."
    share = best.mean(MACS).value / cheap.mean(MACS).value
    if cheap is not best and share > 1.2:
        text += (
            f" {cheap.label} is within {CLOSE_POINTS:g} point of the highest at "
            f"1/{share:.1f} of its MACs."
        )
    return [text]


def _bigger(steps: Sequence[Row], noise: Noise | None) -> list[str]:
    """Whether more MACs gave more accuracy, over recipes that differ in the network alone."""
    if len(steps) < 2:
        return []
    low, high = steps[0], steps[-1]
    factor = high.mean(MACS).value / low.mean(MACS).value
    if factor < 1.05:
        return []
    gain = _top1(high) - _top1(low)
    span = (
        f"from {count_text(low.mean(MACS).value)} to {count_text(high.mean(MACS).value)} MACs "
        f"(x{factor:.1f}, {len(steps)} variants) top-1 goes from {_top1(low):.2f} to "
        f"{_top1(high):.2f} %"
    )
    order = rank_correlation([row.mean(MACS).value for row in steps], list(map(_top1, steps)))
    slope = gain_per_doubling(steps)
    falls = [(a, b) for a, b in pairwise(steps) if _top1(b) < _top1(a)]
    clear = noise is None or abs(gain) > noise.bound(low, high)
    if gain > 0 and not falls:
        verdict = "Bigger was better at every step"
    elif gain > 0 and order >= 0.6:
        verdict = "Bigger was better on the whole"
    elif gain < 0 and order <= -0.6:
        verdict = "Bigger was worse"
    else:
        verdict = "Bigger was not clearly better"
    text = (
        f"{verdict}: {span}, {slope:+.2f} points a doubling of MACs, rank correlation {order:.2f}."
    )
    if not clear:
        text += " Between the ends the difference is within seed noise."
    if falls:
        a, b = max(falls, key=lambda pair: _top1(pair[0]) - _top1(pair[1]))
        drop = _judged(_top1(a) - _top1(b), a, b, noise)
        text += f" The largest step down is from {a.label} to {b.label}: {drop}."
    return [text]


def _axes(steps: Sequence[Row]) -> list[str]:
    """What a doubling of MACs buys by depth and by width."""
    axes: dict[str, Callable[[Row], Hashable]] = {
        "depth": lambda row: row.recipe.model.dims,  # what stays the same
        "width": lambda row: row.recipe.model.depths,
    }
    found = {}
    for axis, fixed in axes.items():
        groups: dict[Hashable, list[Row]] = {}
        for row in steps:
            groups.setdefault(fixed(row), []).append(row)
        lines = [group for group in groups.values() if len(group) > 1]
        slope = gain_per_doubling(*lines)
        if lines and math.isfinite(slope):
            found[axis] = (slope, sum(map(len, lines)))
    if len(found) < 2:
        return []
    parts = [
        f"{slope:+.2f} points when spent on {axis} ({count} variants)"
        for axis, (slope, count) in found.items()
    ]
    return [f"A doubling of MACs bought {' and '.join(parts)}."]


def _baseline(ready: Sequence[Row], noise: Noise | None) -> list[str]:
    base = next((row for row in ready if row.is_baseline), None)
    rivals = [row for row in ready if not row.is_baseline]
    if base is None or not rivals:
        return []
    text = (
        f"The baseline recipe reaches {base.mean(TOP1).text(unit=' %')} at "
        f"{count_text(base.mean(MACS).value)} MACs{base.cut}"
    )
    rival = min(rivals, key=lambda row: abs(math.log(_ratio(row, base))))
    if abs(math.log(_ratio(rival, base))) > math.log(1.5):
        return [f"{text}; no other recipe has about as many."]
    gap = _top1(rival) - _top1(base)
    side = "above" if gap >= 0 else "below"
    return [
        f"{text}; {rival.label}, the nearest in MACs ({count_text(rival.mean(MACS).value)}), is "
        f"{side} it by {_judged(abs(gap), rival, base, noise)}."
    ]


def _unsure(ready: Sequence[Row], noise: Noise | None) -> list[str]:
    if noise is not None or len(ready) < 2:
        return []
    return [
        "No recipe has finished with two seeds, so whether any of these differences is beyond "
        "seed noise cannot be said; launch the study again with --seeds 3."
    ]


def _missing(table: Sequence[Row]) -> list[str]:
    states = Counter(run.status for row in table for run in row.runs)
    total = sum(states.values())
    parts = []
    if states["unfinished"]:
        parts.append(f"{states['unfinished']} of {total} trials have not finished")
    for status in ("diverged", "failed"):
        if states[status]:
            names = [run.trial.name for row in table for run in row.runs if run.status == status]
            parts.append(f"{states[status]} {status} ({', '.join(names)})")
    return [f"Provisional: {' and '.join(parts)}; they are not in these numbers."] if parts else []


# -- small statistics -----------------------------------------------------------------------------


def _top1(row: Row) -> float:
    return row.mean(TOP1).value


def _ratio(first: Row, second: Row) -> float:
    return first.mean(MACS).value / second.mean(MACS).value


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's rho; 0 where one side does not vary."""

    def ranks(values: Sequence[float]) -> list[float]:
        ordered = sorted(values)
        return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]

    a, b = ranks(xs), ranks(ys)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return statistics.correlation(a, b)


def gain_per_doubling(*lines: Sequence[Row]) -> float:
    """Points of top-1 a doubling of MACs: least squares with one slope and an offset a line.

    nan where the MACs of no line vary.
    """
    above, below = 0.0, 0.0
    for line in lines:
        xs = [math.log2(row.mean(MACS).value) for row in line]
        ys = [_top1(row) for row in line]
        x0, y0 = statistics.fmean(xs), statistics.fmean(ys)
        above += sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True))
        below += sum((x - x0) ** 2 for x in xs)
    return above / below if below > 1e-9 else math.nan
