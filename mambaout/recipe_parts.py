"""The parts of a recipe other than its network: optimizer, schedule, augmentation.

Pure values: no torch, no I/O. recipe.py puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mambaout.fields import MOST_CHANNELS, MOST_COUNT, Bound, Rule, check, knob
from mambaout.mixer_layers import MUP_MIXERS

PAPER = "paper, Table 5"
AUTHORS_RUN = "authors' code with timm 0.6.11"


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """AdamW (paper Table 5). Weight decay never touches biases, norms or other 1-d parameters."""

    peak_lr: float = knob(
        4e-3,
        "learning rate at the end of warm-up; it belongs to a global batch",
        unit=None,
        source=f"{PAPER}, for a batch of 4096",
        bound=Bound(above=0, below=10),
    )
    weight_decay: float = knob(
        0.05,
        "AdamW's decay of the weights, times the learning rate at each step",
        unit=None,
        source=PAPER,
        bound=Bound(least=0, below=10),
    )
    beta1: float = knob(
        0.9,
        "AdamW's decay of the mean gradient",
        unit="share kept a step",
        source=PAPER,
        bound=Bound(least=0, below=1),
    )
    beta2: float = knob(
        0.999,
        "AdamW's decay of the mean squared gradient",
        unit="share kept a step",
        source=PAPER,
        bound=Bound(least=0, below=1),
    )
    adam_eps: float = knob(
        1e-8,
        "what AdamW adds to the root of the mean squared gradient",
        unit=None,
        source=PAPER,
        bound=Bound(above=0, most=1),
    )
    clip_norm: float | None = knob(
        None,
        "longest the global gradient may be, in its 2-norm; none: it is not clipped",
        unit=None,
        source=PAPER,
        bound=Bound(above=0, most=1_000_000),
    )
    weight_init: Literal["trunc_normal", "fan_in"] = knob(
        "trunc_normal",
        "how the first weights are drawn; trunc_normal: with a standard deviation of 0.02 in every "
        "layer; fan_in: uniform up to 1 / sqrt(fan-in), torch's default",
        unit=None,
        source=AUTHORS_RUN,
    )
    # model/first_weights.py has the rule as a table.
    mup_base_dim: int | None = knob(
        None,
        "dims[0] of the network that peak_lr was tuned on: first weights and learning rates then "
        "follow the width by muP's rule; none: one rate for all",
        unit="channels",
        source="paper, which has one rate",
        bound=Bound(least=1, most=MOST_CHANNELS),
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()

    def __post_init__(self) -> None:
        check(self)


def mup_of_the_mixer(mup_base_dim: int | None, mixer: str) -> str | None:
    if mup_base_dim is None or mixer in MUP_MIXERS:
        return None
    return (
        f"mup_base_dim={mup_base_dim} has no rule for mixer={mixer!r}, only for "
        f"{' and '.join(MUP_MIXERS)}; leave it out"
    )


def _warmup_inside(warmup_epochs: float, epochs: int) -> str | None:
    if warmup_epochs >= epochs:
        return (
            f"warmup_epochs={warmup_epochs:g} must be below epochs={epochs}, which it is part of; "
            f"give a warmup_epochs like {epochs / 15:.3g}, or more epochs"
        )
    return None


def _warmup_before_late_decay(
    warmup_epochs: float, epochs: int, lr_decay_share: float | None
) -> str | None:
    if lr_decay_share is None or warmup_epochs <= epochs * (1 - lr_decay_share):
        return None
    return (
        f"warmup_epochs={warmup_epochs:g} must end before the last lr_decay_share="
        f"{lr_decay_share:g} of epochs={epochs}; give a warmup_epochs like "
        f"{epochs * (1 - lr_decay_share) / 2:.3g}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A linear warm-up, a cosine or a late decay, then an optional cool-down at the final rate.

    A late decay (Hägele et al., arXiv 2405.18392) keeps the peak rate until the last
    `lr_decay_share` of the epochs. So two trainings that differ only in their epochs are the same
    training until the shorter one begins its decay.
    """

    epochs: int = knob(
        300,
        "length of the training, warm-up and decay together",
        unit="epochs",
        source=PAPER,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    warmup_epochs: float = knob(
        20,
        "the first of the epochs, in which the learning rate rises linearly",
        unit="epochs",
        source=PAPER,
        bound=Bound(least=0, most=MOST_COUNT),
    )
    cooldown_epochs: int = knob(
        0,
        "further epochs at the final learning rate",
        unit="epochs",
        source="paper, which names none; the authors' code has 10",
        bound=Bound(least=0, most=MOST_COUNT),
    )
    warmup_lr: float = knob(
        1e-6,
        "learning rate at step 0",
        unit=None,
        source=AUTHORS_RUN,
        bound=Bound(least=0, below=10),
    )
    final_lr: float = knob(
        1e-5,
        "learning rate at the end of the decay",
        unit=None,
        source=AUTHORS_RUN,
        bound=Bound(least=0, below=10),
    )
    lr_decay_share: float | None = knob(
        None,
        "last part of the epochs, in which the learning rate falls from its peak as 1 - square "
        "root (a late decay); 0.2 is usual; none: it falls along a cosine from the start",
        unit="share",
        source=AUTHORS_RUN,
        bound=Bound(above=0, most=1),
    )
    lr_steps: Literal["step", "epoch"] = knob(
        "step",
        "how often the learning rate moves: at every step, or once an epoch",
        unit=None,
    )

    RULES: ClassVar[tuple[Rule, ...]] = (_warmup_inside, _warmup_before_late_decay)

    def __post_init__(self) -> None:
        check(self)

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    def decay_step(self, steps_per_epoch: int) -> int | None:
        """The number of steps before the late decay begins; None if the schedule has none.

        The steps before it do not depend on `epochs`.
        """
        if self.lr_decay_share is None:
            return None
        num_steps = self.epochs * steps_per_epoch
        return min(round(num_steps * (1 - self.lr_decay_share)), num_steps - 1)


PROBABILITY = Bound(least=0, most=1)
SHARE = Bound(above=0, most=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """The augmentation of training images and labels (paper Table 5; names as in timm and DeiT)."""

    crop_scale_min: float = knob(
        0.08,
        "least share of an image's area that a random resized crop keeps",
        unit="share",
        source=AUTHORS_RUN,
        bound=SHARE,
    )
    crop_ratio_min: float = knob(
        3 / 4,
        "least width / height of a crop; the largest is its inverse",
        unit="ratio",
        source=AUTHORS_RUN,
        bound=SHARE,
    )
    hflip: float = knob(
        0.5,
        "how often an image is mirrored, left to right",
        unit="probability",
        source=AUTHORS_RUN,
        bound=PROBABILITY,
    )
    interpolation: Literal["bicubic", "bilinear", "random"] = knob(
        "random",
        "how a crop is resized; random: bicubic or bilinear, drawn for each image",
        unit=None,
        source=AUTHORS_RUN,
    )
    randaugment: float = knob(
        9.0,
        "magnitude of RandAugment, of 10; 0: off",
        unit=None,
        source=PAPER,
        bound=Bound(least=0, most=10),
    )
    randaugment_std: float = knob(
        0.5,
        "standard deviation of the magnitude, drawn for each operation",
        unit=None,
        source=PAPER,
        bound=Bound(least=0, most=10),
    )
    randaugment_layers: int = knob(
        2,
        "RandAugment operations an image, each done with probability 0.5",
        unit="operations",
        source=AUTHORS_RUN,
        bound=Bound(least=0, most=100),
    )
    color_jitter: float = knob(
        0.0,
        "largest change of brightness, contrast and saturation; 0: off",
        unit="share",
        source=f"{AUTHORS_RUN}, where RandAugment switches it off",
        bound=Bound(least=0, most=10),
    )
    mixup: float = knob(
        0.8,
        "alpha of mixup's beta distribution; 0: no mixup",
        unit=None,
        source=PAPER,
        bound=Bound(least=0, most=1000),
    )
    cutmix: float = knob(
        1.0,
        "alpha of cutmix's beta distribution; 0: no cutmix",
        unit=None,
        source=PAPER,
        bound=Bound(least=0, most=1000),
    )
    mixup_prob: float = knob(
        1.0,
        "how often the images of a step are mixed at all, by mixup or cutmix",
        unit="probability",
        source=AUTHORS_RUN,
        bound=PROBABILITY,
    )
    cutmix_prob: float = knob(
        0.5,
        "how often a mixed step is cutmix, where mixup and cutmix are both on",
        unit="probability",
        source=PAPER,
        bound=PROBABILITY,
    )
    erasing: float = knob(
        0.25,
        "how often a rectangle of an image is replaced by noise",
        unit="probability",
        source=PAPER,
        bound=PROBABILITY,
    )
    label_smoothing: float = knob(
        0.1,
        "share of a label that is spread over all classes",
        unit="share",
        source=PAPER,
        bound=Bound(least=0, below=1),
    )
    pixels: Literal["exact", "fast"] = knob(
        "exact",
        "exact: pixels as Pillow and timm make them, within a grey level; fast: another resampling "
        "that reads fewer bytes of an image",
        unit=None,
        source=AUTHORS_RUN,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are ever mixed."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __post_init__(self) -> None:
        check(self)
