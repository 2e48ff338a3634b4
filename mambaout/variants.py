"""Network shapes as values: the published variants, and depth and width as two free axes.

Pure values: no torch, no I/O. Costs are in accounting.py, the modules in model/network.py.
Source of every published row: MambaOut (arXiv 2405.07992), Table 4, and the authors' code;
Kobe is in the authors' README only.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace

NUM_STAGES = 4
MIXERS = ("gated_conv",)  # the token mixers that model/mixers.py can build

# Vector and matrix units want channels in multiples of 8; `widen` keeps to it. Base, whose hidden
# sizes are 341/682/1365/2048, runs 20 % slower than an aligned network of more MACs
# (mambaout_base against base_tall_rw compiled on a 4090, timm's benchmark files).
ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of one MambaOut network (paper section 4, Table 4).

    Raises ValueError, naming the field, its value and the bound, for a shape that cannot be built.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)  # Gated CNN blocks in each of the four stages
    dims: tuple[int, ...] = (48, 96, 192, 288)  # channels of each stage
    expansion: float = 8 / 3  # hidden channels of a block / its input channels
    kernel_size: int = 7  # of the depthwise token mixer
    conv_ratio: float = 1.0  # channels the mixer convolves / input channels
    mixer: str = "gated_conv"
    stem_stride: int = 4  # 4: the paper's; 2: for images of 28-64 px
    hidden_multiple: int = 1  # hidden channels are rounded up to it; 1: the paper's int(8/3 * D)
    drop_path: float = 0.0  # of the last block; rises linearly from 0 at the first

    def __post_init__(self) -> None:
        for name in ("depths", "dims"):
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            if len(value) != NUM_STAGES or any(type(v) is not int or v < 1 for v in value):
                femtos = ModelConfig.__dataclass_fields__[name].default
                raise ValueError(
                    f"{name}={value!r}: give {NUM_STAGES} whole numbers of at least 1, "
                    f"one a stage, like femto's {name}={femtos}"
                )
        if self.dims[0] % 2:
            raise ValueError(
                f"dims[0]={self.dims[0]} is odd, and the stem's first convolution has half of it; "
                f"try {self.dims[0] - 1} or {self.dims[0] + 1}"
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd and positive, like 7")
        if not 0 < self.conv_ratio <= self.expansion:
            raise ValueError(
                f"conv_ratio={self.conv_ratio} must be above 0 and at most expansion="
                f"{self.expansion:.4g}: only hidden channels can be convolved"
            )
        if self.conv_channels(min(self.dims)) < 1:
            raise ValueError(
                f"conv_ratio={self.conv_ratio} leaves the mixer no channel of dims={self.dims}; "
                f"it must be at least {1 / min(self.dims):.3g}"
            )
        if self.mixer not in MIXERS:
            raise ValueError(f"mixer={self.mixer!r} is unknown; choose from {', '.join(MIXERS)}")
        if self.stem_stride not in (2, 4):
            raise ValueError(
                f"stem_stride={self.stem_stride}: 4 is the paper's stem, 2 the one for small images"
            )
        if self.hidden_multiple < 1:
            raise ValueError(f"hidden_multiple={self.hidden_multiple} must be at least 1")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must be at least 0 and below 1")

    def hidden(self, dim: int) -> int:
        """Hidden channels of a block whose input has `dim` channels."""
        exact = int(self.expansion * dim)
        return math.ceil(exact / self.hidden_multiple) * self.hidden_multiple

    def conv_channels(self, dim: int) -> int:
        """Channels that a block's token mixer convolves."""
        return int(self.conv_ratio * dim)

    @property
    def num_blocks(self) -> int:
        return sum(self.depths)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Drop rate of each block in forward order, 0 to `drop_path` linearly."""
        last = max(self.num_blocks - 1, 1)
        return tuple(self.drop_path * i / last for i in range(self.num_blocks))


FEMTO = ModelConfig(drop_path=0.025)
TINY = replace(FEMTO, dims=(96, 192, 384, 576), drop_path=0.2)  # femto, twice as wide
SMALL = replace(TINY, depths=(3, 4, 27, 3), drop_path=0.4)  # tiny, twice as deep
VARIANTS: dict[str, ModelConfig] = {
    "femto": FEMTO,
    "kobe": replace(FEMTO, depths=(3, 3, 15, 3)),  # femto, six blocks deeper
    "tiny": TINY,
    "small": SMALL,
    "base": replace(SMALL, dims=(128, 256, 512, 768), drop_path=0.6),  # small, 4/3 as wide
}


def variant(name: str) -> ModelConfig:
    """The published variant called `name`; an unknown name is a ValueError that lists them."""
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown variant {name!r}; choose from {', '.join(VARIANTS)}{hint}")


def deepen(config: ModelConfig, num_blocks: int) -> ModelConfig:
    """`config` with `num_blocks` more blocks in stage 3, where Kobe and Small put theirs."""
    first, second, third, fourth = config.depths
    if third + num_blocks < 1:
        raise ValueError(
            f"deepen by {num_blocks} leaves stage 3 with {third + num_blocks} blocks; "
            f"take away at most {third - 1}"
        )
    return replace(config, depths=(first, second, third + num_blocks, fourth))


def widen(config: ModelConfig, factor: float) -> ModelConfig:
    """`config` with every width times `factor`, kept aligned.

    Each width is rounded to the nearest multiple of 8 and hidden sizes up to one, so the MACs
    are near factor**2 times the original's, not exactly that.
    """
    if factor <= 0:
        raise ValueError(f"widen by {factor}: the factor must be above 0")
    dims = tuple(max(1, round(dim * factor / ALIGNMENT)) * ALIGNMENT for dim in config.dims)
    return replace(config, dims=dims, hidden_multiple=ALIGNMENT)
