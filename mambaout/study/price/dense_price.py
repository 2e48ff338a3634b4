"""What a trial of a detector or a segmenter costs: MACs, images, seconds and bytes.

The MACs of an image are those of the closed form. The seconds of an image are the assumption about
the device (rates.py), times the ratio of measured to assumed time in finished trials of the same
task on that device: the median over the trials whose MACs are near, or over all if none is near.
Without such trials the ratio is 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mambaout.accounting import TRAIN_FORWARDS, Cost
from mambaout.numbers import counted
from mambaout.study.price.finished_trials import finished_trials
from mambaout.study.price.rates import EVAL_SHARE, assumption, is_same_part, yardstick
from mambaout.study.price.trial_price import (
    CHECKPOINTS,
    LOG_EVERY_STEPS,
    RECORD_BYTES,
    TRIAL_BYTES,
    PlanRow,
    checkpoint_bytes,
)
from mambaout.study.study import Run, Trial
from mambaout.train.metrics import DEVICE, EARLIER_DEVICES, IMAGES_PER_SECOND, MACS, NUM_DEVICES
from mambaout.train.tasks import TaskKind

EXTRAPOLATED = 4  # times the MACs of another network; beyond, its time is a guess
SHEET_BYTES = 1_000_000  # the pictures of predictions, with MLflow's copy


@dataclass(frozen=True, kw_only=True)
class DenseWork:
    """The work of one training."""

    cost: Cost  # of one image, one forward
    num_steps: int
    images: int  # that are trained on, every epoch counted
    evaluated: int  # images that are evaluated
    num_evaluations: int


class DenseForecast:
    """Forecasts the seconds of an image on one device from the finished trials in a storage."""

    def __init__(self, storage: Path, kind: TaskKind, device: str, num_devices: float = 1) -> None:
        """`num_devices` is 0.5 if a trial has half of a GPU."""
        self.device, self.num_devices = device, num_devices
        self.ratios = _ratios(storage, kind, device, num_devices)

    def train_image_seconds(self, macs: int, precision: str) -> float:
        known = self.ratios.get(precision)
        if not known:
            assumed = assumption(self.device, precision)
            return assumed.train_image_seconds(macs, self.num_devices)
        near = [ratio for of, ratio in known if max(of / macs, macs / of) <= EXTRAPOLATED]
        known_speed = yardstick(self.device, precision)
        seconds = known_speed.train_image_seconds(macs, self.num_devices)
        return statistics.median(near or [ratio for _, ratio in known]) * seconds

    def basis(self, rows: Collection[PlanRow]) -> list[str]:
        """A line for each source of the rows' times."""
        lines = []
        for precision in sorted({row.recipe.precision for row in rows}):
            known = self.ratios.get(precision)
            if known:
                ratios = [ratio for _, ratio in known]
                text = f"measured: from {counted(len(ratios), 'finished trial')} on {self.device}"
                text += f" in {precision}" if precision != "fp32" else ""
                if len(ratios) > 2:
                    middle = statistics.median(ratios)
                    off = statistics.median(abs(each / middle - 1) for each in ratios)
                    text += f"; they differ from their median by {off:.0%} (median)"
                largest = max(row.macs for row in rows if row.recipe.precision == precision)
                beyond = largest / max(of for of, _ in known)
                if beyond > EXTRAPOLATED:
                    text += f"; extrapolated: the largest network here has {beyond:.0f} times the "
                    text += "MACs of the largest that was trained"
                lines.append(text)
            else:
                told = assumption(self.device, precision).text
                lines.append(f"assumed: {told}; nothing has been measured on {self.device} yet")
        return lines

    def row(
        self, trial: Trial, work: DenseWork, run: Run | None, finished: Collection[str]
    ) -> PlanRow:
        """The price of a trial. `finished` are keys of trials that other studies have finished."""
        recipe, macs = trial.recipe, work.cost.macs
        each = self.train_image_seconds(macs, recipe.precision)
        seconds = each * (work.images + EVAL_SHARE * work.evaluated)
        records = work.num_steps // LOG_EVERY_STEPS + work.num_evaluations
        kept = CHECKPOINTS * checkpoint_bytes(recipe, work.cost.params)
        row = PlanRow(
            name=trial.name,
            label=trial.label,
            recipe=recipe,
            params=work.cost.params,
            macs=macs,
            images=work.images,
            train_macs=TRAIN_FORWARDS * work.images * macs,
            seconds=seconds,
            most_seconds=seconds,
            disk_bytes=kept + records * RECORD_BYTES + TRIAL_BYTES + SHEET_BYTES,
            kind="measured" if self.ratios.get(recipe.precision) else "assumed",
        )
        if (run is not None and run.status.is_over) or trial.key in finished:
            return replace(row, state="finished", seconds=0.0, most_seconds=0.0)
        if run is None or not run.records:
            return row
        left = seconds * (1 - min(1.0, run.records[-1].step / work.num_steps))
        return replace(row, state="begun", seconds=left, most_seconds=left)


def _ratios(
    storage: Path, kind: TaskKind, device: str, num_devices: float
) -> dict[str, Sequence[tuple[float, float]]]:
    """By precision, the MACs of each finished trial and its ratio of measured to assumed time."""
    found: dict[str, list[tuple[float, float]]] = {}
    for trial in finished_trials(storage):
        metrics, facts = trial.metrics, trial.facts
        is_of_device = facts.get("task") == kind.name and facts.get(DEVICE) == device
        is_of_device &= is_same_part(facts.get(NUM_DEVICES, 1), num_devices)
        if not is_of_device or facts.get(EARLIER_DEVICES):
            continue
        rate, macs = metrics.get(IMAGES_PER_SECOND, math.nan), metrics.get(MACS)
        if rate > 0 and macs:
            precision = facts.get("precision", "fp32")
            assumed = yardstick(device, precision).train_image_seconds(macs, num_devices)
            found.setdefault(precision, []).append((macs, 1 / rate / assumed))
    return dict(found)
