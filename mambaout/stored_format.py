"""What a stored recipe says, and what it means where it says nothing. Frozen: lines are only added.

A field of FIRST_FIELDS is written into every recipe. Every other field came later: it is left out
at the value that LEFT_OUT gives it (its default, where it has no line yet), and that value is meant
where it is missing. So a new field changes no key and no stored recipe, and a default may change:
what stored recipes mean does not change with it.

A new field needs nothing here. One whose default changes later needs a line in LEFT_OUT with the
default that it had: `python docs/recipe_page.py` asks for it.
"""

from __future__ import annotations

from dataclasses import MISSING, Field
from typing import Any

from mambaout.fields import KNOB

# The fields of the first recipes that were stored, and the parts that they lie in.
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
# Fields that came later, each with its default of that day.
LEFT_OUT: dict[str, Any] = {
    "lr_base_dim": None,
    "pixels": "exact",
}


def meant_where_missing(item: Field[Any]) -> Any:
    """What a stored value means that lacks the field `item`; MISSING where none may lack it."""
    if KNOB not in item.metadata or item.name in FIRST_FIELDS:
        return MISSING
    return LEFT_OUT.get(item.name, item.default)
