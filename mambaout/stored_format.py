"""Which fields a stored recipe holds, and what a missing field means. Lines here are only added.

Every stored recipe holds the fields of FIRST_FIELDS. All other fields were added later. Such a
field is not written if it has its first default: the value in LEFT_OUT, or its default if it has no
line there. If the field is missing, it has that value. So a new field changes no key and no stored
recipe. A default may change too: the meaning of stored recipes stays.

A new field needs no line here. If its default changes later, LEFT_OUT needs a line with the first
default: `python docs/recipe_page.py` asks for it.
"""

from __future__ import annotations

from dataclasses import MISSING, Field
from typing import Any

from mambaout.errors import WrongRequest
from mambaout.fields import KNOB

# The fields of the first stored recipes, and the parts of the recipe that hold them.
FIRST_FIELDS = frozenset(
    {
        *("model", "optim", "schedule", "augment"),
        *("depths", "dims", "expansion", "kernel_size", "conv_ratio", "mixer", "stem_stride"),
        *("hidden_multiple", "drop_path"),
        *("peak_lr", "weight_decay", "beta1", "beta2", "adam_eps", "clip_norm"),
        *("epochs", "warmup_epochs", "cooldown_epochs", "warmup_lr", "final_lr", "lr_steps"),
        *("crop_scale_min", "crop_ratio_min", "hflip", "interpolation", "randaugment"),
        *("randaugment_std", "randaugment_layers", "color_jitter", "mixup", "cutmix"),
        *("mixup_prob", "cutmix_prob", "erasing", "label_smoothing"),
        *("global_batch", "image_size", "eval_crop", "minival_fraction", "train_images"),
        *("eval_every_epochs", "precision"),
    }
)
# Fields that were added later, each with its first default.
LEFT_OUT: dict[str, Any] = {
    "pixels": "exact",
}
# Fields of older recipes that no recipe has any more, and what they were. A recipe that was stored
# with one of them is refused: it would train otherwise now.
GONE: dict[str, str] = {
    "lr_base_dim": "muP's learning rates alone; mup_base_dim is the whole rule",
}


def meant_where_missing(item: Field[Any]) -> Any:
    """The value of the field `item` if a stored recipe lacks it; MISSING if none may lack it."""
    if KNOB not in item.metadata or item.name in FIRST_FIELDS:
        return MISSING
    return LEFT_OUT.get(item.name, item.default)


# A field that only the recipes of one task have, in every version.
OF_TASK = {"classify": "augment", "detect": "smallest_anchor", "segment": "crop_size"}


def require_task(body: Any, task: str, where: str) -> None:
    """Raise WrongRequest if the JSON of a stored recipe is of another task than `task`."""
    names = body.keys() if isinstance(body, dict) else ()
    found = next((each for each, name in OF_TASK.items() if name in names), task)
    if found != task:
        raise WrongRequest(
            f"{where} is of a run with --task {found}, not {task}; give another folder or file, or "
            f"--task {found}"
        )
