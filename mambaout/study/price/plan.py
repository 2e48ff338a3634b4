"""What a study will cost before it starts: images, MACs, device-hours, wall time, money, disk.

    found = plan(trials, num_train, num_classes, rates=measured(storage, device), device=device)
    print(plan_table(found))

Counts are exact. Times are forecast from rates (study/price/rates.py). The best source is finished
trials on the device, then a calibration, then an assumption about the chip. The plan names the
source for every recipe. A search costs its number of trials times a typical trial. A trial that is
stopped early costs less.
"""

from __future__ import annotations

import heapq
import itertools
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mambaout.accounting import cost
from mambaout.numbers import bytes_text, count_text, counted, hours_text
from mambaout.recipe import BASELINE
from mambaout.study.axes import Search
from mambaout.study.branches import longest_start
from mambaout.study.price.rates import Forecast, Kind, Rate, assumption
from mambaout.study.price.trial_price import NumImages, PlanRow, Pricing, checkpoint_bytes
from mambaout.study.study import Run, Trial
from mambaout.study.training_images import training_images_text

# Time in addition to the trials' own, on two cores. Ray and the first workers take about 10 s until
# the first step. Between two trials, a worker opens the data and writes its outcome (an estimate).
LAUNCH_SECONDS = 10.0
TRIAL_SECONDS = 2.0

EXTRAPOLATED = 4  # times the MACs of the largest timed network; beyond, a time is a guess

STUDY_BYTES = 3_000_000  # the report, its figures, and MLflow's copies
MOST_LINES, WIDTH = 60, 100  # recipes listed in the table; columns of the text below


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of the trials that a study still has to run."""

    rows: Sequence[PlanRow]
    concurrency: int  # trials at a time
    basis: Sequence[str]  # the sources of the seconds, one line each
    num_devices: float = 1  # of a trial; 0.5: half of a GPU
    price_per_hour: float | None = None  # of a device
    grant_hours: float | None = None  # device-hours that may be spent

    @property
    def todo(self) -> list[PlanRow]:
        return [row for row in self.rows if not row.finished and row.num_trials]

    @property
    def num_trials(self) -> int:
        return sum(row.num_trials for row in self.todo)

    @property
    def images(self) -> int:
        return sum(row.num_trials * row.own_images for row in self.todo)

    @property
    def train_macs(self) -> int:
        return sum(
            row.num_trials * row.train_macs * row.own_images // row.images for row in self.todo
        )

    @property
    def saved_images(self) -> int:
        """Training images that are not trained again: longer trials go on from shorter ones."""
        return sum(row.num_trials * row.shared_images for row in self.todo)

    @property
    def device_seconds(self) -> float:
        return self.num_devices * sum(row.num_trials * row.seconds for row in self.todo)

    @property
    def most_device_seconds(self) -> float:
        """Device-seconds if every search tries only its most expensive recipe."""
        return self.num_devices * sum(row.num_trials * row.most_seconds for row in self.todo)

    @property
    def wall_seconds(self) -> float:
        """Time until the last trial ends. Each trial starts, in order, when a share is free."""
        if not self.todo:
            return 0.0
        free = [LAUNCH_SECONDS] * self.concurrency
        for row in self.todo:
            for _ in range(row.num_trials):
                heapq.heapreplace(free, free[0] + row.seconds + TRIAL_SECONDS)
        return max(free)

    @property
    def money(self) -> float | None:
        if self.price_per_hour is None:
            return None
        return self.device_seconds / 3600 * self.price_per_hour

    @property
    def grant_share(self) -> float | None:
        return None if self.grant_hours is None else self.device_seconds / 3600 / self.grant_hours

    @property
    def disk_bytes(self) -> int:
        """Disk space when all is done, plus one more checkpoint for each running trial."""
        if not self.todo:
            return 0
        writing = max(checkpoint_bytes(row.recipe, row.params) for row in self.todo)
        kept = sum(row.num_trials * row.disk_bytes for row in self.todo)
        return kept + self.concurrency * writing + STUDY_BYTES


def plan(
    trials: Sequence[Trial],
    num_train: int,
    num_classes: int,
    *,
    searches: Sequence[Search] = (),
    num_images: NumImages | None = None,
    runs: Sequence[Run] = (),
    finished: Collection[str] = (),
    rates: Sequence[Rate] = (),
    device: str = "cpu",
    num_devices: float = 1,
    concurrency: int = 1,
    price_per_hour: float | None = None,
    grant_hours: float | None = None,
) -> Plan:
    """Price `trials` and `searches` on a data set of `num_train` training images.

    `num_images` (DataSet.num_images) gives the splits of each recipe. Without it, all recipes train
    on `num_train` images and val costs nothing. `runs` are the runs in the study's folder.
    `finished` are keys of trials that other studies have finished. Neither of them is paid for
    again. `device` is the driver's name for the device, or "cpu", or a name of the chip table.
    `rates` belong to that device.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} must be at least 1")
    for name, amount in (
        ("num_devices", num_devices),
        ("price_per_hour", price_per_hour),
        ("grant_hours", grant_hours),
    ):
        if amount is not None and not 0 < amount < float("inf"):
            raise ValueError(f"{name}={amount} must be above 0")
    pricing = Pricing(num_train, num_classes, num_images, Forecast(rates, device, num_devices))
    known = {run.trial.key: run for run in runs}
    rows = [
        pricing.of_trial(trial, known.get(trial.key) if known else None, finished)
        for trial in trials
    ]
    for index, trial in enumerate(trials):
        start = longest_start(trial, trials)
        if start is not None and rows[index].state == "new":
            rows[index] = pricing.after(rows[index], start.recipe)
    rows += [pricing.of_search(search, runs) for search in searches]
    return Plan(
        rows=rows,
        concurrency=concurrency,
        basis=_basis([row for row in rows if not row.finished], pricing.forecast, rates),
        num_devices=num_devices,
        price_per_hour=price_per_hour,
        grant_hours=grant_hours,
    )


# -- text ------------------------------------------------------------------------------------------


def _basis(rows: Sequence[PlanRow], forecast: Forecast, rates: Sequence[Rate]) -> list[str]:
    """A line for each source of the rows' times."""
    found = []
    kinds = {row.kind for row in rows}
    precisions = sorted({row.recipe.precision for row in rows})
    timed: list[Kind] = ["measured", "calibrated"]
    for kind, precision in itertools.product(timed, precisions):
        mine = [r for r in rows if r.kind == kind and r.recipe.precision == precision]
        if not mine:
            continue
        own = [r for r in rates if r.kind == kind and r.recipe.precision == precision]
        sources = sorted({rate.source for rate in own if rate.source})
        what = "finished trial" if kind == "measured" else "calibration"
        text = f"{kind}: from {len(own)} {what}{'s'[: len(own) > 1]} on {forecast.device}"
        text += f" in {precision}" if precision != BASELINE.precision else ""
        if kind == "measured" and sources:
            more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
            text += f" ({', '.join(sources[:3])}{more})"
        error = forecast.error(kind, precision)
        if error is not None:
            text += f"; each forecast from the others is off by {error:.0%} (median)"
        largest = max(cost(r.recipe.model, r.recipe.image_size, r.num_classes).macs for r in own)
        beyond = max(row.macs for row in mine) / largest
        if beyond > EXTRAPOLATED:
            text += (
                f"; extrapolated: the largest network here has {beyond:.0f} times the MACs of the "
                "largest that was timed; --calibrate times some of the study's own"
            )
        found.append(text)
    if "assumed" in kinds:
        precisions = sorted({row.recipe.precision for row in rows if row.kind == "assumed"})
        texts = [assumption(forecast.device, precision).text for precision in precisions]
        why = f"nothing has been measured on {forecast.device}"
        found.append(f"assumed: {' or '.join(texts)}; {why} yet")
    return found


def plan_table(plan: Plan) -> str:
    """The plan as text for a terminal: a line a recipe, then the sums."""
    header = ("recipe", "trials", "MACs", "params", "images", "train MACs", "time each", "from")
    groups = _groups(plan.rows)
    cells = [header, *map(_cells, groups[:MOST_LINES])]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = [_line(line, widths) for line in cells]
    if len(groups) > MOST_LINES:
        lines.append(f"... and {len(groups) - MOST_LINES} more recipes")
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *_sums(plan)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if i in (0, len(cells) - 1) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _groups(rows: Sequence[PlanRow]) -> list[list[PlanRow]]:
    """The rows by recipe, one row a seed. A search is a group of its own."""
    found: dict[tuple, list[PlanRow]] = {}
    for row in rows:
        found.setdefault((row.label, row.is_search), []).append(row)
    return list(found.values())


def _cells(group: Sequence[PlanRow]) -> tuple[str, ...]:
    row, todo = group[0], [row for row in group if not row.finished]
    figures = [*map(count_text, (row.macs, row.params, row.images, row.train_macs))]
    if row.is_search:
        trials = f"up to {row.num_trials}" if row.stops_early else f"{row.num_trials}"
        most = row.most_seconds > 1.05 * row.seconds
        each = hours_text(row.seconds / 3600)
        each = f"{each}, at most {hours_text(row.most_seconds / 3600)}" if most else each
        each = f"{each} or less" if row.stops_early and not most else each
        name = f"{row.label} (search)"
    else:
        trials = f"{len(todo)} of {len(group)}" if len(todo) < len(group) else f"{len(group)}"
        each, name = hours_text(max((r.seconds for r in todo), default=0.0) / 3600), row.label
    if not todo:
        trials, each = f"0 of {len(group)}" if not row.is_search else "0", "finished"
    source = row.kind if todo else ""
    return (name, trials, *figures, each, source)


def _sums(plan: Plan) -> list[str]:
    todo = plan.todo
    stops = any(row.stops_early for row in todo)
    hours, most = plan.device_seconds / 3600, plan.most_device_seconds / 3600
    begun = sum(row.state == "begun" for row in todo)
    over = sum(row.finished for row in plan.rows)
    notes = [f"{over} finished"] if over else []
    notes += [f"{begun} begun"] if begun else []
    more = sum(row.num_confirmations for row in todo)
    notes += [f"{more} of them are further seeds of the best"] if more else []
    lines = [
        f"to run       {counted(plan.num_trials, 'trial')}"
        + (f" ({', '.join(notes)})" if notes else "")
        + f": {count_text(plan.images)} training images, {count_text(plan.train_macs)} MACs",
    ]
    if plan.saved_images:
        share = plan.saved_images / (plan.images + plan.saved_images)
        saved = f"{count_text(plan.saved_images)} images ({share:.0%})"
        lines.append(f"saved        {saved}: longer trials go on from shorter ones")
    at_most = [f"at most {hours_text(most)} at the searches' dearest"] if most > hours else []
    at_most += ["early stopping makes it less"] if stops else []
    devices = f"{plan.num_devices:g} devices a trial" if plan.num_devices > 1 else ""
    if plan.num_devices < 1:
        devices = f"{plan.num_devices:g} of a device a trial"
    aside = "; ".join(filter(None, [devices, *at_most]))
    lines.append(f"device-hours {hours_text(hours)}" + (f" ({aside})" if aside else ""))
    at_once = f"with {plan.concurrency} at a time"
    lines.append(f"wall time    about {hours_text(plan.wall_seconds / 3600)} {at_once}")
    if plan.money is not None:
        rate = f"at {plan.price_per_hour:g} a device-hour"
        lines.append(f"money        {plan.money:,.2f} {rate}")
    if plan.grant_share is not None:
        share = f"{plan.grant_share:.1%} of the {plan.grant_hours:,g} device-hours"
        lines.append(f"grant        {share}")
    lines.append(f"disk         {bytes_text(plan.disk_bytes)}")
    if images := training_images_text(row.recipe for row in todo):
        lines += _wrapped("images", images)
    for line in plan.basis:
        lines += _wrapped("time from", line)
    return lines


def _wrapped(title: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{title:13}{text}", WIDTH, subsequent_indent=" " * 13, break_on_hyphens=False
    )
