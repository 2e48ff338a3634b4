"""The kinds of layers that networks are made of, and what each costs.

    conv = Conv(3, (224, 224), 48, kernel=3, stride=2)
    conv.macs, conv.size_out  # 16,257,024, (112, 112)

A layer is a value: one module at work on one image. layers.py lists a network's layers; parameters,
MACs, activations, kept bytes and the matrix unit's share are sums over that list. Pure values: no
torch, no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

FP32 = 4  # bytes

Size = tuple[int, int]  # height and width of a map


@dataclass(frozen=True, slots=True)
class Storage:
    """How a device stores the values that wait for the backward pass."""

    low: int  # bytes of a number that matrix products take and give: 2 in bf16, 4 in fp32
    lanes: int = 1  # channels are padded to a multiple of it
    fused: bool = False  # a block is one operation (model/gated_block.py) and remakes its product

    def wide(self, channels: int) -> int:
        return math.ceil(channels / self.lanes) * self.lanes


class MatrixProduct(NamedTuple):
    """`rows` vectors of `channels_in` numbers, times a matrix."""

    rows: int
    channels_in: int
    channels_out: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One module at work on one image. What a kind does not say of itself it has none of."""

    channels: int  # of its input
    size: Size | None  # of its input; None: a vector, after the mean over the map
    # Its input, as it is, is kept for another layer.
    input_kept: bool = field(default=False, kw_only=True)

    @property
    def size_out(self) -> Size | None:
        return self.size

    @property
    def channels_out(self) -> int:
        return self.channels

    @property
    def shape_out(self) -> tuple[int, ...]:
        """(height, width, channels) of what it puts out; (channels,) of a vector."""
        return (*(self.size_out or ()), self.channels_out)

    @property
    def params(self) -> int:
        return 0

    @property
    def macs(self) -> int:
        return 0

    @property
    def activations(self) -> int:
        """Elements that it puts out, where it is a convolution or a linear."""
        return 0

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        """The matrix products that a matrix unit computes for it."""
        return ()

    def kept_bytes(self, storage: Storage) -> int:
        """What the backward pass keeps for it that it does not keep for another layer.

        Most layers keep their input, and their output is kept by the layer that takes it.
        """
        return 0

    def input_bytes(self, storage: Storage, number_bytes: int) -> int:
        """What its input takes, kept once and for it."""
        if self.input_kept:
            return 0
        if self.size is None:
            number_bytes = FP32  # vectors are few, and count as that
        return _positions(self.size) * storage.wide(self.channels) * number_bytes


def _positions(size: Size | None) -> int:
    return 1 if size is None else size[0] * size[1]


@dataclass(frozen=True, slots=True)
class ConvLayer(Layer):
    """A convolution of an odd kernel with a bias, padded by half of the kernel."""

    size: Size
    filters: int
    kernel: int
    stride: int = 1

    @property
    def size_out(self) -> Size:
        height, width = self.size
        return -(-height // self.stride), -(-width // self.stride)

    @property
    def channels_out(self) -> int:
        return self.filters

    @property
    def params(self) -> int:
        return (self.channels * self.kernel**2 + 1) * self.filters

    @property
    def macs(self) -> int:
        return self.channels * self.kernel**2 * self.activations

    @property
    def activations(self) -> int:
        return self.filters * _positions(self.size_out)

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        """One for each place of the kernel, written as one that is so much longer."""
        rows = self.kernel**2 * _positions(self.size_out)
        return (MatrixProduct(rows, self.channels, self.filters),)

    def kept_bytes(self, storage: Storage) -> int:
        return self.input_bytes(storage, storage.low)


@dataclass(frozen=True, slots=True)
class DepthwiseConvLayer(Layer):
    """A filter a channel, padded to keep the size. It has no channels to sum over, so no matrix
    product."""

    kernel: int

    @property
    def params(self) -> int:
        return (self.kernel**2 + 1) * self.channels

    @property
    def macs(self) -> int:
        return self.kernel**2 * self.activations

    @property
    def activations(self) -> int:
        return self.channels * _positions(self.size)

    def kept_bytes(self, storage: Storage) -> int:
        return self.input_bytes(storage, storage.low)


@dataclass(frozen=True, slots=True)
class LinearLayer(Layer):
    """A linear with a bias, at each position."""

    features: int
    input_remade: bool = False  # by a block that is fused

    @property
    def channels_out(self) -> int:
        return self.features

    @property
    def params(self) -> int:
        return (self.channels + 1) * self.features

    @property
    def macs(self) -> int:
        return self.channels * self.features * _positions(self.size)

    @property
    def activations(self) -> int:
        return self.features * _positions(self.size)

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        return (MatrixProduct(_positions(self.size), self.channels, self.features),)

    def kept_bytes(self, storage: Storage) -> int:
        if storage.fused and self.input_remade:
            return 0
        return self.input_bytes(storage, storage.low)


@dataclass(frozen=True, slots=True)
class NormLayer(Layer):
    """A LayerNorm over the channels, with a scale and a shift. It takes fp32 and gives fp32."""

    @property
    def params(self) -> int:
        return 2 * self.channels

    def kept_bytes(self, storage: Storage) -> int:
        """Its input, and a mean and a deviation a position; a vector's two are left out."""
        if self.size is None:
            return storage.wide(self.channels) * FP32
        # Where its input is kept in bf16, the norm still keeps what it made of it, in fp32.
        shared = self.input_kept and storage.low == FP32
        numbers = 2 if shared else storage.wide(self.channels) + 2
        return _positions(self.size) * numbers * FP32


@dataclass(frozen=True, slots=True)
class GeluLayer(Layer):
    """GELU of what a convolution or linear gives, or of what a norm gives, which is fp32."""

    after_norm: bool = False

    def kept_bytes(self, storage: Storage) -> int:
        return self.input_bytes(storage, FP32 if self.after_norm else storage.low)


@dataclass(frozen=True, slots=True)
class GateLayer(Layer):
    """GELU of a block's gate, times the value: `channels` numbers of each a position.

    The gate is a half of what the block's first linear gives, and the mixer's input is a part of
    the other half. All of it is kept, once, whatever the mixer is.
    """

    size: Size
    mixed: int | None = None  # channels that the mixer gives, where the block can be fused

    def kept_bytes(self, storage: Storage) -> int:
        """What the first linear gives; the two factors of the product, or what the mixer gives."""
        if storage.fused and self.mixed is not None:
            factors = storage.wide(self.mixed)
        else:
            factors = 2 * storage.wide(self.channels)
        numbers = storage.wide(2 * self.channels) + factors
        return _positions(self.size) * numbers * storage.low
