"""The ranked table of recipes as cells, for a terminal, for Markdown and for the page."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mambaout.numbers import count_text, hours_text, rate_text
from mambaout.study.law.noise import SeedNoise
from mambaout.study.report.ranking import LEAST_MINIVAL, Standing, standing
from mambaout.study.report.rows import Row
from mambaout.study.report.varied import varied
from mambaout.study.study import Run
from mambaout.train.metrics import (
    IMAGES_PER_SECOND,
    MACS,
    MINIVAL_TOP1,
    PARAMS,
    TOP1,
    TRAIN_DEVICE_HOURS,
)

TERMINAL_ROWS = 40
MARKDOWN_ROWS = 100
MOST_VARIED = 4  # columns of varied fields
TERMINAL_COLUMNS = 100  # width of the sentences under a table
NAME, NOTE = "recipe", "note"  # columns of words; numbers are right-aligned
NEAR_CHANCE, WITHIN_NOISE, CONFIRMED = "near chance", "within noise of #1", "confirmed"
CHOSEN = "chosen"
OTHER_DEVICE = "other device"
TRAIN_MACS = "train MACs"

# Columns of costs that follow from the recipe. If all recipes agree on one, it is told once under
# the table. Each entry: the text under the table, and the cell.
_COSTS: Mapping[str, tuple[str, Callable[[Row], str]]] = {
    "MACs": ("{} MACs", lambda row: count_text(row.mean(MACS).value)),
    "params": ("{} parameters", lambda row: count_text(row.mean(PARAMS).value)),
    "epochs": ("{} epochs", lambda row: str(row.epochs)),
    TRAIN_MACS: ("{} MACs of training", lambda row: count_text(row.train_macs)),
}


@dataclass(frozen=True, kw_only=True)
class RankedTable:
    """The table's cells, one row for each recipe, best first, and its sentences."""

    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    shared: str  # what all recipes share; "" if nothing
    legend: tuple[str, ...]  # the meaning of columns and marks
    warnings: tuple[str, ...]

    @property
    def left(self) -> set[int]:
        """The columns of words."""
        return {i for i, name in enumerate(self.header) if name in (NAME, NOTE)}


def ranked_cells(found: Standing) -> RankedTable:
    columns: dict[str, list[str]] = {
        "#": ["" if rank is None else str(rank) for rank in found.ranks],
        NAME: [row.label for row in found.rows],
        "minival %": [_minival_text(row, found) for row in found.rows],
        "val top-1 %": [interval_text(row, TOP1, found.noise) for row in found.rows],
    }
    fields = varied(found.rows, found.searches)
    columns |= {one.name: one.texts for one in fields[:MOST_VARIED]}
    shared = []
    for name, (told, cell) in _COSTS.items():
        if name == TRAIN_MACS and _is_multiple_of_macs(found.rows):
            continue  # it would repeat the MACs
        texts = [cell(row) for row in found.rows]
        known = {text for text in texts if text != "-"}
        if len(found.rows) > 1 and len(known) == 1:
            shared.append(told.format(known.pop()))
        else:
            columns[name] = texts
    columns |= {
        "images/s": [rate_text(row.mean(IMAGES_PER_SECOND).value) for row in found.rows],
        "time a seed": [hours_text(row.mean(TRAIN_DEVICE_HOURS).value) for row in found.rows],
    }
    notes = ["; ".join(_notes(row, found)) for row in found.rows]
    columns |= {NOTE: notes} if any(notes) else {}
    others = [one.name for one in fields[MOST_VARIED:]]
    return RankedTable(
        header=tuple(columns),
        cells=tuple(zip(*columns.values(), strict=True)),
        shared=f"all: {', '.join(shared)}" if shared else "",
        legend=tuple(_legend(found, notes, others)),
        warnings=tuple(found.warnings()),
    )


def _is_multiple_of_macs(table: Sequence[Row]) -> bool:
    ratios = {round(row.train_macs / row.mean(MACS).value) for row in table if row.train_macs > 0}
    return len(table) > 1 and len(ratios) < 2


def _notes(row: Row, found: Standing) -> list[str]:
    notes = [f"baseline recipe{row.cut}"] if row.is_baseline else []
    notes += [CONFIRMED] if row.recipe in found.confirmed else []
    if row.recipe in found.near_chance:
        notes.append(NEAR_CHANCE)
    elif not found.guessing:
        if row is found.best and found.has_verdict and len(found.ready) > 1:
            notes.append(CHOSEN)
        notes += [WITHIN_NOISE] if found.is_within_noise(row) else []
    notes += [OTHER_DEVICE] if found.is_elsewhere(row) else []
    return notes + ([row.state] if row.state else [])


def _legend(found: Standing, notes: Sequence[str], others: Sequence[str]) -> list[str]:
    if not found.ready:
        return []
    order = "less half its interval, " if found.minival_noise.has_seeds else ""
    lines = [
        f"#: the order on minival, {order}best first. Minival is training images that are held "
        "out to choose on. Val is the test set; it ranks nothing."
    ]
    if found.noise.has_seeds:
        lines.append(
            "±: half the 95 % interval of the mean over n seeds. It does not hold what the number "
            "of images adds."
        )
    else:
        lines.append("n: the number of seeds.")
    marks = {
        CONFIRMED: "trained with all seeds of its search; these recipes come first. Their "
        "means leave out the seed that chose them: it was the highest of many.",
        WITHIN_NOISE: "its distance to #1 on minival is too small to be told from luck.",
        NEAR_CHANCE: "a network that guesses could have reached it.",
    }
    used = "; ".join(notes).split("; ")
    lines += [f"{mark}: {text}" for mark, text in marks.items() if mark in used]
    if found.speeds.note:
        lines.append(f"{OTHER_DEVICE}: {found.speeds.note}")
    if others:
        lines.append(f"Also varied: {', '.join(others)}; trials.csv has them.")
    return lines


def interval_text(row: Row, metric: str, noise: SeedNoise, unit: str = "") -> str:
    """The mean over seeds, with half its 95 % interval if the noise is known."""
    mean = row.mean(metric)
    return mean.text(noise.half_width(mean), unit=unit)


def _minival_text(row: Row, found: Standing) -> str:
    few = found.num_minival is not None and found.num_minival < LEAST_MINIVAL
    digits = 0 if few else 2  # one image of 50 is 2 points
    mean = row.mean(MINIVAL_TOP1)
    if mean:
        half = found.minival_noise.half_width(mean)
        sure = "" if half is None else f" ± {half:.{digits}f}"
        return f"{mean.value:.{digits}f}{sure}"
    latest = [
        record.values[MINIVAL_TOP1]
        for run in row.runs
        for record in run.records
        if MINIVAL_TOP1 in record.values
    ][-1:]
    return f"{latest[0]:.{digits}f} so far" if latest else "-"


def ranked_table(runs: Iterable[Run], study: Mapping[str, Any] | None = None) -> str:
    """The runs by recipe, best first, as text for a terminal. `study` is study.json's content."""
    return terminal_text(ranked_cells(standing(runs, study)))


def terminal_text(table: RankedTable) -> str:
    shown = [table.header, *table.cells[:TERMINAL_ROWS]]
    widths = [max(len(line[i]) for line in shown) for i in range(len(table.header))]
    lines = [
        "  ".join(
            text.ljust(width) if i in table.left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in shown
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    more = len(table.cells) - TERMINAL_ROWS
    lines += [f"and {more} more recipes, in trials.csv"] * (more > 0)
    lines += [table.shared] * bool(table.shared)
    for text in (*table.legend, *(f"warning: {text}" for text in table.warnings)):
        lines += textwrap.wrap(text, TERMINAL_COLUMNS, subsequent_indent="  ")
    return "\n".join(lines)


def markdown_table(table: RankedTable) -> str:
    """The same table in Markdown, for a README."""
    text = markdown_lines(table.header, table.cells[:MARKDOWN_ROWS], table.left)
    more = len(table.cells) - MARKDOWN_ROWS
    below = [f"and {more} more recipes, in trials.csv"] * (more > 0)
    below += [table.shared] * bool(table.shared)
    below += [" ".join(table.legend)] * bool(table.legend)
    return "\n\n".join([text, *below])


def markdown_lines(
    header: Sequence[str], cells: Sequence[Sequence[str]], left: Container[int]
) -> str:
    """A table in Markdown. Columns that are not in `left` are right-aligned."""
    marks = [":---" if i in left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, marks, *cells))
