"""The layers of every token mixer. model/mixers.py has its module in a row of the same name.

A new mixer needs one row here and one row there. Its costs, its memory, the command line's choices
and its tests follow from the two rows. Pure values: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mambaout.layer_kinds import (
    ActivationLayer,
    DepthwiseConvLayer,
    Layer,
    LinearLayer,
    Size,
)
from mambaout.sequence_layers import AttentionLayer, ScanLayer

CONV_MIXER = "gated_conv"  # the paper's
MUP_MIXERS = (CONV_MIXER, "identity")  # for which model/first_weights.py has muP's rule


class MixerConfig(Protocol):
    """The fields of a ModelConfig that mixers read.

    variants.py imports this file for the names of the mixers, so this file cannot import it.
    """

    @property
    def kernel_size(self) -> int: ...

    @property
    def ssm_state(self) -> int: ...


def _gated_conv(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
    return {"": DepthwiseConvLayer(channels, size, config.kernel_size, input_kept=True)}


def _identity(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
    return {}


def _conv_ssm(directions: int) -> Callable[[int, Size, MixerConfig], dict[str, Layer]]:
    def found(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
        return {
            "depthwise": DepthwiseConvLayer(channels, size, config.kernel_size, input_kept=True),
            "act": ActivationLayer(channels, size),
            "scan": ScanLayer(channels, size, config.ssm_state, directions),
        }

    return found


def _attention(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
    return {
        "qkv": LinearLayer(channels, size, 3 * channels, input_kept=True),
        "core": AttentionLayer(3 * channels, size),
        "proj": LinearLayer(channels, size, channels),
    }


# (channels, size of the map, config) -> the mixer's layers in forward order. The keys are the names
# of their modules within the mixer; "" is the mixer itself. The block keeps the mixer's input
# (`GateLayer`), so the layer that takes it has input_kept=True. A mixer's output has the size and
# the precision of its input.
MIXER_LAYERS: dict[str, Callable[[int, Size, MixerConfig], dict[str, Layer]]] = {
    CONV_MIXER: _gated_conv,
    "identity": _identity,
    "conv_ssm": _conv_ssm(1),
    "conv_ssm_two_way": _conv_ssm(2),
    "conv_ssm_four_way": _conv_ssm(4),
    "attention": _attention,
    "causal_attention": _attention,
}
