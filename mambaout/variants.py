"""Network shapes as values: the published variants, and depth and width as two free axes.

Pure values: no torch, no I/O. The layers are in layers.py, the modules in model/network.py.
Source of every published row: MambaOut (arXiv 2405.07992), Table 4, and the authors' code;
Kobe is in the authors' README only.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from typing import ClassVar

from mambaout.errors import WrongRequest
from mambaout.fields import MOST_CHANNELS, Bound, Rule, check, knob, neighbours
from mambaout.mixer_layers import CONV_MIXER, MIXER_LAYERS

NUM_STAGES = 4

# Vector and matrix units are fastest with channels in multiples of 8, so `widen` rounds to them.
# Base has the hidden sizes 341/682/1365/2048. It runs 20 % slower than an aligned network with more
# MACs (mambaout_base against base_tall_rw compiled on a 4090, timm's benchmark files).
ALIGNMENT = 8


def _one_number_a_stage(name: str, value: tuple[int, ...], example: tuple[int, ...]) -> str | None:
    if len(value) == NUM_STAGES and all(type(v) is int for v in value):
        return None
    return f"{name}={value!r}: give {NUM_STAGES} whole numbers, one a stage, like {example}"


def _four_depths(depths: tuple[int, ...]) -> str | None:
    return _one_number_a_stage("depths", depths, (3, 3, 9, 3))


def _four_dims(dims: tuple[int, ...]) -> str | None:
    return _one_number_a_stage("dims", dims, (48, 96, 192, 288))


def _even_first_dim(dims: tuple[int, ...]) -> str | None:
    if dims and dims[0] % 2:
        return (
            f"dims[0]={dims[0]} is odd, and the stem's first convolution has half of it; "
            f"try {neighbours(dims[0])}"
        )
    return None


def _odd_kernel(kernel_size: int) -> str | None:
    if kernel_size % 2 == 0:
        return f"kernel_size={kernel_size} must be odd; try {kernel_size - 1} or {kernel_size + 1}"
    return None


def _hidden_channels_to_convolve(conv_ratio: float, expansion: float) -> str | None:
    if conv_ratio > expansion:
        return (
            f"conv_ratio={conv_ratio:g} is more than expansion={expansion:.4g}, and only hidden "
            "channels can be convolved; lower conv_ratio or raise expansion"
        )
    return None


def _stages_in_order(mixer_stages: tuple[int, ...]) -> str | None:
    known = tuple(range(1, NUM_STAGES + 1))
    if mixer_stages and tuple(s for s in known if s in mixer_stages) == mixer_stages:
        return None
    return (
        f"mixer_stages={mixer_stages}: give some of the stages "
        f"{', '.join(map(str, known))}, each once and in order, like 3,4"
    )


def _some_channel_to_convolve(conv_ratio: float, dims: tuple[int, ...]) -> str | None:
    if dims and int(conv_ratio * min(dims)) < 1:
        return (
            f"conv_ratio={conv_ratio:g} leaves the mixer no channel of dims={dims}; "
            f"it must be at least {1 / min(dims):.3g}"
        )
    return None


# timm's MambaOut has no argument for these fields. They are always:
TIMM_VALUES = {"mixer": CONV_MIXER, "downsampling": "overlapping"}

PAPER_SHAPE = "paper, Table 4"
AUTHORS_CODE = "authors' code"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of one MambaOut network (paper section 4, Table 4).

    Raises WrongValues for a shape that cannot be built. The message names each wrong field, its
    value and the bound.
    """

    depths: tuple[int, ...] = knob(
        (3, 3, 9, 3),
        "Gated CNN blocks in each of the four stages",
        unit="blocks",
        source=PAPER_SHAPE,
        bound=Bound(least=1, most=1000),
    )
    dims: tuple[int, ...] = knob(
        (48, 96, 192, 288),
        "channels of each of the four stages; the first is even",
        unit="channels",
        source=PAPER_SHAPE,
        bound=Bound(least=1, most=MOST_CHANNELS),
    )
    expansion: float = knob(
        8 / 3,
        "hidden channels of a block, as a multiple of its input channels",
        unit="ratio",
        source=f"8/3 in the {AUTHORS_CODE}",
        bound=Bound(above=0, most=100),
    )
    kernel_size: int = knob(
        7,
        "side of the depthwise convolution that mixes tokens; an odd number",
        unit="pixels of the feature map",
        source=AUTHORS_CODE,
        bound=Bound(least=1, most=1023),
    )
    conv_ratio: float = knob(
        1.0,
        "channels that are convolved, as a multiple of a block's input channels; at most expansion",
        unit="ratio",
        source=AUTHORS_CODE,
        bound=Bound(above=0, most=100),
    )
    mixer: str = knob(
        CONV_MIXER,
        "how a block mixes tokens",
        unit=None,
        source="paper, Figure 1",
        choices=MIXER_LAYERS,
    )
    mixer_stages: tuple[int, ...] = knob(
        (1, 2, 3, 4),
        f"stages whose blocks have the mixer, like 3,4; the blocks of the others have {CONV_MIXER}",
        unit="stages",
        bound=Bound(least=1, most=NUM_STAGES),
    )
    ssm_state: int = knob(
        16,
        "numbers in the state of each channel; only mixers with an SSM have one",
        unit="numbers",
        source="Mamba (arXiv 2312.00752)",
        bound=Bound(least=1, most=1024),
    )
    ssm_discretisation: str = knob(
        "mamba_ssm",
        "how an SSM weights its input by the step; mamba_ssm: step x B, as that package computes; "
        "zero_order_hold: the paper's formula, which is slower here",
        unit=None,
        source="the mamba_ssm package",
        choices=("mamba_ssm", "zero_order_hold"),
    )
    downsampling: str = knob(
        "overlapping",
        "convolutions of the stem and between the stages; overlapping: 3 x 3 with stride 2, which "
        "mix tokens too; patchify: kernels as large as their strides, which mix none",
        unit=None,
        source=AUTHORS_CODE,
        choices=("overlapping", "patchify"),
    )
    stem_stride: int = knob(
        4,
        "pixels to one place of the first feature map; 2 is for images of 28 to 64 px",
        unit="px",
        source=AUTHORS_CODE,
        choices=(4, 2),
    )
    hidden_multiple: int = knob(
        1,
        "hidden channels are rounded up to a multiple of it",
        unit="channels",
        source=f"{AUTHORS_CODE}, which rounds nothing",
        bound=Bound(least=1, most=MOST_CHANNELS),
    )
    drop_path: float = knob(
        0.0,
        "drop rate of the last block; the rates rise linearly from 0 at the first",
        unit="probability",
        source="paper, Table 5",
        bound=Bound(least=0, below=1),
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        _four_depths,
        _four_dims,
        _even_first_dim,
        _odd_kernel,
        _hidden_channels_to_convolve,
        _some_channel_to_convolve,
        _stages_in_order,
    )

    def __post_init__(self) -> None:
        for name in ("depths", "dims", "mixer_stages"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        check(self)

    def hidden(self, dim: int) -> int:
        """Hidden channels of a block whose input has `dim` channels."""
        exact = int(self.expansion * dim)
        return math.ceil(exact / self.hidden_multiple) * self.hidden_multiple

    def conv_channels(self, dim: int) -> int:
        """Channels that a block's token mixer convolves."""
        return int(self.conv_ratio * dim)

    def mixer_of(self, stage: int) -> str:
        """The name of the token mixer in stage 1, 2, 3 or 4."""
        return self.mixer if stage in self.mixer_stages else CONV_MIXER

    @property
    def not_in_timm(self) -> tuple[str, ...]:
        """The fields with values that timm's MambaOut cannot have."""
        return tuple(name for name, value in TIMM_VALUES.items() if getattr(self, name) != value)

    @property
    def num_blocks(self) -> int:
        return sum(self.depths)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """The drop path rate of each block in forward order; it rises linearly from 0 to
        `drop_path`."""
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
    raise WrongRequest(f"unknown variant {name!r}; choose from {', '.join(VARIANTS)}{hint}")


def deepen(config: ModelConfig, num_blocks: int) -> ModelConfig:
    """`config` with `num_blocks` more blocks in stage 3, where Kobe and Small put theirs."""
    first, second, third, fourth = config.depths
    if third + num_blocks < 1:
        raise WrongRequest(
            f"deepen by {num_blocks} leaves stage 3 with {third + num_blocks} blocks; "
            f"take away at most {third - 1}"
        )
    return replace(config, depths=(first, second, third + num_blocks, fourth))


def widen(config: ModelConfig, factor: float) -> ModelConfig:
    """`config` with every width multiplied by `factor` and rounded to a multiple of 8.

    Widths are rounded to the nearest multiple of 8, hidden sizes up to one. The MACs are therefore
    only about factor**2 times the original's.
    """
    if factor <= 0:
        raise WrongRequest(f"widen by {factor}: the factor must be above 0")
    dims = tuple(max(1, round(dim * factor / ALIGNMENT)) * ALIGNMENT for dim in config.dims)
    return replace(config, dims=dims, hidden_multiple=ALIGNMENT)
