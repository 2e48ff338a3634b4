"""The section on recipes that are compared within a seed: the gate first, then each difference."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from mambaout.accounting import cost, least_macs
from mambaout.layers import ImageSize
from mambaout.numbers import count_text, percent_text, rate_text
from mambaout.recipe import Recipe
from mambaout.sequence_layers import LEAST_SCAN_MACS, SCAN_MACS
from mambaout.study.law.paired import GATE_ERRORS, GATE_SEEDS, Gate, PairedDifference
from mambaout.study.pairing import Pair
from mambaout.study.report.content import Section, Table
from mambaout.study.report.paired_reading import GateFinding, PairedReading, PairFinding
from mambaout.study.report.picture import finite
from mambaout.study.report.tables import TERMINAL_COLUMNS
from mambaout.train.metrics import IMAGES_PER_SECOND, MACS, PARAMS

PAIRED_CHART = "paired.png"
PAIRED_CAPTION = (
    "Right of 0 the first recipe of a pair is better. Grey dots are the differences of single "
    "seeds, blue dots are their means with 95 % intervals. A hollow dot is no verdict: the gate is "
    "not open."
)


def paired_section(reading: PairedReading | None) -> list[Section]:
    if reading is None:
        return []
    return [
        Section(
            f"The {reading.pairing.what}",
            # What it says is the report's answer, which stands above.
            [*_how(reading), *_recurrence(reading)],
            [_differences(reading), _recipes(reading)],
            [PAIRED_CHART] if reading.has_results else [],
        )
    ]


def paired_text(reading: PairedReading | None) -> list[str]:
    """Lines for a terminal: the sentences, and no tables."""
    if reading is None:
        return []
    lines = [f"the {reading.pairing.what}, compared within a seed:"]
    for text in paired_said(reading):
        lines += textwrap.wrap(
            text, TERMINAL_COLUMNS, initial_indent="  ", subsequent_indent="    ",
            break_on_hyphens=False,
        )  # fmt: skip
    return lines


# -- sentences ------------------------------------------------------------------------------------


def paired_said(reading: PairedReading) -> list[str]:
    """The answer in sentences: the gate, then what it allows to say."""
    if not reading.has_results:
        return [f"No pair of the {reading.pairing.what} has finished a seed yet."]
    said = [" ".join(map(_gate_text, reading.gates))] if reading.gates else []
    if reading.gates and not reading.is_open_somewhere:
        return [*said, _no_verdict(reading)]
    said += [_pair_text(one, reading.score) for one in reading.pairs if one.gate is Gate.OPEN]
    said += [_change_text(one) for one in reading.changes]
    return said


def _gate_text(one: GateFinding) -> str:
    first, second = one.pair
    where = f"At {one.group.place}, the" if one.group.place else "The"
    found = one.difference
    count = f"n={len(found.values)}"
    if not found.values:
        return f"{where} gate is not known: {first} and {second} have no seed in common yet."
    if one.state is Gate.UNKNOWN:
        return (
            f"{where} gate is not known: {first} minus {second} is {found.value:+.2f} points "
            f"({count}), and a standard error needs at least {GATE_SEEDS} seeds (--seeds)."
        )
    errors = f"{abs(found.in_errors):.1f} standard errors, {count}"
    if one.state is Gate.OPEN:
        return (
            f"{where} gate is open: {first} loses to {second} by {-found.value:.2f} points "
            f"({errors})."
        )
    text = (
        f"{where} gate is shut: {first} minus {second} is {found.value:+.2f} points ({errors}), "
        f"and {first} must lose by at least {GATE_ERRORS:g} standard errors."
    )
    for name, above in one.others.items():
        text += (
            f" But {name} is above {first} by {above.value:.2f} points "
            f"({above.in_errors:.1f} standard errors)."
        )
    return text


def _no_verdict(reading: PairedReading) -> str:
    what = reading.pairing.what
    if any(one.state is Gate.UNKNOWN for one in reading.gates):
        return f"So far no verdict on the {what} can come from this study."
    first, second = reading.gates[0].pair
    text = f"No verdict on the {what} can come from this study: beside {first}, {second} "
    if any(one.others for one in reading.gates):
        text = f"No verdict beside {second} can come from this study: beside {first}, it "
    text += "does nothing here that the study can measure."
    return f"{text} {reading.pairing.remedy}".strip()


def _pair_text(one: PairFinding, score: str) -> str:
    where = f"At {one.place}, " if one.place else ""
    found = one.difference
    if not found.values:
        return f"{where}{pair_text(one.pair)}: no seed in common yet."
    return f"{where}{pair_text(one.pair)}: {_points(found)} of {score}{_judged(one)}"


def _change_text(one: PairFinding) -> str:
    name = pair_text(one.pair)
    if one.gate is not Gate.OPEN:
        return (
            f"From {one.place}: no verdict on the change of {name}, because the gate is not open "
            "at both ends."
        )
    return f"From {one.place}, {name} changes by {_points(one.difference)}{_judged(one)}"


def _points(found: PairedDifference) -> str:
    interval = found.interval
    text = f"{found.value:+.2f} points"
    return f"{text} ({interval.low:+.2f} to {interval.high:+.2f})" if finite(interval.low) else text


def _judged(one: PairFinding) -> str:
    count = len(one.difference.values)
    if count < 2:
        return f" (n={count}). One seed has no interval, so this is not told from luck."
    sure = f" (n={count}, p {_p(one.p_value)}{_corrected(one)})"
    if one.is_significant:
        return f"{sure}: significant."
    text = f"{sure}: not significant. 80 % of such studies find a difference of "
    text += f"{one.detectable:.2f} points."
    if one.difference.interval.excludes_zero:
        text += f" Its own interval excludes 0, but not after {one.num_comparisons} comparisons."
    return text


def _corrected(one: PairFinding) -> str:
    count = one.num_comparisons
    return f" corrected for {count} comparisons" if count > 1 else ""


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "below 0.001" if value < 0.001 else f"{value:.3f}"


def _how(reading: PairedReading) -> list[str]:
    """How the differences are computed; not part of the answer."""
    text = (
        "A difference is taken within each seed, because a seed has the same images in the same "
        "order for all recipes. Its interval is by Student's t from these differences alone; other "
        "parts of this report pool the spread of all recipes."
    )
    if len(reading.pairs) > 1:
        text += (
            f" p is corrected for {len(reading.pairs)} comparisons by Holm's method; the intervals "
            "are not."
        )
    return [f'{text} "80 % find" is the difference in points that 80 % of such studies would find.']


def _recurrence(reading: PairedReading) -> list[str]:
    """The MACs of recipes with an SSM, by what its recurrence multiplies."""
    found = {}
    for group in reading.pairing.groups:
        for label in group.labels.values():
            row = reading.rows.get(label)
            if row is None or not row.mean(MACS):
                continue
            model, size = row.recipe.model, _image_size(row.recipe)
            if saved := cost(model, size).macs - least_macs(model, size):
                found[label] = f"{label} {count_text(row.mean(MACS).value - saved)}"
    if not found:
        return []
    return [
        f"MACs count {SCAN_MACS} multiply-adds for each number of an SSM's state and token, as "
        f"VMamba's tables do. With the {LEAST_SCAN_MACS} of the recurrence itself they are: "
        f"{', '.join(found.values())}."
    ]


def _image_size(recipe: Any) -> ImageSize:
    return recipe.image_size if isinstance(recipe, Recipe) else recipe.counted_size


# -- tables ---------------------------------------------------------------------------------------


def _differences(reading: PairedReading) -> Table:
    """The gates, then all differences; without a column of places if there is one group."""
    cells = [
        [pair_text(one.pair), one.group.place, *_figures(one.difference), "-", "-", _state(one)]
        for one in reading.gates
    ]
    for one in [*reading.pairs, *reading.changes]:
        least = "-" if math.isnan(one.detectable) else f"{one.detectable:.2f}"
        figures = [*_figures(one.difference), _p(one.p_value), least]
        cells.append([pair_text(one.pair), one.place, *figures, _verdict(one)])
    header = ["difference", "at", "points (95 %)", "n", "p", "80 % find", "verdict"]
    if not _has_places(reading):
        header, cells = _without_places(header), [_without_places(line) for line in cells]
    return Table(header, cells, (header.index("at"),) if "at" in header else ())


def _has_places(reading: PairedReading) -> bool:
    return any(group.place for group in reading.pairing.groups)


def _without_places(line: list[str]) -> list[str]:
    return [line[0], *line[2:]]


def pair_text(pair: Pair) -> str:
    return f"{pair.first} minus {pair.second}"


def _state(one: GateFinding) -> str:
    found = one.difference
    errors = "" if math.isnan(found.error) else f", {found.in_errors:+.1f} standard errors"
    return f"gate {one.state.value}{errors}"


def _figures(found: PairedDifference) -> list[str]:
    if not found.values:
        return ["-", "0"]
    interval = found.interval
    text = f"{found.value:+.2f}"
    if finite(interval.low):
        text += f" ({interval.low:+.2f} to {interval.high:+.2f})"
    return [text, str(len(found.values))]


def _verdict(one: PairFinding) -> str:
    if one.gate is not Gate.OPEN:
        return f"none: gate {one.gate.value}"
    if len(one.difference.values) < 2:
        return "none: one seed" if one.difference.values else "none yet"
    if not one.is_significant:
        return "not significant"
    higher = one.pair.first if one.difference.value > 0 else one.pair.second
    return "it changes" if one.is_change else f"{higher} is better"


def _recipes(reading: PairedReading) -> Table:
    """What each recipe reaches, and what it costs."""
    cells = []
    for group in reading.pairing.groups:
        for name, label in group.labels.items():
            row = reading.rows.get(label)
            if row is None:
                continue
            mean = row.mean(reading.metric)
            reached = f"{percent_text(mean.value)} (n={len(mean.values)})" if mean else "-"
            costs = [count_text(row.mean(cost).value) for cost in (MACS, PARAMS)]
            speed = rate_text(row.mean(IMAGES_PER_SECOND).value)
            cells.append([name, group.place, reached, *costs, speed])
    one = reading.pairing.what.removesuffix("s")
    header = [one, "at", reading.score, "MACs", "parameters", "images/s in training"]
    if not _has_places(reading):
        header, cells = _without_places(header), [_without_places(line) for line in cells]
    return Table(header, cells, (header.index("at"),) if "at" in header else ())
