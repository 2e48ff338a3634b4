"""How long a device takes for one image: measured in trials, calibrated, or assumed.

    rates = known_rates(Path("runs"), device)
    Forecast(rates, device).of(recipe, num_classes)     # seconds of a training image, of an
                                                        # evaluation image, and where from

A finished trial of any study on the device is a measurement. So is a line of rates.jsonl, which
`--calibrate` writes. For other recipes, the ratio of measured to assumed time is predicted by a
Gaussian process over size, depth, batch, augmentation, image size and mixer. So one measurement
scales every assumption, many measurements interpolate, and repeats of one recipe are averaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mambaout.accounting import FLOP_PER_MAC, TRAIN_FORWARDS, cost
from mambaout.chips import CHIPS, Chip, find_chip
from mambaout.durable import append_lines, read_lines
from mambaout.errors import WrongRequest
from mambaout.mixer_layers import MIXER_LAYERS
from mambaout.numbers import count_text
from mambaout.recipe import Recipe, canonical_json, content_key, recipe_from_json
from mambaout.study.price.finished_trials import FinishedTrial, finished_trials
from mambaout.train.metrics import (
    EARLIER_DEVICES,
    IMAGES_PER_SECOND,
    NUM_DEVICES,
    TRAIN_DEVICE_HOURS,
)

RATES_FILE = "rates.jsonl"
MOST_RATES = 400

# Assumed if nothing has been measured. On one core of a Xeon with AVX-512, in fp32, a training
# image took 1 ms + 3 * MACs / 25e9 s, within a third, for MambaOuts from 1M to 1,150M MACs. The
# values below are a little slower, because trials share the machine. On a chip, a quarter of its
# peak is assumed, plus half a millisecond an image for input and launches. Both are round guesses,
# not measured.
CPU_SECONDS_PER_IMAGE = 1.1e-3
CPU_CORE_MACS_PER_SECOND = 20e9
CHIP_SECONDS_PER_IMAGE = 0.5e-3
SHARE_OF_PEAK = 0.25
# A chip without an fp32 figure computes an fp32 product as six bf16 products (XLA's highest
# precision).
BF16_PASSES = 6
# Time of an evaluation image / time of a training image. Evaluation has a third of the MACs and no
# augmentation. Measured on one core: 0.22 to 0.38 over 18 trials, checkpoints and warm-up included.
EVAL_SHARE = 0.3

Kind = Literal["measured", "calibrated", "assumed"]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The time per image that a training run, or some seconds of one, took on a device."""

    kind: Kind
    recipe: Recipe
    num_classes: int
    device: str  # the driver's name for it
    num_devices: float = 1  # 0.5: half of a GPU
    train_image_seconds: float  # on all devices of the run together; warm-up left out
    eval_image_seconds: float | None = None  # checkpoints and the warm-up step included
    slots: int | None = None  # runs that shared the machine; None if not known
    source: str = ""  # the study, or the label of the calibrated recipe
    made: str = ""  # time of a calibration, UTC

    def to_json(self) -> str:
        body = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(body | {"recipe": json.loads(canonical_json(self.recipe))})

    @classmethod
    def from_json(cls, line: str) -> Rate:
        body = json.loads(line)
        return cls(**body | {"recipe": recipe_from_json(json.dumps(body["recipe"]))})


def measured(storage: Path, device: str, num_devices: float = 1) -> list[Rate]:
    """The rates of the latest finished trials on `device`, of all studies in `storage`.

    Rates of halves of a GPU do not serve whole GPUs. Any number of whole devices serves another.

    The last one comes last. A few hundred are enough, since more make no better forecast.
    """
    found: list[Rate] = []
    trials = finished_trials(storage)
    for trial in sorted(trials, key=lambda trial: trial.facts.get("ended", ""), reverse=True):
        if len(found) == MOST_RATES:
            break
        on = trial.facts.get("device", ""), trial.facts.get(NUM_DEVICES, 1)
        if not _same(on[0], device, on[1], num_devices) or trial.recipe is None:
            continue
        rate = _of_trial(trial, trial.recipe)
        if rate is not None:
            found.append(rate)
    return found[::-1]


def _of_trial(trial: FinishedTrial, recipe: Recipe) -> Rate | None:
    metrics, facts = trial.metrics, trial.facts
    rate, num_devices = metrics.get(IMAGES_PER_SECOND, 0), facts[NUM_DEVICES]
    if not rate > 0 or facts.get(EARLIER_DEVICES):
        return None
    images = facts["step"] * recipe.global_batch
    seconds = metrics.get(TRAIN_DEVICE_HOURS, 0) * 3600 / num_devices
    each = None
    if "num_minival" in facts and seconds > images / rate:
        evaluated = num_evaluated(recipe, facts["num_minival"], facts["num_val"])
        each = (seconds - images / rate) / evaluated
    return Rate(
        kind="measured",
        recipe=recipe,
        num_classes=facts["num_classes"],
        device=facts["device"],
        num_devices=num_devices,
        train_image_seconds=1 / rate,
        eval_image_seconds=each,
        source=trial.study,
    )


def num_evaluated(recipe: Recipe, num_minival: int, num_val: int) -> int:
    """Images that a whole run evaluates: minival at every evaluation, val once."""
    epochs, every = recipe.schedule.total_epochs, recipe.eval_every_epochs
    return math.ceil(epochs / every) * num_minival + num_val


def calibrated(
    storage: Path, device: str, slots: int | None = None, num_devices: float = 1
) -> list[Rate]:
    """The latest calibrations of each recipe on `device` in `storage`.

    Those with `slots` runs sharing the machine are returned, or all if there are none.
    """
    rates = read_lines(Path(storage) / RATES_FILE, _rate_of)
    found = [
        rate
        for rate in rates
        if rate is not None and _same(rate.device, device, rate.num_devices, num_devices)
    ]
    found = [rate for rate in found if rate.slots == slots] or found
    latest = {content_key(rate.recipe): rate.made for rate in found}  # the last line is the latest
    return [rate for rate in found if rate.made == latest[content_key(rate.recipe)]]


def _rate_of(line: str) -> Rate | None:
    """The line's rate; None if it is damaged or of another version. A rate is never essential."""
    try:
        return Rate.from_json(line)
    except (ValueError, TypeError, KeyError):
        return None


def add_calibrated(storage: Path, rates: Iterable[Rate]) -> None:
    """Append to the storage's rates.jsonl."""
    storage.mkdir(parents=True, exist_ok=True)
    append_lines(storage / RATES_FILE, [rate.to_json() for rate in rates], sync=True)


def known_rates(
    storage: Path, device: str, slots: int | None = None, num_devices: float = 1
) -> list[Rate]:
    """All rates of `device` in `storage`, with `slots` runs sharing the machine."""
    found = measured(storage, device, num_devices)
    return found + calibrated(storage, device, slots, num_devices)


def _same(found: str, wanted: str, num_found: float, num_wanted: float) -> bool:
    """Whether both are one kind of device, and the same part of it."""
    return found.lower() == wanted.lower() and is_same_part(num_found, num_wanted)


def is_same_part(found: float, wanted: float) -> bool:
    """Whether both are the same part of a device; any whole numbers of devices are."""
    return min(found, 1) == min(wanted, 1)


# -- what is assumed -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assumption:
    """The assumed cost of an image, used if nothing has been measured."""

    macs_per_second: float  # training MACs
    seconds_per_image: float  # in addition to the time for the MACs
    text: str
    devices_a_host: int = 8  # a TPU v3 host has four chips of two cores

    def train_image_seconds(self, macs: float, num_devices: float = 1) -> float:
        """Seconds on `num_devices` devices. They share the MACs; their hosts share the rest."""
        num_hosts = math.ceil(num_devices / self.devices_a_host)
        computing = TRAIN_FORWARDS * macs / self.macs_per_second / num_devices
        return self.seconds_per_image / num_hosts + computing


def assumption(device: str, precision: str = "fp32") -> Assumption:
    """The assumption for a CPU core or a chip of the chip table. WrongRequest for another device,
    and for a precision that the chip has no units for."""
    chip = find_chip(device)
    if chip is not None:
        rate = SHARE_OF_PEAK * _peak(chip, precision) / chip.cores / FLOP_PER_MAC
        each = CHIP_SECONDS_PER_IMAGE
        share = f"{SHARE_OF_PEAK:.0%} of the peak of {chip.name} in {precision}"
        return Assumption(rate, each, f"{share} and {each * 1e3:g} ms an image")
    if device == "cpu" or "thread" in device:  # Cpu.device_name ends so
        rate, each = CPU_CORE_MACS_PER_SECOND, CPU_SECONDS_PER_IMAGE
        text = f"{count_text(rate)} training MACs a second and {each * 1e3:g} ms an image on a core"
        return Assumption(rate, each, text)
    raise WrongRequest(
        f"device {device!r} is not in the chip table and nothing has been measured on it: "
        f"calibrate, or name one of cpu, {', '.join(CHIPS)}"
    )


def _peak(chip: Chip, precision: str) -> float:
    """FLOP/s of the chip in a precision. WrongRequest if it has no units for it."""
    peaks = chip.peak_flops
    if precision in peaks:
        return peaks[precision]
    if precision == "fp32":
        return peaks["bf16"] / BF16_PASSES
    raise WrongRequest(
        f"{chip.name} has no units for {precision}, so there is no peak to plan with; "
        f"give --precision {'fp32' if 'fp32' in peaks else 'bf16'}"
    )


def yardstick(device: str, precision: str) -> Assumption:
    """The assumption by which measured times are divided. With measurements, any one will do."""
    try:
        return assumption(device, precision)
    except WrongRequest:
        return assumption("H100", precision)


# -- the forecast ----------------------------------------------------------------------------------

# Standard deviations of the logarithm of measured / assumed time: of a device as a whole, between
# recipes, and between two runs of one recipe.
DEVICE_SPREAD, RECIPE_SPREAD, RUN_SPREAD = 2.0, 0.35, 0.12
# Within this distance, a recipe is near a measured one. It is about three octaves of MACs.
NEAR = 1.0


@dataclass(frozen=True)
class Estimate:
    """The time of one image of a recipe, on all devices of a run together."""

    train_image_seconds: float
    eval_image_seconds: float
    kind: Kind


class Forecast:
    """Forecasts the times of recipes on one device from the known rates."""

    def __init__(self, rates: Sequence[Rate], device: str, num_devices: float = 1) -> None:
        self.device, self.num_devices = device, num_devices
        self.rates = list(rates)
        self._models: dict[tuple[str, str], _Ratios] = {}

    def of(self, recipe: Recipe, num_classes: int) -> Estimate:
        """The times of one image of `recipe`.

        The sources in order: measured trials near `recipe`, calibrations, measured trials far from
        it, and last the assumption.
        """
        point = features(recipe, num_classes)
        models = [self._model(kind, recipe.precision) for kind in ("measured", "calibrated")]
        known = [model for model in models if model.rates]
        near = [model for model in known if model.distance(point) <= NEAR]
        speed = (yardstick if known else assumption)(self.device, recipe.precision)
        macs = cost(recipe.model, recipe.image_size, num_classes).macs
        assumed = speed.train_image_seconds(macs, self.num_devices)
        if not known:
            return Estimate(assumed, EVAL_SHARE * assumed, "assumed")
        model = (near or known[::-1])[0]
        train, evaluation = model.at(point)
        return Estimate(assumed * train, EVAL_SHARE * assumed * evaluation, model.rates[0].kind)

    def error(self, kind: Kind, precision: str) -> float | None:
        """Median relative error if each recipe's time per image is forecast from the others.

        None with fewer than three recipes.
        """
        return self._model(kind, precision).error()

    def _model(self, kind: str, precision: str) -> _Ratios:
        """The model of one kind and precision, because bf16 tells nothing about fp32."""
        if (kind, precision) not in self._models:
            fitting = [
                rate
                for rate in self.rates
                if rate.kind == kind and rate.recipe.precision == precision
            ]
            self._models[kind, precision] = _Ratios(fitting, self.device)
        return self._models[kind, precision]


def assumed_image_seconds(recipe: Recipe, num_classes: int, device: str) -> float:
    macs = cost(recipe.model, recipe.image_size, num_classes).macs
    return assumption(device, recipe.precision).train_image_seconds(macs)


def features(recipe: Recipe, num_classes: int) -> np.ndarray:
    """The coordinates of a recipe, in units at which times begin to differ."""
    augment = recipe.augment
    draws = augment.randaugment > 0, augment.mixup > 0 or augment.cutmix > 0
    macs = cost(recipe.model, recipe.image_size, num_classes).macs
    return np.array(
        [
            math.log2(macs) / 3,
            math.log2(recipe.model.num_blocks) / 2,
            math.log2(recipe.global_batch) / 4,
            math.log2(recipe.image_size) / 2,
            0.75 * draws[0] + 0.25 * draws[1],
            # Two mixers are farther apart than NEAR.
            *(0.75 * (recipe.model.mixer == name) for name in MIXER_LAYERS),
        ]
    )


class _Ratios:
    """Measured / assumed time in training and evaluation, interpolated between recipes."""

    def __init__(self, rates: Sequence[Rate], device: str) -> None:
        groups: dict[str, list[Rate]] = {}
        for rate in rates:
            # Optimizer and schedule take no time. Recipes that differ only in them are repeats.
            same = (rate.recipe.model, rate.recipe.augment, rate.recipe.global_batch)
            size = (rate.recipe.image_size, rate.num_classes, rate.num_devices)
            groups.setdefault(content_key(*same, *size), []).append(rate)
        kept = list(groups.values())
        self.rates = [group[-1] for group in kept]
        if not kept:
            return
        self.points = np.array([features(rate.recipe, rate.num_classes) for rate in self.rates])
        self.counts = np.array([len(group) for group in kept])
        train, evaluation = [], []
        for group in kept:
            one = group[0]
            macs = cost(one.recipe.model, one.recipe.image_size, one.num_classes).macs
            speed = yardstick(device, one.recipe.precision)
            assumed = speed.train_image_seconds(macs, one.num_devices)
            train.append(_mean_log(rate.train_image_seconds / assumed for rate in group))
            seen = [rate.eval_image_seconds for rate in group if rate.eval_image_seconds]
            evaluation.append(_mean_log(each / (EVAL_SHARE * assumed) for each in seen))
        self.train = np.array(train)
        # If a run has no evaluation time, its training ratio is used for evaluation too.
        self.evaluation = np.where(np.isnan(evaluation), self.train, evaluation)
        kernel = _kernel(self.points, self.points) + np.diag(RUN_SPREAD**2 / self.counts)
        self.inverse = np.linalg.inv(kernel)

    def distance(self, point: np.ndarray) -> float:
        return float(np.sqrt(((self.points - point) ** 2).sum(axis=1)).min())

    def at(self, point: np.ndarray) -> tuple[float, float]:
        weights = (_kernel(point[None], self.points) @ self.inverse)[0]
        return math.exp(weights @ self.train), math.exp(weights @ self.evaluation)

    def error(self) -> float | None:
        if len(self.rates) < 3:
            return None
        left_out = (self.inverse @ self.train) / np.diag(self.inverse)
        return float(np.median(np.abs(np.expm1(left_out))))


def _mean_log(ratios: Iterable[float]) -> float:
    logs = [math.log(ratio) for ratio in ratios]
    return sum(logs) / len(logs) if logs else math.nan


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squared = ((first[:, None] - second[None]) ** 2).sum(axis=2)
    return DEVICE_SPREAD**2 + RECIPE_SPREAD**2 * np.exp(-squared / 2)
