"""The results of a study's searches: their best recipes, edges and importances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mambaout.endings import Ending
from mambaout.numbers import count_text, counted
from mambaout.study.axes import Axis, Choice, LogRange, Search, search_from_json
from mambaout.study.law.noise import SeedNoise
from mambaout.study.report.page import Section, Table
from mambaout.study.report.picture import FAINT, INK, grid, legend_below, new, shades
from mambaout.study.report.rows import Row, rows
from mambaout.study.report.tables import interval_text
from mambaout.study.report.varied import value_text
from mambaout.study.search.best import Best, best, edges, runs_of
from mambaout.study.search.space import values_of
from mambaout.study.study import Run
from mambaout.train.metrics import MACS, TOP1

MOST_TOLD = 2  # searches whose best values the answer names; the table has all
MANY_SPOTS = 40  # if a chart has more, they are drawn smaller
MOST_SHOWN = 5  # recipes of a search's table


@dataclass(frozen=True, kw_only=True)
class SearchFinding:
    """One search and its results."""

    search: Search
    rows: tuple[Row, ...]  # its recipes
    best: Best | None
    edges: tuple[str, ...]  # axes on which the best lies at an end of the tried range
    importances: Mapping[str, float] | None  # None if too few recipes have finished

    @property
    def is_confirmed(self) -> bool:
        """Whether its best recipe has other seeds than the one on which it was chosen."""
        row = self.best_row
        return row is not None and len(row.counted) < len(row.finished)

    @property
    def best_row(self) -> Row | None:
        recipe = self.best.recipe if self.best else None
        return next((row for row in self.rows if row.recipe == recipe), None)


def searched(study: Mapping[str, Any], runs: Sequence[Run]) -> list[SearchFinding]:
    """The results of the searches in study.json, computed from the runs alone."""
    return [_searched(search_from_json(body), runs) for body in study.get("searches", ())]


def _searched(search: Search, runs: Sequence[Run]) -> SearchFinding:
    from mambaout.study.search.importances import importances

    own = runs_of(search, runs)
    return SearchFinding(
        search=search,
        rows=tuple(rows(own)),
        best=best(search, own),
        edges=tuple(edges(search, own)),
        importances=importances(own, search),
    )


# -- for the report -------------------------------------------------------------------------------


def search_answer(found: Sequence[SearchFinding]) -> list[str]:
    """The best recipe of each search, and on which axes a better one may exist."""
    said = []
    for one in found:
        if one.best is None:
            continue
        values = f": {_values(one.best.values)}" if len(found) <= MOST_TOLD else ""
        count = len(one.best.scores)
        others = ""
        if one.is_confirmed:
            others = ", without the one that chose it"
        elif len(one.rows) > 1:
            others = ", which chose it, so this is too high"
        text = (
            f"The search {one.search.label} came to {one.best.label}{values} "
            f"({one.search.goals[0][0]} {one.best.mean:.2f} over "
            f"{counted(count, 'seed')}{others})"
        )
        told = f"; not known to be an optimum: {', '.join(one.edges)}" if one.edges else ""
        said.append(f"{text}{told}.")
    return [" ".join(said)] if said else []


def search_sections(
    found: Sequence[SearchFinding], noise: SeedNoise, charts: Sequence[str]
) -> list[Section]:
    if not found:
        return []
    overview = [_overview(one) for one in found]
    header = ("search", "recipes", "finished", "stopped early", "failed", "best", "at an edge")
    tables = [Table(header, overview, (5, 6)), *(_best_table(one, noise) for one in found[:6])]
    said = [
        "A recipe that was stopped early has no result. The best is the highest on the search's "
        "first seed. If it has other seeds, its means are over those, which did not choose it."
    ]
    told = [one for one in found if one.importances]
    if told:
        cells = [
            [name, *(f"{_share(one, name):.0%}" for one in told)] for name in _by_importance(told)
        ]
        tables.append(Table(("importance of", *(one.search.label for one in told)), cells))
    elif any(one.rows for one in found):
        said.append("Too few recipes have finished to say which axis matters.")
    return [Section("Searches", said, tables, [name for name in charts if name in SEARCH_CHARTS])]


SEARCH_CHARTS = {
    "axes.png": "Every finished recipe with its first seed, a panel an axis, a colour a search: a "
    "cloud that is flat along an axis says that it matters little there.",
    "importances.png": "How much each axis decides whether a recipe is among a search's best "
    "quarter (PED-ANOVA), a bar a search; 1 together. Of few recipes it is a hint.",
}


def axes_chart(found: Sequence[SearchFinding]) -> Figure:
    """The tried recipes: the first goal over each axis."""
    axes_of = list({axis.name: axis for one in found for axis in one.search.axes}.values())
    metric = found[0].search.goals[0][0]
    figure, panels = grid("What was tried", metric, len(axes_of))
    for panel, axis in zip(panels, axes_of, strict=True):
        for one, color in zip(found, shades(len(found)), strict=True):
            _cloud(panel, axis, one, color)
        if isinstance(axis, LogRange):
            panel.set_xscale("log")
            wide = axis.high / axis.low > 20
            panel.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(axis.name, fontsize=8.5, color=INK)
    if len(found) > 1:
        legend_below(figure, panels[0])
    return figure


def _cloud(panel: Axes, axis: Axis, one: SearchFinding, color: str) -> None:
    if axis.name not in {own.name for own in one.search.axes}:
        return
    metric, seed = one.search.goals[0][0], one.search.seeds[0]
    spots = [
        (values_of(one.search, row.recipe)[axis.name], run.metrics[metric])
        for row in one.rows
        for run in row.finished
        if run.trial.seed == seed and metric in run.metrics
    ]
    if isinstance(axis, Choice):
        names = list(map(str, axis.values))
        spots = [(names.index(str(value)), y) for value, y in spots if str(value) in names]
        panel.set_xticks(range(len(names)), names)
        panel.set_xlim(-0.5, len(names) - 0.5)
    if spots:
        xs, ys = zip(*spots, strict=True)
        size = 9 if len(spots) > MANY_SPOTS else 24
        panel.scatter(xs, ys, s=size, color=color, alpha=0.6, linewidth=0, label=one.search.label)


def _overview(one: SearchFinding) -> list[str]:
    states = Counter(run.status for row in one.rows for run in row.runs)
    recipes = len(one.rows)
    values = f"{one.best.label}: {_values(one.best.values)}" if one.best else "none yet"
    return [
        one.search.label,
        f"{recipes} of {one.search.num_trials}",
        str(states[Ending.FINISHED]),
        str(states[Ending.STOPPED]),
        str(sum(count for ending, count in states.items() if ending.has_no_result)),
        values,
        "; ".join(one.edges) or "no",
    ]


def _best_table(one: SearchFinding, noise: SeedNoise) -> Table:
    names = [axis.name for axis in one.search.axes]
    goals = [metric for metric, _ in one.search.goals]
    sign = -1 if one.search.goals[0][1] == "max" else 1
    ready = [row for row in one.rows if row.mean(goals[0])]
    ready.sort(key=lambda row: (row is not one.best_row, sign * row.mean(goals[0]).value))
    cells = [
        [
            row.label,
            *(_goal(row, goal) for goal in goals),
            interval_text(row, TOP1, noise),
            count_text(row.mean(MACS).value),
            *(value_text(values_of(one.search, row.recipe)[name]) for name in names),
        ]
        for row in ready[:MOST_SHOWN]
    ]
    return Table((f"best of {one.search.label}", *goals, "val top-1 %", "MACs", *names), cells)


def _goal(row: Row, goal: str) -> str:
    mean = row.mean(goal)
    return mean.text() if abs(mean.value) < 1000 else count_text(mean.value)


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value_text(value)}" for name, value in values.items())


def _share(one: SearchFinding, name: str) -> float:
    return (one.importances or {}).get(name, 0.0)


def _by_importance(told: Sequence[SearchFinding]) -> list[str]:
    """The axes of the searches. The most important one over all searches comes first."""
    names = dict.fromkeys(name for one in told for name in one.importances or ())
    return sorted(names, key=lambda name: -sum(_share(one, name) for one in told))


def importance_chart(found: Sequence[SearchFinding]) -> Figure:
    """Importances by axis: one bar for each search, the most important axis on top."""
    told = [one for one in found if one.importances]
    names = _by_importance(told)[::-1]
    figure, axes = new(
        "What matters to the result", "share", "", height=1.4 + 0.12 * len(names) * (len(told) + 1)
    )
    thick = 0.8 / len(told)
    for i, (one, color) in enumerate(zip(told, shades(len(told)), strict=True)):
        places = np.arange(len(names)) + 0.4 - thick * (i + 0.5)
        shares = [_share(one, name) for name in names]
        axes.barh(places, shares, height=thick, color=color, label=one.search.label)
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    if len(told) > 1:
        legend_below(figure, axes)
    return figure
