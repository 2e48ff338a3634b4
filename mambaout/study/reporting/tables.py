"""The ranked table of recipes, as cells: for a terminal, for Markdown, for the page."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from mambaout.study.numbers import count_text, hours_text, rate_text
from mambaout.study.reporting.noise import Noise, chosen, seed_noise
from mambaout.study.reporting.rows import Mean, Row, rows
from mambaout.study.study import Run
from mambaout.train.metrics import (
    IMAGES_PER_SECOND,
    MACS,
    MINIVAL_TOP1,
    PARAMS,
    TOP1,
    TRAIN_DEVICE_HOURS,
)

HEADERS = (
    "#",
    "variant",
    "top-1 %",
    "minival %",
    "MACs",
    "params",
    "epochs",
    "train MACs",
    "images/s",
    "time a seed",
    "note",
)
LEFT = {1, len(HEADERS) - 1}  # names and notes; numbers stand to the right
TERMINAL_ROWS = 40
MARKDOWN_ROWS = 100


def table_cells(table: Sequence[Row]) -> list[list[str]]:
    """The ranked table as text, a row of cells a recipe, in the order of HEADERS."""
    choice, first = chosen(table), next((row for row in table if row.mean(TOP1)), None)
    noise, minival = seed_noise(table), seed_noise(table, MINIVAL_TOP1)
    cells = []
    for rank, row in enumerate(table, 1):
        notes = [f"baseline recipe{row.cut}"] if row.is_baseline else []
        notes += ["chosen on minival"] if row is choice else []
        if first and row is not first and row.mean(TOP1) and noise:
            lead = first.mean(TOP1).value - row.mean(TOP1).value
            notes += [] if lead > noise.bound(first, row) else ["not significant to #1"]
        notes += [row.state] if row.state else []
        cells.append(
            [
                str(rank) if row.mean(TOP1) else "",
                row.label,
                interval_text(row, TOP1, noise),
                _minival_text(row, minival),
                count_text(row.mean(MACS).value),
                count_text(row.mean(PARAMS).value),
                str(row.epochs),
                count_text(row.train_macs),
                rate_text(row.mean(IMAGES_PER_SECOND).value),
                hours_text(row.mean(TRAIN_DEVICE_HOURS).value),
                "; ".join(notes),
            ]
        )
    return cells


def interval_text(row: Row, metric: str, noise: Noise | None, unit: str = "") -> str:
    """The mean over seeds and half its 95 % interval, where the noise is known."""
    mean: Mean = row.mean(metric)
    return mean.text(noise.half_width(row) if noise and mean else None, unit=unit)


def _minival_text(row: Row, noise: Noise | None) -> str:
    mean = row.mean(MINIVAL_TOP1)
    if mean:
        half = f" ± {noise.half_width(row):.2f}" if noise else ""
        return f"{mean.value:.2f}{half}"
    latest = [
        record.values[MINIVAL_TOP1]
        for run in row.runs
        for record in run.records
        if MINIVAL_TOP1 in record.values
    ][-1:]
    return f"{latest[0]:.2f} so far" if latest else "-"


def ranked_table(runs: Iterable[Run]) -> str:
    """The runs by recipe, best first, as text for a terminal."""
    body = table_cells(rows(runs))
    cells = [list(HEADERS), *body[:TERMINAL_ROWS]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADERS))]
    lines = [
        "  ".join(
            text.ljust(width) if i in LEFT else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    more = [f"and {len(body) - TERMINAL_ROWS} more recipes"] * (len(body) > TERMINAL_ROWS)
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *more])


def markdown_table(runs: Iterable[Run]) -> str:
    """The same table in Markdown, for a README."""
    body = table_cells(rows(runs))
    text = markdown_lines(HEADERS, body[:MARKDOWN_ROWS], LEFT)
    if len(body) <= MARKDOWN_ROWS:
        return text
    return f"{text}\n\nand {len(body) - MARKDOWN_ROWS} more recipes, in trials.csv"


def markdown_lines(
    header: Sequence[str], cells: Sequence[Sequence[str]], left: Container[int]
) -> str:
    """A table in Markdown; columns that are not in `left` stand to the right."""
    marks = [":---" if i in left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, marks, *cells))
