"""Token mixers: the modules that move information between positions inside a Gated CNN block.

A mixer takes a map (B, H, W, channels) and gives a map of the same shape and precision. It is built
as `mixer(channels, config)`. It is the block's `conv`, so its parameters are named `conv.*`.
mixer_layers.MIXER_LAYERS describes its layers in a row of the same name, for costs and memory;
tests/test_layers.py checks that the two agree.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaout.mixer_layers import CONV_MIXER
from mambaout.model.selective_scan import selective_scan
from mambaout.sequence_layers import num_heads, step_rank
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


class PatchConv(MapConv):
    """A convolution whose kernel is as large as its stride, so that it mixes no two patches.

    If a side of the map is not a multiple of the stride, zeros are added at its right or lower end.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__(channels, filters, stride, stride=stride)

    def forward(self, input: Tensor) -> Tensor:
        stride = self.stride[0]
        down, right = (-side % stride for side in input.shape[1:3])
        if torch._C._is_tracing() or down or right:  # a trace is for images of any size
            input = F.pad(input, (0, 0, 0, right, 0, down))
        return super().forward(input)


class DepthwiseConv(MapConv):
    """One k x k filter for each channel, zero-padded to keep the size (paper section 4, k = 7)."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        k = config.kernel_size
        super().__init__(channels, channels, k, padding=k // 2, groups=channels)

    @property
    def keeps_size(self) -> bool:
        """Whether stride, dilation and padding are as they were built; users may change them."""
        half = self.kernel_size[0] // 2
        steps = (self.stride, self.dilation, self.padding, self.padding_mode)
        return steps == ((1, 1), (1, 1), (half, half), "zeros")


class SelectiveScan(nn.Module):
    """Mamba's SSM over the positions of a map, row by row (S6; arXiv 2312.00752, Algorithm 2).

    With two directions it also runs backward, and with four also column by column, both ways. Each
    direction has steps, A, B and C of its own, and the results are summed (VMamba, arXiv
    2401.10166, without its norm). It computes in fp32, also under autocast.

    The parameters have Mamba's names. They are not in nn.Linear modules, because the network's
    `initialise` would set the bias to 0. Then the steps would be 0.7 instead of 0.001 to 0.1, and
    the state would remember about one token. A_log, D and dt_bias are vectors, because vectors have
    no weight decay.
    """

    LEAST_STEP, MOST_STEP = 1e-3, 0.1  # at the start

    def __init__(self, channels: int, config: ModelConfig, directions: int) -> None:
        super().__init__()
        self.directions, self.discretisation = directions, config.ssm_discretisation
        rank, state = step_rank(channels), config.ssm_state
        self.widths = (rank, state, state)  # of a step's origin, B and C
        self.x_proj = nn.Parameter(torch.empty(directions * sum(self.widths), channels))
        self.dt_proj = nn.Parameter(torch.empty(directions, rank, channels))
        self.dt_bias = nn.Parameter(torch.empty(directions * channels))
        self.A_log = nn.Parameter(torch.empty(directions * channels * state))
        self.D = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.x_proj, -(channels**-0.5), channels**-0.5)
        nn.init.uniform_(self.dt_proj, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            ends = math.log(self.LEAST_STEP), math.log(self.MOST_STEP)
            steps = torch.empty_like(self.dt_bias).uniform_(*ends).exp()
            self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus gives the steps
            numbers = torch.arange(1, state + 1, dtype=torch.float32).log()
            self.A_log.copy_(numbers.repeat(directions * channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, channels) to the same shape and precision."""
        flat = x.flatten(1, 2)  # (B, L, channels)
        projected = F.linear(flat, self.x_proj)  # (B, L, directions * (rank + 2 state))
        with _without_autocast(x.device.type):
            flat, projected = (each.to(self.D.dtype) for each in (flat, projected))
            parts = projected.unflatten(-1, (self.directions, -1)).permute(2, 0, 1, 3)
            origin, into, out_of = (part.contiguous() for part in parts.split(self.widths, -1))
            bias = self.dt_bias.view(self.directions, 1, -1)
            steps = F.softplus(torch.baddbmm(bias, origin.flatten(1, 2), self.dt_proj))
            y = selective_scan(
                flat,
                steps.unflatten(1, flat.shape[:2]),  # (directions, B, L, channels)
                -self.A_log.exp().view(self.directions, flat.shape[-1], -1),
                into,
                out_of,
                (x.shape[1], x.shape[2]),
                self.discretisation,
            )
            return torch.addcmul(y, self.D, flat).to(x.dtype).view_as(x)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    if torch.amp.autocast_mode.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


class ConvScan(nn.Sequential):
    """The depthwise convolution, then SiLU, then a selective scan.

    This is Mamba's mixer, SSM(act(Conv)) (paper, Equations 8 and 10). The convolution is the same
    as in a network without the SSM.
    """

    def __init__(self, channels: int, config: ModelConfig, directions: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(channels, config)
        self.act = nn.SiLU()
        self.scan = SelectiveScan(channels, config, directions)


class AttentionCore(nn.Module):
    """Queries, keys and values (B, H, W, 3 channels) in, attended values (B, H, W, channels) out.

    `causal`: a position sees itself and those before it, row by row (paper, Figure 3).
    """

    def __init__(self, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        parts = x.flatten(1, 2).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, heads, channels)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        return y.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3])


class Attention(nn.Sequential):
    """Attention over the positions of a map, without a position embedding."""

    def __init__(self, channels: int, config: ModelConfig, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.core = AttentionCore(num_heads(channels), causal)
        self.proj = nn.Linear(channels, channels)


def _no_mixer(channels: int, config: ModelConfig) -> nn.Module:
    """The floor of a comparison: only the stem and the downsampling may mix tokens."""
    return nn.Identity()


MIXERS: dict[str, Callable[[int, ModelConfig], nn.Module]] = {  # names as in MIXER_LAYERS
    CONV_MIXER: DepthwiseConv,
    "identity": _no_mixer,
    "conv_ssm": functools.partial(ConvScan, directions=1),
    "conv_ssm_two_way": functools.partial(ConvScan, directions=2),
    "conv_ssm_four_way": functools.partial(ConvScan, directions=4),
    "attention": functools.partial(Attention, causal=False),
    "causal_attention": functools.partial(Attention, causal=True),
}
