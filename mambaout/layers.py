"""The network's layers in forward order: the one list that costs and memory are sums over.

    for part in layers(variant("tiny")):
        print(part.name, part.times, *part.layers)  # stages.0.blocks 3 norm fc1 conv act fc2

The list describes model/network.py: a change there needs the same change here, and nowhere else.
The names are those of the modules. Pure values: no torch, no I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from mambaout.errors import WrongRequest
from mambaout.layer_kinds import (
    ActivationLayer,
    ConvLayer,
    GateLayer,
    Layer,
    LinearLayer,
    NormLayer,
    PatchConvLayer,
    Size,
)
from mambaout.mixer_layers import CONV_MIXER, MIXER_LAYERS
from mambaout.sequence_layers import ScanLayer
from mambaout.variants import ModelConfig

IMAGE_CHANNELS = 3
HEAD_EXPANSION = 4  # hidden size of the classifier head / channels of the last stage

ImageSize = int | Size  # the side of a square image, or height and width


def fused_kernel(mixer: str, config: ModelConfig) -> int | None:
    """The kernel size of the depthwise convolution that model/gated_block.py computes for blocks
    with that mixer; None if it cannot compute them."""
    return {CONV_MIXER: config.kernel_size, "identity": 1}.get(mixer)


def both_sides(image_size: ImageSize) -> Size:
    """Height and width of an image; raises WrongRequest if one of them is below 1."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < 1:
        raise WrongRequest(f"image_size={image_size}: give 1 or more")
    return size


def size_text(image_size: ImageSize) -> str:
    """224 -> "224 px", (800, 1280) -> "800x1280 px", height first."""
    return f"{image_size} px" if isinstance(image_size, int) else "{}x{} px".format(*image_size)


class NetworkPart(NamedTuple):
    """One module's layers; for a list of equal blocks, the layers of one block."""

    name: str  # of the module or of the list of blocks, like "stages.2.blocks"
    layers: dict[str, Layer]  # in forward order; the keys are names within the module or block
    num_blocks: int | None = None  # None: not a list of blocks
    stage: int | None = None  # the number, from 1 on, of the stage whose blocks these are

    @property
    def times(self) -> int:
        return 1 if self.num_blocks is None else self.num_blocks


def layers(
    config: ModelConfig, image_size: ImageSize = 224, num_classes: int = 1000
) -> list[NetworkPart]:
    """The network's layers for one image, part by part.

    `image_size` is one side or (height, width), in pixels.
    """
    size = both_sides(image_size)
    if num_classes < 1:
        raise WrongRequest(f"num_classes={num_classes}: give 1 or more")
    dims, depths = config.dims, config.depths
    stem, size = _stem(dims[0], size, config)
    parts = [NetworkPart("stem", stem)]
    for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        if stage > 0:
            downsample, size = _downsample(dims[stage - 1], dim, size, config)
            parts.append(NetworkPart(f"stages.{stage}.downsample", downsample))
        block = _block(dim, size, config, config.mixer_of(stage + 1))
        parts.append(NetworkPart(f"stages.{stage}.blocks", block, depth, stage + 1))
    parts.append(NetworkPart("head", _head(dims[-1], num_classes)))
    return parts


def has_scan(config: ModelConfig) -> bool:
    """Whether a mixer of the network has an SSM."""
    return any(
        isinstance(layer, ScanLayer) for part in layers(config) for layer in part.layers.values()
    )


def _reducing(
    channels: int, size: Size, filters: int, stride: int, config: ModelConfig
) -> ConvLayer:
    """A convolution of the stem or between two stages."""
    if config.downsampling == "patchify":
        return PatchConvLayer(channels, size, filters, kernel=stride, stride=stride)
    return ConvLayer(channels, size, filters, kernel=3, stride=stride)


def _stem(dim: int, size: Size, config: ModelConfig) -> tuple[dict[str, Layer], Size]:
    conv1 = _reducing(IMAGE_CHANNELS, size, dim // 2, config.stem_stride // 2, config)
    conv2 = _reducing(dim // 2, conv1.size_out, dim, 2, config)
    found: dict[str, Layer] = {
        "conv1": conv1,
        "norm1": NormLayer(dim // 2, conv1.size_out),
        "act": ActivationLayer(dim // 2, conv1.size_out, after_norm=True),
        "conv2": conv2,
        "norm2": NormLayer(dim, conv2.size_out),
    }
    return found, conv2.size_out


def _downsample(
    dim_in: int, dim: int, size: Size, config: ModelConfig
) -> tuple[dict[str, Layer], Size]:
    conv = _reducing(dim_in, size, dim, 2, config)
    return {"conv": conv, "norm": NormLayer(dim, conv.size_out)}, conv.size_out


def _block(dim: int, size: Size, config: ModelConfig, mixer_name: str) -> dict[str, Layer]:
    hidden, mixed = config.hidden(dim), config.conv_channels(dim)
    mixer = MIXER_LAYERS[mixer_name](mixed, size, config)
    is_fusible = fused_kernel(mixer_name, config) is not None
    return {
        "norm": NormLayer(dim, size),
        "fc1": LinearLayer(dim, size, 2 * hidden),
        **{f"conv.{name}" if name else "conv": layer for name, layer in mixer.items()},
        "act": GateLayer(hidden, size, mixed if is_fusible else None),
        "fc2": LinearLayer(hidden, size, dim, input_remade=is_fusible),
    }


def _head(dim: int, num_classes: int) -> dict[str, Layer]:
    """The head's layers. Their inputs are vectors, because the mean over the map comes first."""
    hidden = HEAD_EXPANSION * dim
    return {
        "norm": NormLayer(dim, None),
        "pre_logits.fc": LinearLayer(dim, None, hidden),
        "pre_logits.act": ActivationLayer(hidden, None),
        "pre_logits.norm": NormLayer(hidden, None),
        "fc": LinearLayer(hidden, None, num_classes),
    }
