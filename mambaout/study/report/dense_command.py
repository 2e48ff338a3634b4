"""The command that trains one trial of a detection or a segmentation again."""

from __future__ import annotations

import shlex
from pathlib import Path

from mambaout.options import field_text, option
from mambaout.recipe import flat_fields
from mambaout.study.kept_weights import kept_weights
from mambaout.study.study import Trial
from mambaout.variants import VARIANTS


def dense_command(trial: Trial, data: str, *, storage: Path, micro_batch: int | None = None) -> str:
    """The command, into a new folder.

    It names the nearest variant, the fields that differ from the published recipe, and the fields
    that would follow the data. `storage` has the copy of the weights that the trial starts from.
    """
    kind, flat = trial.kind, flat_fields(trial.recipe)
    starts = {
        name: flat_fields(kind.baseline) | flat_fields(shape) for name, shape in VARIANTS.items()
    }
    differing = {
        name: {n for n, value in flat.items() if n in kind.follow or value != start[n]}
        for name, start in starts.items()
    }
    name = min(differing, key=lambda each: len(differing[each]))
    words = ["mambaout", "train", name, "--task", kind.name, "--data", data]
    words += ["--out", f"again/{trial.name.replace(' ', '-')}", "--seed", str(trial.seed)]
    if micro_batch is not None:
        words += ["--micro-batch", str(micro_batch)]
    if (digest := flat.pop("init", None)) is not None:
        words += ["--init", str(kept_weights(storage, digest))]
    for field, value in flat.items():
        if field in differing[name]:
            words += [option(field), field_text(value)]
    return shlex.join(words)
