"""The network's shape that a file of weights implies, told from its tensors alone.

timm's and the authors' files hold tensors and do not say the shape. The number of blocks, the
channels and the kernel are in the tensors' names and shapes. The stride of the stem and the drop
path rate are not: they are those of the published variant, or the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mambaout.errors import WrongRequest
from mambaout.mixer_layers import CONV_MIXER
from mambaout.model.torch_file import printable
from mambaout.variants import ALIGNMENT, NUM_STAGES, VARIANTS, ModelConfig

_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.fc2\.weight")


def shape_in(tensors: Mapping[str, Tensor]) -> ModelConfig | None:
    """The shape of the network with these tensors, under timm's names; None if it is no MambaOut.

    A published variant is returned with its drop path rate.
    """
    blocks: list[list[int]] = [[] for _ in range(NUM_STAGES)]
    for name in tensors:
        if (match := _BLOCK.fullmatch(name)) and int(match[1]) < NUM_STAGES:
            blocks[int(match[1])].append(int(match[2]))
    if any(sorted(found) != list(range(len(found))) or not found for found in blocks):
        return None
    fc2 = [tensors[f"stages.{stage}.blocks.0.fc2.weight"] for stage in range(NUM_STAGES)]
    conv = [tensors.get(f"stages.{stage}.blocks.0.conv.weight") for stage in range(NUM_STAGES)]
    if any(weight.ndim != 2 for weight in fc2):
        return None
    depths = tuple(map(len, blocks))
    dims, hidden = (tuple(int(weight.shape[side]) for weight in fc2) for side in (0, 1))
    mixed: list[tuple[int, int]] = []
    for weight in conv:
        if weight is None or weight.ndim != 4:
            return None
        mixed.append((int(weight.shape[0]), int(weight.shape[-1])))
    widths, kernels = tuple(width for width, _ in mixed), {kernel for _, kernel in mixed}
    seen = (depths, dims, hidden, widths, kernels)
    for known in (*VARIANTS.values(), *_likely(depths, dims, hidden, widths, kernels)):
        if _visible(known) == seen:
            return known
    return None


def without_shape(path: Path, tensors: Mapping[str, Tensor]) -> WrongRequest:
    """The error for a file that does not say its network's shape: what it holds, what to do."""
    if shape_in(tensors) is not None:
        return WrongRequest(f"{path} does not say its shape; add --variant")
    return WrongRequest(
        f"{path} holds no MambaOut: its {len(tensors)} tensors are another network's, like "
        f"{printable(next(iter(tensors)))}"
    )


def shape_text(config: ModelConfig) -> str:
    """The shape in words: a published variant's name, or depths and widths; another mixer."""
    mixer = "" if config.mixer == CONV_MIXER else f", mixer {config.mixer}"
    for name, known in VARIANTS.items():
        if _visible(known) == _visible(config):
            return f"{name} (depths {known.depths}, dims {known.dims}{mixer})"
    return f"depths {config.depths}, dims {config.dims}{mixer}"


def _visible(config: ModelConfig) -> tuple[Any, ...]:
    """Everything that a file's tensors show of the shape."""
    hidden = tuple(config.hidden(dim) for dim in config.dims)
    widths = tuple(config.conv_channels(dim) for dim in config.dims)
    return (config.depths, config.dims, hidden, widths, {config.kernel_size})


def _likely(
    depths: tuple[int, ...],
    dims: tuple[int, ...],
    hidden: tuple[int, ...],
    widths: tuple[int, ...],
    kernels: set[int],
) -> list[ModelConfig]:
    """Shapes that are no published ones and may have these channels."""
    found = []
    ratio = widths[0] / dims[0]
    for expansion in (ModelConfig().expansion, hidden[0] / dims[0], hidden[-1] / dims[-1]):
        for multiple in (1, ALIGNMENT):
            try:
                config = ModelConfig(depths=depths, dims=dims, kernel_size=min(kernels))
                found.append(
                    replace(config, expansion=expansion, conv_ratio=ratio, hidden_multiple=multiple)
                )
            except WrongRequest:  # no such network can be built
                continue
    return found
