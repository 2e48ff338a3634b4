"""The study's answer in words, computed from its runs and only as sure as they allow."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mambaout.endings import Ending
from mambaout.numbers import count_text, percent_text, rate_text
from mambaout.study.law.pareto import front
from mambaout.study.law.prediction import JudgedPrediction, seeds_text
from mambaout.study.report.families import Family, longest
from mambaout.study.report.fresh import about_seeds
from mambaout.study.report.growing import deeper_or_wider, one_way, stopped_paying
from mambaout.study.report.paired_section import paired_said
from mambaout.study.report.ranking import Standing
from mambaout.study.report.reading import Reading
from mambaout.study.report.rows import Row
from mambaout.study.report.search_findings import search_answer
from mambaout.study.report.tables import interval_text
from mambaout.study.report.transfer import transfer_said
from mambaout.train.metrics import IMAGES_PER_SECOND, MACS, MINIVAL_TOP1, PARAMS, TOP1

CLOSE_POINTS = 1.0  # of top-1; a cheaper variant this close to the best is named
MOST_NAMES = 6  # in a list inside a sentence


def answer(reading: Reading) -> list[str]:
    """Paragraphs that answer the study's question, as far as its runs allow.

    Doubts about the numbers come first. If the study is near chance, there is no other paragraph.
    Without a second seed, there is no statement that needs one.
    """
    found = reading.standing
    table, ready = found.rows, found.ready
    if not ready:
        return ["No trial has finished yet, so there is no answer yet."]
    if reading.paired is not None:  # the highest recipe is no answer, because the gate may be shut
        return [*missing(table), *paired_said(reading.paired), *found.warnings()]
    warnings = [*missing(table), *found.warnings()]
    if found.guessing:
        return [*warnings, *_stopped(table)]
    tuned = [one.family for one in reading.grown if one.family.title]
    steps = tuned[0] if tuned else longest(reading.families)
    return [
        *warnings,
        *deeper_or_wider(reading),
        *transfer_said(found),
        _best(found),
        *one_way(reading),
        *(_bigger(steps, found, alone=len(reading.grown) == 1) if steps else []),
        *search_answer(reading.searches),
        *(stopped_paying(reading) if found.has_verdict else []),
        *_predicted(reading),
        *_value(ready),
        *_baseline(found),
        *_stopped(table),
    ]


def _best(found: Standing) -> str:
    """Which recipe is best, what it costs, and how sure that is."""
    best = found.best or found.ready[0]
    others = [row for row in found.ready if row is not best]
    near = [row for row in others if found.is_within_noise(row)]
    macs, params = (count_text(best.mean(name).value) for name in (MACS, PARAMS))
    speed = best.mean(IMAGES_PER_SECOND)
    cost = f"{macs} MACs and {params} parameters"
    if speed:  # measured on the study's device
        cost = f"{macs} MACs, {params} parameters and {rate_text(speed.value)} images/s in training"
    result = f"{interval_text(best, TOP1, found.noise, ' %')} top-1 on val for {cost}"
    minival = percent_text(best.mean(MINIVAL_TOP1).value)
    if not found.noise.has_seeds and others:
        return f"{best.label} is the highest on minival ({minival}): {result}.{about_seeds(found)}"
    if not near:
        text = f"{best.label} comes out best: {result}"
    else:
        verb = "recipe is" if len(others) == 1 else "recipes are"
        text = (
            f"{best.label} is the highest, but not clearly the best ({len(near)} of {len(others)} "
            f"other {verb} within noise of it): {result}"
        )
    text += f"; it was chosen on minival ({minival}).{about_seeds(found)}"
    if not others:
        return text
    if found.minival_noise.has_seeds:
        other = others[0]
        lead = found.lead(best, other)
        side = "above" if lead.value >= 0 else "below"
        text += f" On minival it is {side} {other.label}, the next, by {lead.text()}."
    higher = max(others, key=_top1)
    if _top1(higher) > _top1(best):
        text += f" On val {higher.label} is higher by {found.difference(higher, best).text()}."
    return text


def _value(ready: Sequence[Row]) -> list[str]:
    """The cheapest recipe that is nearly as good on minival, unless it is the best itself."""
    priced = [row for row in ready if row.mean(MACS) and row.mean(MINIVAL_TOP1)]
    if len(priced) < 2:
        return []
    best = max(priced, key=_minival)
    near = [row for row in priced if _minival(best) - _minival(row) <= CLOSE_POINTS]
    cheap = min(near, key=lambda row: row.mean(MACS).value)
    if best.mean(MACS).value < 1.05 * min(row.mean(MACS).value for row in priced):
        return []
    on_front = front([(row.mean(MACS).value, _minival(row)) for row in priced])
    names = ", ".join(f"{priced[i].label} ({percent_text(_top1(priced[i]))})" for i in on_front)
    text = (
        "No other recipe has both fewer MACs and a higher top-1 on minival than these (their "
        f"top-1 on val): {names}."
    )
    share = best.mean(MACS).value / cheap.mean(MACS).value
    if cheap is not best and share > 1.2:
        text += (
            f" {cheap.label} is within {CLOSE_POINTS:g} point of the highest on minival at "
            f"1/{share:.1f} of its MACs."
        )
    return [text]


def _bigger(family: Family, found: Standing, *, alone: bool) -> list[str]:
    """Whether more MACs gave more accuracy, over recipes that differ only in the network."""
    steps = family.rows
    if len(steps) < 2:
        return []
    low, high = steps[0], steps[-1]
    factor = high.mean(MACS).value / low.mean(MACS).value
    if factor < 1.05:
        return []
    gain = found.difference(high, low)
    span = (
        f"from {count_text(low.mean(MACS).value)} to {count_text(high.mean(MACS).value)} MACs "
        f"(x{factor:.1f}, {len(steps)} variants) top-1 on val goes from {_top1(low):.2f} to "
        f"{percent_text(_top1(high))}"
    )
    order = rank_correlation([row.mean(MACS).value for row in steps], list(map(_top1, steps)))
    slope = gain_per_doubling(steps)
    falls = [(a, b) for a, b in pairwise(steps) if _top1(b) < _top1(a)]
    if not found.noise.has_seeds:
        verdict = "With one seed each, not told from luck"
    elif gain.value > 0 and not falls:
        verdict = "Bigger was better at every step"
    elif gain.value > 0 and order >= 0.6:
        verdict = "Bigger was better on the whole"
    elif gain.value < 0 and order <= -0.6:
        verdict = "Bigger was worse"
    else:
        verdict = "Bigger was not clearly better"
    where = "" if alone else f"{family.where[:1].upper()}{family.where[1:]}: "
    text = (
        f"{where}{verdict}: {span}, {slope:+.2f} points a doubling of MACs, rank correlation "
        f"{order:.2f}."
    )
    if found.noise.has_seeds and not gain.is_significant:
        text += " Between the ends the difference is within seed noise."
    if falls:
        a, b = max(falls, key=lambda pair: _top1(pair[0]) - _top1(pair[1]))
        drop = found.difference(a, b).text()
        text += f" The largest step down is from {a.label} to {b.label}: {drop}."
    return [text]


def _predicted(reading: Reading) -> list[str]:
    """The predictions for the largest sizes, made before their training, and the outcomes."""
    return [_one_predicted(said, found) for said, found in reading.judged]


def _one_predicted(said: Mapping[str, Any], found: JudgedPrediction | None) -> str:
    if found is None:
        return str(said["text"])[:1].upper() + str(said["text"])[1:] + "."
    text = (
        f"Before {said['label']} was trained, the law of {len(said['sizes'])} other sizes "
        f"predicted {percent_text(found.value)} top-1 for it (95 % for "
        f"{seeds_text(found.num_seeds)}: {found.low:.2f} to {found.high:.2f})"
    )
    if found.reached is None:
        return f"{text}; it has not finished yet."
    off = found.reached - found.value
    sigmas = f" or {off / found.sigma:+.1f} sigma" if found.sigma else ""
    inside = "inside" if found.is_inside else "outside"
    return (
        f"{text}. It reached {percent_text(found.reached)} (n={found.num_seeds}): "
        f"{off:+.2f} points{sigmas}, {inside} the interval."
    )


def _baseline(found: Standing) -> list[str]:
    ready = found.ready
    base = next((row for row in ready if row.is_baseline), None)
    rivals = [row for row in ready if not row.is_baseline]
    if base is None or not rivals:
        return []
    text = (
        f"The baseline recipe reaches {interval_text(base, TOP1, found.noise, ' %')} on val at "
        f"{count_text(base.mean(MACS).value)} MACs{base.cut}"
    )
    # With the same length of training, if there are any.
    rivals = [row for row in rivals if row.epochs == base.epochs] or rivals
    rival = min(rivals, key=lambda row: abs(math.log(_ratio(row, base))))
    if abs(math.log(_ratio(rival, base))) > math.log(1.5):
        return [f"{text}; no other recipe has about as many."]
    gap = found.difference(rival, base)
    side = "above" if gap.value >= 0 else "below"
    return [
        f"{text}; {rival.label}, the nearest in MACs ({count_text(rival.mean(MACS).value)}), is "
        f"{side} it by {gap.text()}."
    ]


def missing(table: Sequence[Row]) -> list[str]:
    """A paragraph on the trials without a result; empty if there are none."""
    runs = [run for row in table for run in row.runs]
    parts = []
    if num_open := sum(run.status is Ending.UNFINISHED for run in runs):
        parts.append(f"{num_open} of {len(runs)} trials have not finished")
    for text in dict.fromkeys(ending.text for ending in Ending if ending.has_no_result):
        if names := [run.trial.name for run in runs if run.status.text == text]:
            more = [f"and {len(names) - MOST_NAMES} more"] * (len(names) > MOST_NAMES)
            shown = ", ".join(names[:MOST_NAMES] + more)
            parts.append(f"{len(names)} {text} ({shown})")
    return [f"Provisional: {' and '.join(parts)}; they are not in these numbers."] if parts else []


def _stopped(table: Sequence[Row]) -> list[str]:
    states = Counter(run.status for row in table for run in row.runs)
    if not states[Ending.STOPPED]:
        return []
    return [
        f"{states[Ending.STOPPED]} of {states.total()} trials were stopped early by the search: "
        "they have no result and are in no number here."
    ]


# -- small statistics -----------------------------------------------------------------------------


def _top1(row: Row) -> float:
    return row.mean(TOP1).value


def _minival(row: Row) -> float:
    return row.mean(MINIVAL_TOP1).value


def _ratio(first: Row, second: Row) -> float:
    return first.mean(MACS).value / second.mean(MACS).value


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's rho; 0 if one side does not vary."""

    def ranks(values: Sequence[float]) -> list[float]:
        ordered = sorted(values)
        return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]

    a, b = ranks(xs), ranks(ys)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return statistics.correlation(a, b)


def gain_per_doubling(*lines: Sequence[Row]) -> float:
    """Points of top-1 per doubling of MACs: least squares, one slope, an offset for each line.

    nan if the MACs vary in no line.
    """
    above, below = 0.0, 0.0
    for line in lines:
        xs = [math.log2(row.mean(MACS).value) for row in line]
        ys = [_top1(row) for row in line]
        x0, y0 = statistics.fmean(xs), statistics.fmean(ys)
        above += sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True))
        below += sum((x - x0) ** 2 for x in xs)
    return above / below if below > 1e-9 else math.nan
