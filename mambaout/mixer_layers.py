"""The layers of every token mixer. model/mixers.py has its module in a row of the same name.

A new mixer needs one row here and one row there. Its costs, its memory, the command line's choices
and its tests follow from the two rows. Pure values: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mambaout.layer_kinds import DepthwiseConvLayer, Layer, Size


class MixerConfig(Protocol):
    """The fields of a ModelConfig that mixers read.

    variants.py imports this file for the names of the mixers, so this file cannot import it.
    """

    @property
    def kernel_size(self) -> int: ...


def _gated_conv(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
    return {"": DepthwiseConvLayer(channels, size, config.kernel_size, input_kept=True)}


# (channels, size of the map, config) -> the mixer's layers in forward order. The keys are the names
# of their modules within the mixer; "" is the mixer itself. The block keeps the mixer's input
# (`GateLayer`), so the layer that takes it has input_kept=True. A mixer's output has the size and
# the precision of its input.
MIXER_LAYERS: dict[str, Callable[[int, Size, MixerConfig], dict[str, Layer]]] = {
    "gated_conv": _gated_conv,
}
