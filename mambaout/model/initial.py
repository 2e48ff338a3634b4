"""The weights that a training starts from: their content as a digest, their network, their copy.

    initial = read_initial(Path("tiny.pth"))
    initial.digest      twelve hex digits of the tensors' names and values
    initial.model       the network that the file holds
    load_initial(model, path, digest)     at the first step of a run

The digest does not depend on the file's name, place or format: `mambaout export` of a checkpoint
has the digest of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mambaout.durable import replacing
from mambaout.errors import WrongRequest
from mambaout.model.file_shape import shape_in, without_shape
from mambaout.model.network import MambaOut, build
from mambaout.model.torch_file import printable
from mambaout.model.weights import (
    BackboneLoad,
    Weights,
    backbone_load,
    load_backbone,
    read_weights,
)
from mambaout.recipe import canonical_json
from mambaout.variants import ModelConfig

SOURCE = "source"  # metadata of a copy: the path of the file that it was made from


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a training starts from."""

    weights: Weights
    model: ModelConfig  # the network that they are of

    @cached_property
    def digest(self) -> str:
        return digest_of(self.weights)

    def plan(self, model: ModelConfig, num_classes: int) -> BackboneLoad:
        """What a network of this shape and number of classes would load.

        Raises WrongRequest if the weights are of another network.
        """
        with torch.device("meta"):
            return backbone_load(build(model, num_classes), self.weights)

    def about(self, load: BackboneLoad) -> str:
        """One line for people: which weights these are, what is loaded, what is not."""
        kind = "EMA weights " if self.weights.is_ema else "weights "
        return f"starting from {kind}{self.digest}: {load.text}"

    def keep(self, path: Path) -> None:
        """Write a copy to `path`, unless it is there. The copy has the same digest."""
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {
            "format": "pt",
            "model": canonical_json(self.model),
            SOURCE: str(self.weights.path.absolute()),
        }
        tensors = {name: value.contiguous() for name, value in self.weights.tensors.items()}
        with replacing(path) as aside:
            save_file(tensors, aside, metadata)


def read_initial(path: Path) -> InitialWeights:
    """The weights in a file of ours, of timm's or of the authors'.

    Raises WrongRequest if the file holds no weights of a MambaOut, or none to start from.
    """
    weights = read_weights(path)
    seen = shape_in(weights.tensors)
    said = None if weights.recipe is None else weights.recipe.model
    if seen is None and said is None:
        raise without_shape(path, weights.tensors)
    if said is not None and seen is not None:
        # timm's train.py can change a published shape and keep its name.
        said = said if (said.depths, said.dims) == (seen.depths, seen.dims) else None
    found = said or seen
    assert found is not None
    return InitialWeights(weights, found)


def digest_of(weights: Weights) -> str:
    """Twelve hex digits from the names, shapes and values, as fp32 in which training starts.

    Raises WrongRequest for values that are not finite.
    """
    digest = sha256()
    for name, tensor in sorted(weights.tensors.items()):
        if tensor.is_meta or tensor.layout != torch.strided:
            raise WrongRequest(f"{weights.path}: {printable(name)} is not dense numbers")
        values = tensor.detach().float().contiguous()
        if not torch.isfinite(values).all():
            raise WrongRequest(
                f"{weights.path}: {printable(name)} holds numbers that are not finite; a training "
                "cannot start from them"
            )
        digest.update(f"{name} {tuple(values.shape)} ".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:12]


def load_initial(model: MambaOut, path: Path | None, digest: str) -> BackboneLoad:
    """Load the weights at `path` into `model`, in place.

    Raises WrongRequest if there is no file, or if its content has another digest.
    """
    if path is None:
        raise WrongRequest(
            f"the recipe starts from weights {digest}; give their file with --init FILE"
        )
    try:
        initial = read_initial(path)
    except FileNotFoundError:
        raise WrongRequest(
            f"{path} is not there, and the run starts from weights {digest}; give the same command "
            "again with --init FILE"
        ) from None
    if initial.digest != digest:
        raise WrongRequest(
            f"{path} holds weights {initial.digest}, and the run starts from {digest}; give the "
            "file that it began with, or train anew from this one"
        )
    return load_backbone(model, initial.weights)


def copies_of(source: Path, folder: Path) -> dict[str, Path]:
    """The copies in `folder` that were made from the file `source`, by digest."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
        if metadata.get(SOURCE) == str(source.absolute()):
            found[path.stem] = path
    return found
