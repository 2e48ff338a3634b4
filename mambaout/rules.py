"""The rules that fit a recipe to a data set and a device.

The paper's recipe is for 1.28 million photographs of 224 px. On fewer or smaller images its batch,
learning rate, warm-up and augmentation do not train a network, so these rules choose other values.
Every sweep and `mambaout train` use the rules, and print each rule that changes a field. A field
that is given on the command line is kept, and the rules for the other fields start from it.

A data set is small if it has under 50,000 images, or images of at most 64 px.

| field | small data | other data |
|---|---|---|
| image_size | up to 64 px: the images' own side, 28 at least; larger: 128 at most | 224 at most |
| stem_stride | 2 for images of up to 64 px, so that four stages fit; else the paper's 4 | same |
| minival_fraction | a tenth; more where that is under 120 images; a quarter at most | 0.02 |
| train_images | 6,000 in a study on images of up to 64 px; else all | all |
| subset | seed in a study that trains on a part of the images; else shared | shared |
| global_batch | 64; less below 1,600 images; more over 12,000 | 4096; less for 100 steps an epoch |
| peak_lr | 0.001 at a batch of 64; it grows with the root of the batch | 0.004 at 4096; linear |
| epochs | 12; more where 12 are fewer than 1,116 steps | 300 |
| warmup_epochs | as many as 47 steps are | the paper's share, 20 of 300 |
| augmentation | crops of 60 % and more; photographs are flipped | the paper's |
| augmentation, if the label is an arrangement (NamedSet) | none | none |

With --init the training starts from trained weights, and these fields differ (FINE_TUNING):

| field | small data | other data |
|---|---|---|
| the network | that of the weights, with their stem_stride | same |
| image_size | 128 for images of up to 64 px, if the weights' stem has a stride of 4 | as above |
| peak_lr | half the value above | a tenth of the value above |
| epochs | half as many, and half the steps | 30 |
| mixup, cutmix | off, as above | off |
| drop_path | 0.1 | 0.1 |

One field follows the device: precision, by the rule in applied_rules.py.

LOG.md, 2026-11-29, says where these values come from. Pure values: no torch, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from mambaout.applied_rules import PRECISION, AppliedRule
from mambaout.fields import flat_fields
from mambaout.recipe import (
    BASELINE,
    FINE_TUNING,
    Recipe,
    power_of_two_in,
    tuned,
)
from mambaout.variants import FEMTO, ModelConfig

SMALL_DATA = 50_000  # training images; below it the paper's recipe has too few steps
SMALL_SIDE, SMALLEST_SIDE = 64, 28  # px; images of up to SMALL_SIDE keep their size
SMALL_DATA_SIDE = 128  # px, for few photographs
SIDE_MULTIPLE = 32  # the paper's stem and stages divide a side by it

MINIVAL_SHARE, LARGEST_MINIVAL_SHARE = 0.1, 0.25
MINIVAL_IMAGES = 120  # the aim: at least 100 to choose on; the draw varies by about ten
LEAST_MINIVAL = 100  # images; with fewer, top-1 on minival is too rough to choose by

STUDY_IMAGES = 6_000  # an epoch of small images in a study, which trains many networks

BATCH, LEAST_BATCH, MOST_BATCH = 64, 8, 1024
BATCH_LR = 1e-3  # the peak learning rate at a global batch of BATCH
LEAST_STEPS_PER_EPOCH = 25  # for small data
STEPS_PER_EPOCH = 93  # 6,000 images in batches of 64; the values here were chosen at that length
EPOCHS = 12
WARMUP_STEPS, WARMUP_SHARE = 47, 1 / 6
NUM_EVALUATIONS = 12

LARGE_STEPS_PER_EPOCH = 100  # at least; the paper has 312, with 1.28 million images and batch 4096

SMOKE_EPOCHS, SMOKE_IMAGES = 3, 4_000

FINE_TUNED = "fine-tuning"  # the reason for a field of FINE_TUNING
# On small data, as a share of what a training from random weights has. On 300 garments, 0.1, 0.3,
# 0.5 and 1 times the rate came to a top-1 of 83.5, 91.0, 92.2 and 93.1 % (LOG.md, 2026-11-30). Half
# is a compromise: published networks are larger, and ConvNeXt's fine-tuning takes about a tenth.
FINE_TUNED_RATE, FINE_TUNED_LENGTH = 1 / 2, 1 / 2

# One block in each stage and two more in stage 3. The widths are D, 2D, 4D, 6D, as in Femto.
SMALL_MODEL = ModelConfig(
    depths=(1, 1, 3, 1), dims=(16, 32, 64, 96), stem_stride=2, hidden_multiple=8
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """The facts about a data set that the rules use."""

    num_train: int  # training images, including minival
    num_classes: int
    image_side: int  # px: median of the images' short sides
    is_arrangement: bool = False  # a crop, a flip or a mix of an image would change its label

    def __str__(self) -> str:
        return (
            f"{self.num_train:,} training images of {self.num_classes} classes, "
            f"short side {self.image_side} px (median)"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsFacts:
    """The facts about the weights that a training starts from that the rules use."""

    digest: str  # the value of the recipe's field `init`
    model: ModelConfig  # the network that the weights are of


@dataclass(frozen=True, slots=True)
class FittedRecipe:
    """A recipe for a data set, and the rules that set some of its fields."""

    recipe: Recipe
    rules: tuple[AppliedRule, ...]


def is_small(facts: DataFacts, train_images: int | None = None) -> bool:
    """Whether the rules for small data apply: there are few images, or the images are small.

    `train_images` is how many of the images a run asks for; None: all.
    """
    return _are_few(facts, train_images) or facts.image_side <= SMALL_SIDE


def _are_few(facts: DataFacts, train_images: int | None) -> bool:
    return min(facts.num_train, train_images or facts.num_train) < SMALL_DATA


def fitted(
    facts: DataFacts,
    shape: ModelConfig | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    precision: AppliedRule | None = None,
    weights: WeightsFacts | None = None,
    paper: bool = False,
    study: bool = False,
    smoke: bool = False,
) -> FittedRecipe:
    """The recipe for the data. A field's value comes from `given`, else `defaults`, else the rules.

    `shape` is the network (None: that of the weights, else Femto, or a small one for small data).
    `precision` is the rule of the device (None: fp32); it is always among the rules that are
    printed. With `weights` the training starts from them, so it is a fine-tuning. With `paper` the
    length and the augmentation are the paper's for any data. With `study` a trial on small images
    trains on 6,000 of them, unless `paper` is set, and each seed draws its own part of small data.
    With `smoke` the training takes only seconds.
    Raises ValueError for fields that do not go together.
    """
    chosen = dict(defaults or {}) | dict(given or {})
    if weights is not None:
        chosen["init"] = weights.digest
    fit = _Fit(facts, chosen, weights, paper, study, smoke)
    fit.data()
    fit.image()
    fit.batch_and_rate()
    fit.length()
    fit.augmentation()
    fit.fine_tuning()
    model = shape or fitting_shape(weights, is_small=fit.small)
    fit.stem(model)
    if precision is not None:
        fit.add(*astuple(precision))
    recipe = tuned(
        replace(BASELINE, model=model), **{rule.name: rule.value for rule in fit.rules}, **chosen
    )
    base = flat_fields(BASELINE)
    told = [
        rule
        for rule in fit.rules
        if rule.reason and (rule.name == PRECISION or rule.value != base[rule.name])
    ]
    return FittedRecipe(recipe, tuple(told))


def fitting_shape(weights: WeightsFacts | None, *, is_small: bool) -> ModelConfig:
    """The network if none is named: that of the weights, else one for the size of the data."""
    return weights.model if weights is not None else SMALL_MODEL if is_small else FEMTO


class _Fit:
    """The rules, applied one after another; each rule sees the fields decided before it."""

    def __init__(
        self,
        facts: DataFacts,
        chosen: Mapping[str, Any],
        weights: WeightsFacts | None,
        paper: bool,
        study: bool,
        smoke: bool,
    ) -> None:
        self.facts, self.chosen, self.weights = facts, chosen, weights
        self.tunes = weights is not None and not paper  # the paper's recipe stays as it is
        self.paper, self.study, self.smoke = paper, study, smoke
        self.rules: list[AppliedRule] = []
        self.photographs = facts.image_side > SMALL_SIDE
        self.few = _are_few(facts, chosen.get("train_images")) or smoke
        self.small = self.few or not self.photographs

    def value(self, name: str) -> Any:
        """The field's value so far."""
        decided = {rule.name: rule.value for rule in self.rules} | dict(self.chosen)
        return decided.get(name, flat_fields(BASELINE)[name])

    def add(self, name: str, value: Any, reason: str = "") -> None:
        if name not in self.chosen:
            self.rules.append(AppliedRule(name, value, reason))

    def data(self) -> None:
        """Decide minival_fraction, train_images and subset."""
        num = self.facts.num_train
        share = MINIVAL_SHARE if self.small else BASELINE.minival_fraction
        wanted = min(max(share, MINIVAL_IMAGES / max(num, 1)), LARGEST_MINIVAL_SHARE)
        wanted = float(f"{wanted:.2g}")
        expected = round(num * wanted)
        if expected < LEAST_MINIVAL:
            bound = 50 / math.sqrt(max(expected, 1))
            reason = (
                f"a quarter is only about {expected} images to choose on: two recipes that differ "
                f"by less than about {2 * bound:.0f} points cannot be told apart"
            )
        elif wanted > share:
            reason = f"about {MINIVAL_IMAGES} images to choose on"
        else:
            reason = "few or small images: a tenth of them to choose on"
        self.add("minival_fraction", wanted, reason)
        left = num * (1 - self.value("minival_fraction"))
        least = left - 5 * math.sqrt(max(num, 1))  # the size of minival varies with its draw
        if self.smoke and least > SMOKE_IMAGES:
            self.add("train_images", SMOKE_IMAGES, "a smoke run trains on few images")
        elif self.study and not (self.paper or self.photographs) and least > STUDY_IMAGES:
            self.add(
                "train_images",
                STUDY_IMAGES,
                f"a study trains many networks; --train-images none takes all {num:,}",
            )
        if self.study and self.small and self.value("train_images") is not None:
            self.add("subset", "seed", "intervals over seeds then cover the draw of the images")
        self.num_images = int(min(self.value("train_images") or left, left))

    def image(self) -> None:
        side = self.facts.image_side
        if self.smoke:
            self.add("image_size", SMALLEST_SIDE, "a smoke run trains on small images")
        elif not self.photographs and self.weights is not None and self._stem_stride() == 4:
            reason = f"the weights have a stem of stride 4, for larger images than {side} px"
            self.add("image_size", SMALL_DATA_SIDE, reason)
        elif not self.photographs:
            self.add("image_size", max(side, SMALLEST_SIDE), f"the images have {side} px")
        else:
            most = SMALL_DATA_SIDE if self.few else BASELINE.image_size
            size = min(side // SIDE_MULTIPLE * SIDE_MULTIPLE, most)
            reason = "few photographs" if size == SMALL_DATA_SIDE else f"the images have {side} px"
            self.add("image_size", size, reason)

    def _stem_stride(self) -> int:
        """The stride of the stem that the weights were trained with, or that is given."""
        assert self.weights is not None
        return self.chosen.get("stem_stride", self.weights.model.stem_stride)

    def stem(self, model: ModelConfig) -> None:
        if self.weights is not None:
            stride = self.weights.model.stem_stride
            if stride != model.stem_stride:
                self.add("stem_stride", stride, "the stem as the weights were trained with it")
            return
        size = self.value("image_size")
        stride = 2 if size <= SMALL_SIDE else 4
        if stride != model.stem_stride:
            self.add("stem_stride", stride, f"the stem for images of {size} px")

    def batch_and_rate(self) -> None:
        num, optim = self.num_images, BASELINE.optim
        if self.small and not (self.paper and not self.few):
            ample = max(float(BATCH), min(num / STEPS_PER_EPOCH, float(MOST_BATCH)))
            # Half: a draw decides which images are minival, and it may take more than its share.
            batch = min(max(num / LEAST_STEPS_PER_EPOCH, LEAST_BATCH), ample, max(num / 2, 1))
            self.add("global_batch", power_of_two_in(int(batch)), f"{num:,} images an epoch")
            batch = self.value("global_batch")
            # Adam's rate grows with the root of the batch. Above the paper's 0.004 training
            # diverges.
            share = FINE_TUNED_RATE if self.tunes else 1
            rate = min(BATCH_LR * math.sqrt(batch / BATCH), optim.peak_lr) * share
            reason = f"{BATCH_LR * share:g} at a batch of {BATCH}, with the root of the batch"
        else:
            batch = BASELINE.global_batch
            while batch > 2 and num // batch < LARGE_STEPS_PER_EPOCH:
                batch //= 2
            reason = f"at least {LARGE_STEPS_PER_EPOCH} steps in an epoch of {num:,} images"
            self.add("global_batch", batch, reason)
            batch = self.value("global_batch")
            peak = (FINE_TUNING if self.tunes else BASELINE).optim.peak_lr
            rate = peak * batch / BASELINE.global_batch
            reason = f"the paper's linear rule at a batch of {batch}"
        if self.tunes:
            reason = f"{FINE_TUNED}; {reason}"
        self.add("peak_lr", float(f"{rate:.3g}"), reason)
        # The rates at both ends of the schedule keep their ratio to the peak.
        ratio = self.value("peak_lr") / optim.peak_lr
        if not self.small or self.paper:
            self.add("warmup_lr", BASELINE.schedule.warmup_lr * ratio)
            self.add("final_lr", BASELINE.schedule.final_lr * ratio)

    def length(self) -> None:
        schedule = BASELINE.schedule
        steps = max(1, self.num_images // max(self.value("global_batch"), 1))
        if self.smoke:
            self.add("epochs", SMOKE_EPOCHS, "a smoke run")
        elif self.small and not self.paper:
            least = EPOCHS * (FINE_TUNED_LENGTH if self.tunes else 1)
            epochs = math.ceil(max(least, least * STEPS_PER_EPOCH / steps))
            reason = f"{epochs * steps:,} steps in all" if epochs > least else "small data"
            self.add("epochs", epochs, f"{FINE_TUNED}; {reason}" if self.tunes else reason)
        elif self.tunes:
            self.add("epochs", FINE_TUNING.schedule.epochs, FINE_TUNED)
        epochs = self.value("epochs")
        if self.small and not self.paper:
            warmup = min(WARMUP_STEPS / steps, WARMUP_SHARE * epochs)
            self.add("warmup_epochs", max(round(warmup, 1), 0.1), f"about {WARMUP_STEPS} steps")
            self.add("eval_every_epochs", max(1, round(epochs / NUM_EVALUATIONS)), "")
        elif epochs != schedule.epochs:
            share = schedule.warmup_epochs / schedule.epochs
            reason = f"the paper's share, {schedule.warmup_epochs:g} of {schedule.epochs}"
            self.add("warmup_epochs", float(f"{share * epochs:.3g}"), reason)

    def augmentation(self) -> None:
        if self.facts.is_arrangement:
            reason = "the label depends on where things lie in the whole image"
            for name in ("crop_scale_min", "crop_ratio_min"):
                self.add(name, 1.0, reason)
            for name in ("hflip", "randaugment", "mixup", "cutmix", "erasing"):
                self.add(name, 0.0, reason)
            return
        if not self.small or self.paper:
            return
        reason = "a short training does worse with stronger augmentation"
        self.add("crop_scale_min", 0.6, reason)
        for name in ("randaugment", "mixup", "cutmix", "erasing"):
            self.add(name, 0.0, reason)
        if not self.photographs:
            self.add("hflip", 0.0, "small images may be digits, which a flip makes wrong")

    def fine_tuning(self) -> None:
        """Decide the other fields of a training that starts from trained weights."""
        if not self.tunes:
            return
        self.add("drop_path", FINE_TUNING.model.drop_path, FINE_TUNED)
        if not self.small:
            for name in ("mixup", "cutmix"):
                self.add(name, flat_fields(FINE_TUNING)[name], FINE_TUNED)
