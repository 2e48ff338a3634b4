"""Weights to and from files: timm's, the authors', our own checkpoints; written as timm reads them.

Read:  .safetensors, and .pth/.pt/.ckpt by torch.load(weights_only=True), so that a file can hold
       nothing that runs. A state dict may lie at the top or under "model" or "state_dict".
Write: .safetensors with timm's names, which timm.create_model(..., checkpoint_path=...) loads; its
       metadata holds the shape, so that the file alone tells what to build.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mambaout.model.network import MambaOut
from mambaout.recipe import BASELINE, Recipe, canonical_json, recipe_from_json

SAFETENSORS = ".safetensors"
CONTAINERS = ("model", "state_dict")  # where a checkpoint keeps its state dict: ours, timm's

# The authors' names and ours, which are timm's. Tried in order, the first that fits counts.
_FROM_AUTHORS = (
    (r"downsample_layers\.0\.(.+)", r"stem.\1"),
    (r"downsample_layers\.(\d+)\.(.+)", r"stages.\1.downsample.\2"),
    (r"stages\.(\d+)\.(\d+)\.(.+)", r"stages.\1.blocks.\2.\3"),
    (r"norm\.(.+)", r"head.norm.\1"),
    (r"head\.fc1\.(.+)", r"head.pre_logits.fc.\1"),
    (r"head\.norm\.(.+)", r"head.pre_logits.norm.\1"),
    (r"head\.fc2\.(.+)", r"head.fc.\1"),
)


def load_weights(model: MambaOut, path: Path | str) -> None:
    """Put the weights of the file at `path` into `model`, all of them or none.

    A file of another network is a ValueError that lists every missing, unexpected and misshapen
    tensor; a damaged file, or one that holds more than tensors and plain values, is one too.
    """
    path = Path(path)
    state = read_state(path)
    wanted = model.state_dict()
    wrong = [f"missing {name}" for name in wanted.keys() - state.keys()]
    wrong += [f"unexpected {name}" for name in state.keys() - wanted.keys()]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, the model's {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{path} does not fit the model (dims {model.config.dims}, depths "
            f"{model.config.depths}, {model.num_classes} classes): {'; '.join(sorted(wrong))}"
        )
    model.load_state_dict(state)


def save_weights(model: MambaOut, path: Path | str, recipe: Recipe | None = None) -> None:
    """Write `model` as safetensors, whole or not at all.

    The metadata says the network's shape and, where it is given, the recipe that trained it.
    """
    path = Path(path)
    if path.suffix != SAFETENSORS:
        raise ValueError(f"{path} must end in {SAFETENSORS}, by which timm tells the format")
    metadata = {
        "format": "pt",
        "model": canonical_json(model.config),
        "num_classes": str(model.num_classes),
    }
    if recipe is not None:
        metadata["recipe"] = canonical_json(recipe)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(state, aside, metadata)
    aside.replace(path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in the file at `path`, on the CPU, under our names."""
    if path.suffix == SAFETENSORS:
        try:
            state: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    else:
        state = _torch_load(path)
        for name in CONTAINERS:
            if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
                state = state[name]
                break
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path} holds no state dict: expected tensors by name, at the top or under "
            f"{' or '.join(map(repr, CONTAINERS))}"
        )
    return from_authors(state)


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the authors' names changed to ours; with our names already, as it is.

    A name of neither stays, so that whoever loads the state can say that it is unexpected.
    """
    # Both have `stages.` and `head.norm.`, with different meanings; only theirs has this.
    if not any(name.startswith("downsample_layers.") for name in state):
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = _our_name(name)
        if ours in renamed:
            raise ValueError(f"two tensors are called {ours}: the file mixes two naming schemes")
        renamed[ours] = value
    return renamed


def _our_name(name: str) -> str:
    for theirs, ours in _FROM_AUTHORS:
        if match := re.fullmatch(theirs, name):
            return match.expand(ours)
    return name


def recipe_of(path: Path | str) -> Recipe | None:
    """The recipe that a file of ours, checkpoint or safetensors, carries; None in others'.

    A file that says its shape alone gives BASELINE with that shape.
    """
    path = Path(path)
    saved = _metadata(path) if path.suffix == SAFETENSORS else _torch_load(path)
    if not isinstance(saved, Mapping):
        return None
    if isinstance(text := saved.get("recipe"), str):
        return recipe_from_json(text)
    if isinstance(text := saved.get("model"), str):
        body = json.loads(canonical_json(BASELINE)) | {"model": json.loads(text)}
        return recipe_from_json(json.dumps(body))
    return None


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:  # no such file, no permission: it says so itself
        raise
    except Exception as error:  # a damaged pickle can stumble over any of its instructions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values, which is not read "
            f"because it could run code: {reason}"
        ) from error
