"""MambaOut, the network: stem, four stages of Gated CNN blocks, head (paper section 4, Table 4).

    model = build("tiny", num_classes=1000)
    logits = model(images)  # (B, 3, H, W) normalised floats -> (B, num_classes)

Parameters have timm's names, so timm's state dict loads unchanged (weights.py). Between operations
a map is (B, H, W, C). Norms and linear layers, which are at least five sixths of the work, need
channels last, and a convolution takes the permuted view without a copy.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mambaout.errors import WrongRequest
from mambaout.layers import HEAD_EXPANSION, IMAGE_CHANNELS
from mambaout.model.c_calls import is_as_built
from mambaout.model.gated_block import GatedWeights, can_take, gated_block
from mambaout.model.mixers import MIXERS, DepthwiseConv, MapConv, PatchConv, nhwc
from mambaout.model.norm import LayerNorm
from mambaout.recompute import ALL_STAGES
from mambaout.variants import ModelConfig, variant

NORM_EPS = 1e-6  # of every LayerNorm, in the authors' code and in timm
INIT_STD = 0.02


def _reducing(channels: int, filters: int, stride: int, config: ModelConfig) -> MapConv:
    """A convolution of the stem or between two stages."""
    if config.downsampling == "patchify":
        return PatchConv(channels, filters, stride)
    return MapConv(channels, filters, 3, stride=stride, padding=1)


class Stem(nn.Module):
    """Image to the first map; its sides are 1/4 of the image's, or 1/2 if stem_stride is 2."""

    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.conv1 = _reducing(IMAGE_CHANNELS, dim // 2, config.stem_stride // 2, config)
        self.norm1 = LayerNorm(dim // 2, eps=NORM_EPS)
        self.act = nn.GELU()
        self.conv2 = _reducing(dim // 2, dim, 2, config)
        self.norm2 = LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # Channels-last from the first convolution on: otherwise norm1 copies the largest map.
        x = x.contiguous(memory_format=torch.channels_last)  # (B, 3, H, W)
        x = self.act(self.norm1(self.conv1(nhwc(x))))  # (B, H/2, W/2, dim/2)
        return self.norm2(self.conv2(x))  # (B, H/4, W/4, dim)


class Downsample(nn.Module):
    """Half the height and width, `dim_out` channels; the norm comes after the convolution."""

    def __init__(self, dim: int, dim_out: int, config: ModelConfig) -> None:
        super().__init__()
        self.conv = _reducing(dim, dim_out, 2, config)
        self.norm = LayerNorm(dim_out, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # (B, H, W, dim) -> (B, H/2, W/2, dim_out)


class GatedCNNBlock(nn.Module):
    """x + fc2(GELU(gate) * [rest, mixer(mixed)]); fc1(norm(x)) is split into gate, rest and mixed.

    On a CPU gated_block.py computes the block in one operation if it can.
    """

    def __init__(self, dim: int, config: ModelConfig, mixer: str) -> None:
        super().__init__()
        hidden, mixed = config.hidden(dim), config.conv_channels(dim)
        self.widths = (hidden, hidden - mixed, mixed)
        self.norm = LayerNorm(dim, eps=NORM_EPS)
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.act = nn.GELU()
        self.conv = MIXERS[mixer](mixed, config)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """x (B, H, W, dim) to the same shape; `scale` (B,) is each image's drop path factor."""
        weights = self.weights()
        if weights is not None and can_take(x, weights, scale):
            return gated_block(x, weights, scale, self.norm.eps)
        gate, rest, mixed = self.fc1(self.norm(x)).split(self.widths, dim=-1)  # (B, H, W, width)
        value = torch.cat([rest, self.conv(mixed)], dim=-1)  # (B, H, W, hidden)
        branch = self.fc2(self.act(gate) * value)  # (B, H, W, dim)
        if scale is not None:
            branch = branch * scale.to(branch.dtype).view(-1, 1, 1, 1)
        return x + branch

    def weights(self) -> GatedWeights | None:
        """The parameters, for code that computes the block in one; None if the modules must do it,
        because one of them was replaced or has hooks."""
        norm, fc1, act, fc2 = self.norm, self.fc1, self.act, self.fc2
        kinds = (LayerNorm, nn.Linear, nn.GELU, nn.Linear)
        if not all(is_as_built(*pair) for pair in zip((norm, fc1, act, fc2), kinds, strict=True)):
            return None
        if act.approximate != "none" or len(norm.normalized_shape) != 1:
            return None
        of_norm, of_conv = (norm.weight, norm.bias), self._of_mixer()
        if of_conv is None:
            return None
        found: tuple[Any, ...] = (*of_norm, fc1.weight, fc1.bias, *of_conv, fc2.weight, fc2.bias)
        return None if any(one is None for one in found) else GatedWeights(*found)

    def _of_mixer(self) -> tuple[Any, Any] | None:
        """The mixer as the weights and biases of a depthwise convolution; None if it is none."""
        conv = self.conv
        if is_as_built(conv, DepthwiseConv) and conv.keeps_size:
            return conv.weight, conv.bias
        if is_as_built(conv, nn.Identity):
            of_one = self.fc1.weight.new_ones(self.widths[-1], 1, 1, 1)
            return of_one, of_one.new_zeros(len(of_one))
        return None


class Stage(nn.Module):
    """A downsampling (not in the first stage), then blocks that all have the same width."""

    def __init__(self, dim_in: int | None, number: int, config: ModelConfig) -> None:
        super().__init__()
        dim, depth, mixer = (
            config.dims[number - 1],
            config.depths[number - 1],
            config.mixer_of(number),
        )
        self.downsample = nn.Identity() if dim_in is None else Downsample(dim_in, dim, config)
        self.blocks = nn.ModuleList(GatedCNNBlock(dim, config, mixer) for _ in range(depth))
        self.recompute = False  # a block keeps only its input, and backward computes it again

    def forward(self, x: Tensor, scales: Tensor | None) -> Tensor:
        """`scales` (B, blocks of this stage) are the drop path factors; None: no drop path."""
        x = self.downsample(x)
        recompute = self.recompute and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            scale = None if scales is None else scales[:, i]
            if recompute:  # a block draws nothing, so there is no random state to keep
                again: Any = checkpoint(
                    block, x, scale, use_reentrant=False, preserve_rng_state=False
                )
                x = again
            else:
                x = block(x, scale)
        return x


class Head(nn.Module):
    """Mean over the map, then norm, linear, GELU, norm, linear, in the paper's order."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        hidden = HEAD_EXPANSION * dim
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pre_logits = nn.Sequential()
        self.pre_logits.add_module("fc", nn.Linear(dim, hidden))
        self.pre_logits.add_module("act", nn.GELU())
        self.pre_logits.add_module("norm", nn.LayerNorm(hidden, eps=NORM_EPS))
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.mean((1, 2)))  # (B, H, W, dim) -> (B, dim)
        return self.fc(self.pre_logits(x))  # (B, 4 dim) -> (B, num_classes)


class Trunk(nn.Module):
    """The stem and the four stages: all of the network but its head.

    A subclass adds what stands on the maps, and then calls `self.apply(initialise)`. Torch's global
    generator draws the weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # torch.compile makes a graph for each value of a number that is read, also of a rate.
        self.drops_paths = config.drop_path > 0
        self.stem = Stem(config.dims[0], config)
        self.stages = nn.ModuleList(
            Stage(dim_in, number, config)
            for number, dim_in in zip(ALL_STAGES, (None, *config.dims), strict=False)
        )

    def set_recompute(self, stages: Collection[int]) -> None:
        """From now on, compute the blocks of `stages` (1 to 4) again in the backward pass, and
        those of the other stages not. It saves memory, costs time and changes no result.
        """
        if not set(stages) <= set(ALL_STAGES):
            raise ValueError(f"stages {sorted(stages)}: a network has the stages {ALL_STAGES}")
        for number, stage in zip(ALL_STAGES, self.stages, strict=True):
            assert isinstance(stage, Stage)
            stage.recompute = number in stages

    def forward_pyramid(self, x: Tensor, drop_scales: Tensor | None = None) -> list[Tensor]:
        """The four stages' maps (B, H, W, dim), at 1/4, 1/8, 1/16 and 1/32 of the image.

        `drop_scales` (B, num_blocks) are the drop path factors in training. They multiply an
        image's branch in each block: 0 if the image skips the block, else 1 / (1 - the block's
        rate). A caller gives them so that they do not depend on the other images of the batch.
        None: they are drawn here.
        """
        x, maps = self.stem(x), []
        for stage, scales in zip(self.stages, self._scales_by_stage(x, drop_scales), strict=True):
            x = stage(x, scales)
            maps.append(x)
        return maps

    def _scales_by_stage(self, x: Tensor, scales: Tensor | None) -> list[Tensor | None]:
        if not self.training or not self.drops_paths:
            return [None] * len(self.stages)
        shape = (len(x), self.config.num_blocks)
        if scales is None:
            rates = torch.tensor(self.config.drop_path_rates, device=x.device)
            scales = (torch.rand(shape, device=x.device) >= rates) / (1 - rates)
        elif scales.shape != shape:
            raise ValueError(
                f"drop_scales is {tuple(scales.shape)}; give one for each image and block: {shape}"
            )
        return list(scales.split(self.config.depths, dim=1))


class MambaOut(Trunk):
    """The classifier that `config` describes; torch's global generator draws its weights."""

    def __init__(self, config: ModelConfig, num_classes: int = 1000) -> None:
        if num_classes < 1:
            raise WrongRequest(f"num_classes={num_classes}: a classifier needs at least 1")
        super().__init__(config)
        self.num_classes = num_classes
        self.head = Head(config.dims[-1], num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor, drop_scales: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W); `drop_scales` as in forward_pyramid."""
        return self.head(self.forward_features(x, drop_scales))

    def forward_features(self, x: Tensor, drop_scales: Tensor | None = None) -> Tensor:
        """The last stage's map (B, H/32, W/32, dims[3])."""
        return self.forward_pyramid(x, drop_scales)[-1]


def initialise(module: nn.Module) -> None:
    """Draw the weights of a convolution or linear layer, and set its bias to zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build(config: str | ModelConfig, num_classes: int = 1000) -> MambaOut:
    """A new MambaOut with random weights: a published variant by its name, or any shape.

    An unknown name is a ValueError.
    """
    return MambaOut(variant(config) if isinstance(config, str) else config, num_classes)
