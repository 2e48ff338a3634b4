"""The layers of every token mixer; the modules are the rows of the same name in model/mixers.py.

A new mixer is a row here and a row there: what it costs, its memory, the command line's choices and
its tests follow. Pure values: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mambaout.layer_kinds import DepthwiseConvLayer, Layer, Size


class MixerConfig(Protocol):
    """What mixers read of a ModelConfig, which takes its choices from here."""

    @property
    def kernel_size(self) -> int: ...


def _gated_conv(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
    return {"": DepthwiseConvLayer(channels, size, config.kernel_size, input_kept=True)}


# (channels, size of the map, config) -> the mixer's layers in forward order, by the names of their
# modules within the mixer; "" is the mixer itself. The block keeps the mixer's input (`Gate`), so a
# layer that takes it has input_kept=True. A mixer gives a map of the size and precision it takes.
MIXER_LAYERS: dict[str, Callable[[int, Size, MixerConfig], dict[str, Layer]]] = {
    "gated_conv": _gated_conv,
}
