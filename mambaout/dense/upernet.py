"""UperNet on the backbone: a segmenter, as mmsegmentation has it.

    segmenter = upernet(replace(variant("tiny"), drop_path=0.3))
    print(load_backbone(segmenter.backbone, read_weights("mambaout_tiny.safetensors")))
    logits, auxiliary = segmenter(images)  # in training; each (B, num_classes, H, W)
    logits = segmenter.eval()(images)

Every operation has a fixed shape for a fixed crop, so XLA compiles it once. A batch norm sees the
images of one device's micro-batch, unless the caller turns it into a SyncBatchNorm:
mmsegmentation's sees 16 images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaout.dense.backbone import Backbone
from mambaout.dense.fp32 import in_fp32
from mambaout.dense.resizing import pooled, resized
from mambaout.dense_layers import (
    ADE20K_CLASSES,
    AUXILIARY_CHANNELS,
    AUXILIARY_STAGE,
    POOL_SIDES,
    SEGMENTER_CHANNELS,
)
from mambaout.errors import WrongRequest
from mambaout.variants import ModelConfig

DROPOUT = 0.1  # of whole channels, before the classes
CLASS_STD = 0.01  # of the first weights of the classes


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU; the size stays."""

    def __init__(self, channels: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(filters)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class UperNetDecoder(nn.Module):
    """Pools the last map at four sizes, adds it to the finer maps on the way down, fuses all."""

    def __init__(self, dims: Sequence[int], channels: int) -> None:
        super().__init__()
        *finer, last = dims
        self.pools = nn.ModuleList(ConvNorm(last, channels, 1) for _ in POOL_SIDES)
        self.bottleneck = ConvNorm(last + len(POOL_SIDES) * channels, channels, 3)
        self.laterals = nn.ModuleList(ConvNorm(dim, channels, 1) for dim in finer)
        self.smooths = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in finer)
        self.fuse = ConvNorm(len(dims) * channels, channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps, finest first -> one map (B, channels, H, W) of the finest one's size."""
        *finer, last = maps
        size, finest = last.shape[-2:], finer[0].shape[-2:]
        levels = [last]
        for side, pool in zip(POOL_SIDES, self.pools, strict=True):
            levels.append(resized(pool(pooled(last, side)), size))
        coarsest = above = self.bottleneck(torch.cat(levels, dim=1))
        summed = []
        for lateral, each in zip(reversed(self.laterals), reversed(finer), strict=True):
            above = lateral(each) + resized(above, each.shape[-2:])
            summed.insert(0, above)
        smoothed = [smooth(each) for smooth, each in zip(self.smooths, summed, strict=True)]
        joined = torch.cat([resized(each, finest) for each in (*smoothed, coarsest)], dim=1)
        return self.fuse(joined)


class ChannelDropout(nn.Module):
    """Dropout of whole channels, by factors that the caller gives or that are drawn here."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """x (B, C, H, W); `scales` (B, C) are 0 for a channel that is dropped, else 1 / (1 - p)."""
        if not self.training:
            return x
        if scales is None:
            return F.dropout2d(x, self.p)
        return x * scales.to(x.dtype)[:, :, None, None]


class UperNet(nn.Module):
    """The segmenter of `upernet`."""

    def __init__(
        self, config: ModelConfig, num_classes: int, channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.decoder = UperNetDecoder(config.dims, channels)
        self.dropout = ChannelDropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.auxiliary = nn.Sequential(
            ConvNorm(config.dims[AUXILIARY_STAGE], AUXILIARY_CHANNELS, 3),
            ChannelDropout(dropout),
            nn.Conv2d(AUXILIARY_CHANNELS, num_classes, 1),
        )
        for name, parameter in self.named_parameters():
            if name.startswith(("classifier.", "auxiliary.2.")):
                nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else CLASS_STD)

    def forward(
        self,
        x: Tensor,
        drop_scales: Tensor | None = None,
        channel_scales: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, num_classes, H, W) in fp32 of images (B, 3, H, W).

        In training, a pair of them: the second is the auxiliary head's, for a loss that is added
        with a weight of 0.4. `drop_scales` is that of `Trunk.forward_pyramid`. `channel_scales` are
        those of the dropout of the decoder and of the auxiliary head; None: they are drawn here.
        """
        maps = self.backbone(x, drop_scales)
        to_image = partial(resized, size=x.shape[-2:])
        main, auxiliary = (None, None) if channel_scales is None else channel_scales
        logits = in_fp32(to_image, self.classifier(self.dropout(self.decoder(maps), main)))
        if not self.training:
            return logits
        conv, dropout, classifier = self.auxiliary
        found = classifier(dropout(conv(maps[AUXILIARY_STAGE]), auxiliary))
        return logits, in_fp32(to_image, found)


def upernet(
    config: ModelConfig,
    num_classes: int = ADE20K_CLASSES,
    *,
    channels: int = SEGMENTER_CHANNELS,
    dropout: float = DROPOUT,
) -> UperNet:
    """A new UperNet with random weights, drawn by torch's global generator.

    `channels` are those of the decoder. `dropout` and `config.drop_path` act in training.
    """
    if num_classes < 1 or channels < 1:
        raise WrongRequest(f"num_classes={num_classes}, channels={channels}: give 1 or more")
    return UperNet(config, num_classes, channels, dropout)
