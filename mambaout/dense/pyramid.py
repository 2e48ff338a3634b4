"""The feature pyramid: torchvision's, with an upsampling that XLA computes too.

On XLA the backward pass of torch's nearest upsampling runs on the CPU, in the middle of a step.
Each map is twice as large as the one after it, or a row or column less. So a copy of every place
in two rows and two columns, cut to the size, is the same. On a CPU its backward pass takes nine
times as long as torch's (452 and 49 ms for 256 channels of 200 x 320, 2 images, one thread), so
only XLA takes it.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork

from mambaout.model.mixers import nchw, nhwc


class FeaturePyramid(FeaturePyramidNetwork):
    """torchvision's network for maps whose sides are halves, rounded up, from map to map."""

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps (B, dims[i], H, W), the finest first, to maps (B, channels, H, W) and one more."""
        names, maps = list(x), list(x.values())
        above = self.get_result_from_inner_blocks(maps[-1], -1)
        results = [self.get_result_from_layer_blocks(above, -1)]
        for place in range(len(maps) - 2, -1, -1):
            lateral = self.get_result_from_inner_blocks(maps[place], place)
            above = lateral + upsampled(above, lateral.shape[-2], lateral.shape[-1])
            results.insert(0, self.get_result_from_layer_blocks(above, place))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=True))


def upsampled(x: Tensor, height: int, width: int) -> Tensor:
    """`x` (B, C, H, W) at the size (height, width), by the nearest place."""
    if x.device.type == "xla":
        return doubled(x, height, width)
    return F.interpolate(x, size=(height, width), mode="nearest")


def doubled(x: Tensor, height: int, width: int) -> Tensor:
    """`x` (B, C, H, W) with each place four times, cut to (B, C, height, width).

    It equals torch's nearest upsampling for a height of 2H or 2H - 1, and a width of the same kind.
    """
    x = nhwc(x)
    batch, old_height, old_width, channels = x.shape
    x = x[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    x = x.reshape(batch, 2 * old_height, 2 * old_width, channels)
    return nchw(x[:, :height, :width])
