"""Token mixers: the modules that move information between positions inside a Gated CNN block.

A mixer takes a map (B, H, W, channels) and gives a map of the same shape and precision. It is built
as `mixer(channels, config)`. It is the block's `conv`, so its parameters are named `conv.*`.
mixer_layers.MIXER_LAYERS describes its layers in a row of the same name, for costs and memory;
tests/test_layers.py checks that the two agree.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mambaout.variants import ModelConfig


def nchw(x: Tensor) -> Tensor:
    """A view of (B, H, W, C) as (B, C, H, W). A convolution reads it, channels last, uncopied."""
    return x.permute(0, 3, 1, 2)


def nhwc(x: Tensor) -> Tensor:
    """A view of (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


class MapConv(nn.Conv2d):
    """A convolution of a map (B, H, W, C); its parameters are those of nn.Conv2d."""

    def forward(self, input: Tensor) -> Tensor:
        return nhwc(super().forward(nchw(input)))  # inside: (B, C, H, W)


class DepthwiseConv(MapConv):
    """One k x k filter for each channel, zero-padded to keep the size (paper section 4, k = 7)."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        k = config.kernel_size
        super().__init__(channels, channels, k, padding=k // 2, groups=channels)

    @property
    def keeps_size(self) -> bool:
        """Whether it is as it was built: somebody may have changed a stride or the padding."""
        half = self.kernel_size[0] // 2
        steps = (self.stride, self.dilation, self.padding, self.padding_mode)
        return steps == ((1, 1), (1, 1), (half, half), "zeros")


MIXERS: dict[str, Callable[[int, ModelConfig], nn.Module]] = {  # names as in MIXER_LAYERS
    "gated_conv": DepthwiseConv,
}
