"""The section on recipes that are compared within a seed: the gate first, then each difference."""

from __future__ import annotations

import math
import textwrap

from mambaout.numbers import count_text, percent_text, rate_text
from mambaout.study.law.paired import GATE_ERRORS, GATE_SEEDS, Gate, PairedDifference
from mambaout.study.pairing import Pair
from mambaout.study.report.content import Section, Table
from mambaout.study.report.paired_reading import GateFinding, PairedReading, PairFinding
from mambaout.study.report.picture import finite
from mambaout.study.report.tables import TERMINAL_COLUMNS
from mambaout.train.metrics import IMAGES_PER_SECOND, MACS, PARAMS

PAIRED_CHART = "paired.png"
PAIRED_CAPTION = (
    "Right of 0 the first of the two is better. Grey dots are the differences of single seeds, "
    "blue ones their means with 95 % intervals. A hollow dot is no verdict: the gate is not open."
)


def paired_section(reading: PairedReading | None) -> list[Section]:
    if reading is None:
        return []
    return [
        Section(
            f"The {reading.pairing.what}",
            [*paired_said(reading), *_how(reading)],
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
        said.append(_no_verdict(reading))
    said += [_pair_text(one, reading.score) for one in reading.pairs if one.gate is Gate.OPEN]
    said += [_change_text(one) for one in reading.changes if one.gate is Gate.OPEN]
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
    first, second = one.pair
    where = f"At {one.place}, " if one.place else ""
    text = f"{where}{first} minus {second}: {_points(one.difference)} {score}"
    return f"{text}{_judged(one)}"


def _change_text(one: PairFinding) -> str:
    first, second = one.pair
    text = f"From {one.place}, {first} minus {second} changes by {_points(one.difference)}"
    return f"{text}{_judged(one)}"


def _points(found: PairedDifference) -> str:
    if not found.values:
        return "no seed in common yet"
    interval = found.interval
    if not finite(interval.low):
        return f"{found.value:+.2f} points of"
    return f"{found.value:+.2f} points ({interval.low:+.2f} to {interval.high:+.2f}) of"


def _judged(one: PairFinding) -> str:
    count = len(one.difference.values)
    if count < 2:
        return f" (n={count}). One seed has no interval, so this is not told from luck."
    sure = f" (n={count}, p {_p(one.p_value)}{_corrected(one)})"
    if one.is_significant:
        return f"{sure}: significant."
    text = f"{sure}: not significant. 80 % of such studies find {one.detectable:.2f} points."
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
    return [text]


# -- tables ---------------------------------------------------------------------------------------


def _differences(reading: PairedReading) -> Table:
    header = (
        "difference", "points (95 %)", "n", "p", "80 % of such studies find", "verdict",
    )  # fmt: skip
    cells = []
    for gate in reading.gates:
        found, state = gate.difference, gate.state
        name = pair_text(gate.pair, gate.group.place)
        cells.append(
            [name, *_figures(found), "-", "-", f"gate {state.value}{_errors(found)}"],
        )
    for one in [*reading.pairs, *reading.changes]:
        find = "-" if math.isnan(one.detectable) else f"{one.detectable:.2f} points"
        cells.append(
            [pair_text(one.pair, one.place), *_figures(one.difference), _p(one.p_value), find,
             _verdict(one)]
        )  # fmt: skip
    return Table(header, cells, (5,))


def pair_text(pair: Pair, place: str) -> str:
    text = f"{pair.first} minus {pair.second}"
    return f"{text}, {place}" if place else text


def _figures(found: PairedDifference) -> list[str]:
    if not found.values:
        return ["-", "0"]
    interval = found.interval
    text = f"{found.value:+.2f}"
    if finite(interval.low):
        text += f" ({interval.low:+.2f} to {interval.high:+.2f})"
    return [text, str(len(found.values))]


def _errors(found: PairedDifference) -> str:
    return "" if math.isnan(found.error) else f", {found.in_errors:+.1f} standard errors"


def _verdict(one: PairFinding) -> str:
    if one.gate is not Gate.OPEN:
        return f"none: gate {one.gate.value}"
    if len(one.difference.values) < 2:
        return "none: one seed" if one.difference.values else "none yet"
    if not one.is_significant:
        return "not significant"
    higher, lower = one.pair if one.difference.value > 0 else reversed(one.pair)
    return "it changes" if one.is_change else f"{higher} is better than {lower}"


def _recipes(reading: PairedReading) -> Table:
    """What each recipe reaches, and what it costs."""
    places = [group.place for group in reading.pairing.groups]
    several = any(places)
    cells = []
    for group in reading.pairing.groups:
        for name, label in group.labels.items():
            row = reading.rows.get(label)
            if row is None:
                continue
            mean = row.mean(reading.metric)
            cells.append([
                name, *([group.place] if several else []),
                f"{percent_text(mean.value)} (n={len(mean.values)})" if mean else "-",
                *(count_text(row.mean(cost).value) for cost in (MACS, PARAMS)),
                rate_text(row.mean(IMAGES_PER_SECOND).value),
            ])  # fmt: skip
    header = (
        reading.pairing.what.removesuffix("s"), *(["at"] if several else []), reading.score,
        "MACs", "parameters", "images/s in training",
    )  # fmt: skip
    return Table(header, cells, (1,) if several else ())
