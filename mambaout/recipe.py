"""The recipe of a training run: one frozen value with the paper's defaults, and its content key.

Pure values: no torch, no I/O. BASELINE is MambaOut's ImageNet recipe (arXiv 2405.07992, Table 5
and section 4.2). The paper and the authors' released code differ in three points. A recipe can
express both:

| | paper, = BASELINE | released code (timm 0.6.11) | how |
|---|---|---|---|
| length | 300 epochs | 300 + 10 of cool-down at the final learning rate | cooldown_epochs=10 |
| schedule | not stated, here a step | learning rate changes once an epoch | lr_steps="epoch" |
| colour jitter | named in section 4.2 | 0.4, inert beside RandAugment | color_jitter=0.4 or 0 |

RELEASED_CODE is the recipe of the released code. Colour jitter is 0 in both recipes, because the
published weights were trained without it. FINE_TUNING is BASELINE for a training that starts from
trained weights.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from hashlib import sha256
from typing import Any, ClassVar, Literal

from mambaout.errors import WrongRequest
from mambaout.fields import (
    MOST_COUNT,
    Bound,
    Knob,
    Rule,
    WrongValues,
    check,
    choices_of,
    faults,
    flat_fields,
    hints,
    knob,
    knobs,
    neighbours,
    parsed,
    typed,
)
from mambaout.recipe_parts import AUTHORS_RUN, PAPER, SHARE, Augment, Optim, Schedule, mup_mixer
from mambaout.stored_format import FIRST_FIELDS, GONE, meant_where_missing, require_task
from mambaout.variants import AUTHORS_CODE, FEMTO, ModelConfig


def _pairs_to_mix(global_batch: int, mixup: float, cutmix: float, mixup_prob: float) -> str | None:
    if global_batch % 2 and mixup_prob > 0 and (mixup > 0 or cutmix > 0):
        return (
            f"global_batch={global_batch} is odd, and mixup and cutmix mix pairs; "
            f"try {neighbours(global_batch)}, or mixup=0 and cutmix=0"
        )
    return None


def _images_for_a_step(train_images: int | None, global_batch: int) -> str | None:
    if train_images is not None and train_images < global_batch:
        return (
            f"train_images={train_images} fills no batch of global_batch={global_batch}; "
            f"give more images, or a global_batch like {power_of_two_in(train_images)}"
        )
    return None


def _images_to_draw(subset: str, train_images: int | None) -> str | None:
    if subset == "seed" and train_images is None:
        return (
            "subset=seed draws train_images by the seed, and train_images is none; give a number "
            "like train_images=6000, or subset=shared"
        )
    return None


def _digest_of_weights(init: str | None) -> str | None:
    if init is None or re.fullmatch(r"[0-9a-f]{12}", init):
        return None
    return f"init={init!r} is no digest of weights; give the weights' file, with --init FILE"


def power_of_two_in(number: int) -> int:
    """The largest power of two that is not above `number`; `number` must be at least 1."""
    return 1 << (number.bit_length() - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a run's result, except the seed and the data."""

    model: ModelConfig = FEMTO
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    global_batch: int = knob(
        4096,
        "images an optimizer step, over all devices and micro-batches; even where images are mixed",
        unit="images",
        source=PAPER,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    image_size: int = knob(
        224,
        "side of the square that images are trained and evaluated at",
        unit="px",
        source=PAPER,
        bound=Bound(least=16, most=2048),
    )
    eval_crop: float = knob(
        1.0,
        "share of the resized image's side that the centre crop of evaluation keeps",
        unit="share",
        source=AUTHORS_CODE,
        bound=SHARE,
    )
    minival_fraction: float = knob(
        0.02,
        "share of the training images that is held out to choose on (minival)",
        unit="share",
        bound=Bound(above=0, below=0.5),
    )
    train_images: int | None = knob(
        None,
        "train on so many of the training images; at least a global batch; none: on all",
        unit="images",
        source="paper, which trains on all",
        bound=Bound(least=1, most=MOST_COUNT),
    )
    subset: Literal["shared", "seed"] = knob(
        "shared",
        "which train_images of the training images; shared: the same for every seed; seed: each "
        "seed draws its own, so that intervals over seeds cover the draw of the images",
        unit=None,
    )
    eval_every_epochs: int = knob(
        1,
        "epochs between evaluations on minival",
        unit="epochs",
        source=AUTHORS_RUN,
        bound=Bound(least=1, most=MOST_COUNT),
    )
    precision: Literal["fp32", "tf32", "bf16"] = knob(
        "fp32",
        "number format of matrix products; the weights stay fp32; tf32: on NVIDIA GPUs only",
        unit=None,
    )

    init: str | None = knob(
        None,
        "digest of the weights that the training starts from; none: random weights",
        unit=None,
        source="paper, which starts from random weights",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        _pairs_to_mix,
        _images_for_a_step,
        _images_to_draw,
        _digest_of_weights,
        mup_mixer,
    )

    def __post_init__(self) -> None:
        check(self)


BASELINE = Recipe()
RELEASED_CODE = replace(
    BASELINE, schedule=replace(BASELINE.schedule, cooldown_epochs=10, lr_steps="epoch")
)
# ImageNet's mean and standard deviation of pixel values 0 to 1, in the order red, green, blue. timm
# and the authors normalise with them, and so do every run and every evaluation here.
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def following(flat: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, float]:
    """The fields that change as well when the fields `given` replace those of `flat`.

    A field that is in `given` itself is not in the result. The learning rates follow the global
    batch linearly, unless peak_lr is given (paper section 4.2: lr = global_batch / 1024 * 1e-3,
    which is 4e-3 at 4096). The warm-up stays the same share of the epochs. With a late decay it
    keeps its length, so that trainings of several lengths have the same first part.
    """
    moved: dict[str, float] = {}
    if "global_batch" in given and "peak_lr" not in given:
        scale = given["global_batch"] / flat["global_batch"]
        moved |= {name: flat[name] * scale for name in ("peak_lr", "warmup_lr", "final_lr")}
    if "epochs" in given and (dict(flat) | dict(given))["lr_decay_share"] is None:
        moved["warmup_epochs"] = flat["warmup_epochs"] * given["epochs"] / flat["epochs"]
    return {
        name: value for name, value in moved.items() if name not in given and value != flat[name]
    }


def with_global_batch(recipe: Recipe, global_batch: int) -> Recipe:
    """`recipe` with another global batch; the learning rates are scaled linearly with it."""
    given = {"global_batch": global_batch}
    return tuned(recipe, **given, **following(flat_fields(recipe), given))


def steps_per_epoch(recipe: Recipe, num_train: int) -> int:
    """Optimizer steps in an epoch. Images that do not fill a last batch are dropped, as in timm.

    Raises ValueError if there are fewer training images than one global batch.
    """
    num_images = min(num_train, recipe.train_images or num_train)
    if num_images < recipe.global_batch:
        raise WrongRequest(
            f"global_batch={recipe.global_batch} is more than the {num_images} training images; "
            f"try {power_of_two_in(max(num_images, 1))}"
        )
    return num_images // recipe.global_batch


# -- fields by name: one flat name space over the recipe and its parts ---------------------------

_PARTS: dict[str, type] = {
    "model": ModelConfig,
    "optim": Optim,
    "schedule": Schedule,
    "augment": Augment,
}
OWNERS = (*_PARTS.values(), Recipe)


def field_types() -> dict[str, Any]:
    """The type of every flat field. No two parts have a field of the same name (a test checks)."""
    return {name: hints(owner)[name] for owner in OWNERS for name in knobs(owner)}


def field_knobs() -> dict[str, Knob]:
    """The facts about every flat field: its meaning, unit, source and bound."""
    return {name: said for owner in OWNERS for name, said in knobs(owner).items()}


def field_choices(name: str) -> tuple[Any, ...]:
    """The only values that a field may have; empty if any value in its bound is allowed."""
    return choices_of(field_knobs()[name], field_types()[name])


def tuned(recipe: Recipe, **values: Any) -> Recipe:
    """`recipe` with fields replaced by their flat names: tuned(BASELINE, peak_lr=8e-3, epochs=30).

    The values are checked together. A misspelled name is a ValueError. Values of a wrong type, out
    of bounds, or in conflict with each other raise one WrongValues with a line for each fault.
    """
    known = field_types()
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; fields are {', '.join(known)}"
            raise WrongRequest(f"a recipe has no field {name!r}{hint}")
    return judged(flat_fields(recipe), values)


def judged(
    flat: Mapping[str, Any], values: Mapping[str, Any], wrong: Mapping[str, str] | None = None
) -> Recipe:
    """The recipe of the fields `flat`, some replaced by `values`, whose types are checked here.

    `wrong` holds the faults of further fields, by name, whose text could not be read. Raises
    WrongValues, with a line for each fault.
    """
    known, wrong = field_types(), dict(wrong or {})
    fields_now = dict(flat)
    for name, value in values.items():
        try:
            fields_now[name] = typed(name, value, known[name])
        except WrongRequest as error:
            wrong[name] = str(error)
    right = {name: value for name, value in fields_now.items() if name not in wrong}
    found = [*wrong.values(), *(fault for owner in OWNERS for fault in faults(owner, right))]
    if found:
        raise WrongValues(*found)
    parts = {part: _owned(owner, right) for part, owner in _PARTS.items()}
    return Recipe(**parts, **{name: right[name] for name in knobs(Recipe)})


def _owned(owner: type, flat: dict[str, Any]) -> Any:
    return owner(**{name: flat[name] for name in knobs(owner)})


def parse_field(name: str, text: str) -> Any:
    """A field's value from the text of a command-line option: "8e-3", "3,3,15,3", "none"."""
    return parsed(name, text, field_types()[name])


# Fine-tuning of trained weights on ImageNet, as ConvNeXt's TRAINING.md has it: 30 epochs, no mixup,
# no cutmix, a rate of 5e-5 at a batch of 512, which is 4e-4 at 4096 by the linear rule. Its drop
# path is 0.2 for a network of Base's size. The rules (rules.py) fit it to the data, like BASELINE.
FINE_TUNING = tuned(
    BASELINE,
    epochs=30,
    warmup_epochs=2,
    peak_lr=4e-4,
    warmup_lr=1e-7,
    final_lr=1e-6,
    mixup=0.0,
    cutmix=0.0,
    drop_path=0.1,
)


# -- JSON: stored whole, read back typed ----------------------------------------------------------


def canonical_json(*values: Any) -> str:
    """One line of JSON that depends only on the values: the same text on every machine."""
    plain = [_plain(v) for v in values]
    body = plain[0] if len(plain) == 1 else plain
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    """`value` as plain JSON values. Whole floats become integers, because 20 and 20.0 are equal and
    equal values must give the same text."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _plain_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass. Fields that stored_format.py leaves out are not among them, and
    neither is a part that has no fields left."""
    found: dict[str, Any] = {}
    for item in fields(value):
        part = getattr(value, item.name)
        if part == meant_where_missing(item):
            continue
        plain = _plain(part)
        if plain or not is_dataclass(part):
            found[item.name] = plain
    return found


def recipe_from_json(text: str, where: str = "recipe") -> Recipe:
    """The recipe in the text of `canonical_json`, also if the text was indented since.

    `where` says where the text comes from. Unknown, missing and mistyped fields raise a ValueError
    that names them and `where`.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongRequest(f"{where} is no JSON ({error}); give the recipe.json of a run") from None
    require_task(data, "classify", where)
    flat = _opened(Recipe, data, where)
    try:
        return judged(flat_fields(BASELINE) | _left_out(), flat)
    except WrongValues as error:
        raise WrongValues(*(f"{where}: {fault}" for fault in error.args)) from None


def _left_out() -> dict[str, Any]:
    """The value of every field that a stored recipe may leave out."""
    meant = {f.name: meant_where_missing(f) for owner in OWNERS for f in fields(owner)}
    return {name: value for name, value in meant.items() if value is not MISSING}


def _opened(owner: type, data: Any, where: str) -> dict[str, Any]:
    """The flat fields of a JSON object; the types of their values are not checked."""
    if not isinstance(data, dict):
        raise WrongRequest(f"{where} must be a JSON object, not {type(data).__name__}")
    known = {f.name for f in fields(owner)}
    unknown, missing = sorted(data.keys() - known), sorted((known & FIRST_FIELDS) - data.keys())
    if unknown or missing:
        gone = "".join(f" ({name} was {GONE[name]})" for name in unknown if name in GONE)
        raise WrongRequest(
            f"{where} does not fit this version of mambaout: "
            f"unknown fields {unknown or 'none'}{gone}, missing fields {missing or 'none'}; "
            "mend them, or use the version that wrote it"
        )
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if owner is Recipe and name in _PARTS:
            flat |= _opened(_PARTS[name], value, f"{where}: {name}")
        else:
            flat[name] = value
    return flat


def content_key(*values: Any) -> str:
    """Twelve hex digits from the values' content: equal values have the same key on any machine."""
    return sha256(canonical_json(*values).encode()).hexdigest()[:12]
