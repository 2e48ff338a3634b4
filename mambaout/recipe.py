"""What defines a training run: one frozen value, its defaults the paper's, and its content key.

Pure values: no torch, no I/O. BASELINE is MambaOut's ImageNet recipe (arXiv 2405.07992, Table 5
and section 4.2). Where the paper and the authors' released code disagree, both can be written:

| | paper, = BASELINE | released code (timm 0.6.11) | how |
|---|---|---|---|
| length | 300 epochs | 300 + 10 of cool-down at the final learning rate | cooldown_epochs=10 |
| schedule | not stated, here a step | learning rate changes once an epoch | lr_steps="epoch" |
| colour jitter | named in section 4.2 | 0.4, inert beside RandAugment | color_jitter=0.4 or 0 |

RELEASED_CODE is the middle column written down. Colour jitter stays 0 in both, since the
published weights were trained without it.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from hashlib import sha256
from typing import Any, Literal

from mambaout.variants import FEMTO, ModelConfig


def _require(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise ValueError(f"{name}={value!r} is out of range: {bound}")


# A field that came after recipes had been stored: at its default it is left out of JSON, so that it
# changes no key, and where it is missing its default is meant.
_LATER = {"later": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """AdamW (paper Table 5). Weight decay never touches biases, norms or other 1-d parameters."""

    peak_lr: float = 4e-3
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    clip_norm: float | None = None  # of the global gradient; None: no clipping
    # dims[0] of the network that peak_lr was tuned on. A matrix between hidden channels learns at
    # that share of the rate, lr_base_dim / dims[0], everything else at the rate itself: Adam's rule
    # of muP (arXiv 2203.03466, Table 3), of the rates alone. None: one rate for all.
    lr_base_dim: int | None = field(default=None, metadata=_LATER)

    def __post_init__(self) -> None:
        _require(0 < self.peak_lr < 10, "peak_lr", self.peak_lr, "above 0 and below 10")
        _require(0 <= self.weight_decay < 10, "weight_decay", self.weight_decay, "0 to 10")
        _require(0 <= self.beta1 < 1, "beta1", self.beta1, "at least 0 and below 1")
        _require(0 <= self.beta2 < 1, "beta2", self.beta2, "at least 0 and below 1")
        _require(self.adam_eps > 0, "adam_eps", self.adam_eps, "above 0")
        if self.clip_norm is not None:
            _require(self.clip_norm > 0, "clip_norm", self.clip_norm, "above 0, or none")
        if self.lr_base_dim is not None:
            _require(self.lr_base_dim >= 1, "lr_base_dim", self.lr_base_dim, "at least 1, or none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Linear warm-up inside the cosine, then an optional stretch at the final rate."""

    epochs: int = 300  # warm-up and cosine together
    warmup_epochs: float = 20
    cooldown_epochs: int = 0
    warmup_lr: float = 1e-6  # at step 0
    final_lr: float = 1e-5  # at the cosine's end
    lr_steps: Literal["step", "epoch"] = "step"  # how often the rate moves

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(
            0 <= self.warmup_epochs < self.epochs,
            "warmup_epochs",
            self.warmup_epochs,
            f"at least 0 and below epochs={self.epochs}",
        )
        _require(self.cooldown_epochs >= 0, "cooldown_epochs", self.cooldown_epochs, "at least 0")
        _require(self.warmup_lr >= 0, "warmup_lr", self.warmup_lr, "at least 0")
        _require(self.final_lr >= 0, "final_lr", self.final_lr, "at least 0")

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """What is done to a training image and label (paper Table 5; names as timm and DeiT use)."""

    crop_scale_min: float = 0.08  # least share of the area that a random resized crop keeps
    crop_ratio_min: float = 3 / 4  # aspect ratios lie between it and its inverse
    hflip: float = 0.5
    interpolation: Literal["bicubic", "bilinear", "random"] = "random"
    randaugment: float = 9.0  # magnitude of 10; 0: off
    randaugment_std: float = 0.5
    randaugment_layers: int = 2
    color_jitter: float = 0.0
    mixup: float = 0.8  # alpha of its beta distribution; 0: off
    cutmix: float = 1.0  # alpha; 0: off
    mixup_prob: float = 1.0  # that a step is mixed at all
    cutmix_prob: float = 0.5  # that a mixed step is cutmix, where both are on
    erasing: float = 0.25
    label_smoothing: float = 0.1
    # How the host gets an image's pixels: as Pillow and timm do within a grey level, or with one
    # look into the image and fewer of its bytes (data/resample.py).
    pixels: Literal["exact", "fast"] = field(default="exact", metadata=_LATER)

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are ever mixed."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __post_init__(self) -> None:
        for name in ("hflip", "mixup_prob", "cutmix_prob", "erasing"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("crop_scale_min", "crop_ratio_min"):
            _require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0, at most 1")
        for name in ("mixup", "cutmix", "randaugment_std", "color_jitter"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(0 <= self.randaugment <= 10, "randaugment", self.randaugment, "0 to 10")
        _require(
            self.randaugment_layers >= 0,
            "randaugment_layers",
            self.randaugment_layers,
            "at least 0",
        )
        _require(
            0 <= self.label_smoothing < 1,
            "label_smoothing",
            self.label_smoothing,
            "at least 0 and below 1",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a run's result but its seed and its data."""

    model: ModelConfig = FEMTO
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    global_batch: int = 4096  # images an optimizer step, over all devices and micro-batches
    image_size: int = 224  # px, training and evaluation
    eval_crop: float = 1.0  # share of the resized image that the centre crop keeps
    minival_fraction: float = 0.02  # of the training images, held out to choose on
    train_images: int | None = None  # use only so many of the training images; None: all
    eval_every_epochs: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"  # of matrix products; weights stay fp32

    def __post_init__(self) -> None:
        _require(self.global_batch >= 1, "global_batch", self.global_batch, "at least 1")
        mixes = self.augment.mixup > 0 or self.augment.cutmix > 0
        if mixes and self.augment.mixup_prob > 0 and self.global_batch % 2:
            raise ValueError(
                f"global_batch={self.global_batch} is odd, and mixup and cutmix mix pairs; "
                f"try {self.global_batch - 1} or {self.global_batch + 1}"
            )
        _require(16 <= self.image_size <= 2048, "image_size", self.image_size, "16 to 2048 px")
        _require(0 < self.eval_crop <= 1, "eval_crop", self.eval_crop, "above 0, at most 1")
        _require(
            0 < self.minival_fraction < 0.5,
            "minival_fraction",
            self.minival_fraction,
            "above 0 and below 0.5",
        )
        if self.train_images is not None:
            _require(
                self.train_images >= self.global_batch,
                "train_images",
                self.train_images,
                f"at least global_batch={self.global_batch}",
            )
        _require(
            self.eval_every_epochs >= 1, "eval_every_epochs", self.eval_every_epochs, "at least 1"
        )


BASELINE = Recipe()
RELEASED_CODE = replace(
    BASELINE, schedule=replace(BASELINE.schedule, cooldown_epochs=10, lr_steps="epoch")
)
# ImageNet's, of pixel values 0 to 1 in the order red, green, blue; what timm and the authors take
# off and divide by. Every run and every evaluation does.
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def with_global_batch(recipe: Recipe, global_batch: int) -> Recipe:
    """`recipe` at another global batch, its learning rates scaled linearly (paper section 4.2).

    The paper's rule is lr = global_batch / 1024 * 1e-3, which is 4e-3 at 4096.
    """
    scale = global_batch / recipe.global_batch
    return replace(
        recipe,
        global_batch=global_batch,
        optim=replace(recipe.optim, peak_lr=recipe.optim.peak_lr * scale),
        schedule=replace(
            recipe.schedule,
            warmup_lr=recipe.schedule.warmup_lr * scale,
            final_lr=recipe.schedule.final_lr * scale,
        ),
    )


# The paper's 4096 of 1.28 million images are 312 steps an epoch.
LEAST_STEPS_PER_EPOCH = 100


def scaled_to(recipe: Recipe, num_train: int) -> Recipe:
    """`recipe` for a data set of `num_train` training images: its global batch halved, and its
    learning rates with it, until an epoch has at least 100 steps."""
    batch = recipe.global_batch
    while batch > 1 and num_train // batch < LEAST_STEPS_PER_EPOCH:
        batch //= 2
    return with_global_batch(recipe, batch)


def steps_per_epoch(recipe: Recipe, num_train: int) -> int:
    """Optimizer steps an epoch; the remainder that fills no batch is dropped, as timm does."""
    num_images = min(num_train, recipe.train_images or num_train)
    if num_images < recipe.global_batch:
        raise ValueError(
            f"global_batch={recipe.global_batch} is more than the {num_images} training images; "
            f"try {2 ** int(math.log2(max(num_images, 1)))}"
        )
    return num_images // recipe.global_batch


# -- fields by name: one flat name space over the recipe and its parts ---------------------------

_PARTS = ("model", "optim", "schedule", "augment")


def flat_fields(recipe: Recipe) -> dict[str, Any]:
    """Every field by its own name, parts opened: {"peak_lr": 0.004, "depths": (3, 3, 9, 3)}..."""
    flat: dict[str, Any] = {}
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        if is_dataclass(value):
            flat |= {part.name: getattr(value, part.name) for part in fields(value)}
        else:
            flat[item.name] = value
    return flat


def field_types() -> dict[str, Any]:
    """The type of every flat field; names are unique over the parts (a test holds that)."""
    found: dict[str, Any] = {}
    for owner in (Recipe, ModelConfig, Optim, Schedule, Augment):
        hints = _hints(owner)
        found |= {name: hint for name, hint in hints.items() if name not in _PARTS}
    return found


_hints = functools.cache(typing.get_type_hints)  # a study of thousands reads its recipes often


def tuned(recipe: Recipe, **values: Any) -> Recipe:
    """`recipe` with fields replaced by their flat names: tuned(BASELINE, peak_lr=8e-3, epochs=30).

    A misspelled name, a wrong type or a value out of range is a ValueError.
    """
    known = field_types()
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; fields are {', '.join(known)}"
            raise ValueError(f"a recipe has no field {name!r}{hint}")
        owner = next(
            (part for part in _PARTS if name in {f.name for f in fields(getattr(recipe, part))}), ""
        )
        changes.setdefault(owner, {})[name] = _typed(name, value, known[name])
    own = changes.pop("", {})
    parts = {part: replace(getattr(recipe, part), **new) for part, new in changes.items()}
    return replace(recipe, **own, **parts)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says; a ValueError names the field where it cannot be."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _typed(name, value, next(a for a in args if a is not type(None)))
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_typed(name, v, args[0]) for v in value)
    elif hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and math.isfinite(value):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = "finite number" if hint is float else getattr(hint, "__name__", str(hint))
    raise ValueError(f"{name}={value!r} must be a {wanted}")


def parse_field(name: str, text: str) -> Any:
    """A field's value from the text of a command-line option: "8e-3", "3,3,15,3", "none"."""
    hint = field_types()[name]
    args = typing.get_args(hint)
    if type(None) in args:
        if text.lower() == "none":
            return None
        hint = next(a for a in args if a is not type(None))
    try:
        if typing.get_origin(hint) is tuple:
            return tuple(int(part) for part in text.split(","))
        return hint(text) if hint in (int, float) else text
    except ValueError:
        wanted = "whole numbers joined by commas" if typing.get_origin(hint) is tuple else hint
        raise ValueError(f"{name}={text!r} must be {getattr(wanted, '__name__', wanted)}") from None


# -- JSON: stored whole, read back typed ----------------------------------------------------------


def canonical_json(*values: Any) -> str:
    """One line of JSON that depends on the values alone: the same text on every machine."""
    plain = [_plain(v) for v in values]
    body = plain[0] if len(plain) == 1 else plain
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    """`value` opened, with whole floats as integers: equal values must give one text, and
    20 == 20.0. Later fields are left out at their defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: (f, getattr(value, f.name)) for f in fields(value)}
        return {
            name: _plain(part)
            for name, (f, part) in parts.items()
            if not f.metadata.get("later") or part != f.default
        }
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def recipe_from_json(text: str) -> Recipe:
    """The recipe that `canonical_json` or an indented copy of it holds.

    An unknown, missing or mistyped field is a ValueError that names it.
    """
    return _build(Recipe, json.loads(text), "recipe")


def _build(owner: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a JSON object, not {type(data).__name__}")
    hints = _hints(owner)
    needed = {f.name for f in fields(owner) if not f.metadata.get("later")}
    unknown, missing = sorted(data.keys() - hints.keys()), sorted(needed - data.keys())
    if unknown or missing:
        raise ValueError(
            f"{where} does not fit this version of mambaout: "
            f"unknown fields {unknown or 'none'}, missing fields {missing or 'none'}"
        )
    return owner(
        **{
            name: _build(hint, data[name], name)
            if name in _PARTS
            else _typed(name, data[name], hint)
            for name, hint in hints.items()
            if name in data
        }
    )


def content_key(*values: Any) -> str:
    """Twelve hex digits of the values' content: equal values, equal key, on every machine."""
    return sha256(canonical_json(*values).encode()).hexdigest()[:12]
