"""The kinds of layers that networks are made of, and what each costs.

    conv = Conv(3, (224, 224), 48, kernel=3, stride=2)
    conv.macs, conv.size_out  # 16,257,024, (112, 112)

A layer is a value that describes one module with one image as input. layers.py lists a network's
layers. Parameters, MACs, activations, kept bytes and the matrix unit's share are sums over that
list. Pure values: no torch, no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

FP32 = 4  # bytes

Size = tuple[int, int]  # height and width of a map


@dataclass(frozen=True, slots=True)
class Storage:
    """How a device stores the values that are kept for the backward pass."""

    low: int  # bytes of one number in and out of a matrix product: 2 in bf16, 4 in fp32
    lanes: int = 1  # channels are padded to a multiple of `lanes`
    fused: bool = False  # a block is one operation (model/gated_block.py), recomputes its product

    def wide(self, channels: int) -> int:
        return math.ceil(channels / self.lanes) * self.lanes


class MatrixProduct(NamedTuple):
    """`rows` vectors of `channels_in` numbers, times a matrix."""

    rows: int
    channels_in: int
    channels_out: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One module with one image as input. The defaults are those of a layer without any cost."""

    channels: int  # of the input
    size: Size | None  # of the input; None: the input is a vector, after the mean over the map
    # The same input is already kept for another layer, so this layer does not count it.
    input_kept: bool = field(default=False, kw_only=True)

    @property
    def size_out(self) -> Size | None:
        return self.size

    @property
    def channels_out(self) -> int:
        return self.channels

    @property
    def shape_out(self) -> tuple[int, ...]:
        """The shape of the output: (height, width, channels), or (channels,) of a vector."""
        return (*(self.size_out or ()), self.channels_out)

    @property
    def params(self) -> int:
        return 0

    @property
    def macs(self) -> int:
        return 0

    @property
    def least_macs(self) -> int:
        """MACs, with only the multiplications of a scan's own recurrence (4 for each number of the
        state); `macs` counts 9, as VMamba's tables do."""
        return self.macs

    @property
    def activations(self) -> int:
        """Output elements of a convolution or linear layer; 0 for other layers."""
        return 0

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        """The matrix products that a matrix unit computes for this layer."""
        return ()

    def kept_bytes(self, storage: Storage) -> int:
        """Bytes that this layer keeps for the backward pass and no other layer keeps already.

        Most layers keep their input. Their output is kept by the next layer, which takes it.
        """
        return 0

    def flight_bytes(self, storage: Storage) -> int:
        """Bytes that this layer holds only while it is computed, beside what it takes and gives."""
        return 0

    def input_bytes(self, storage: Storage, number_bytes: int) -> int:
        """Bytes of the kept input; 0 if it is kept for another layer already."""
        if self.input_kept:
            return 0
        if self.size is None:
            number_bytes = FP32  # vectors are small; they count as fp32 in every precision
        return num_positions(self.size) * storage.wide(self.channels) * number_bytes


def num_positions(size: Size | None) -> int:
    """Of a map of that size; 1 of a vector."""
    return 1 if size is None else size[0] * size[1]


@dataclass(frozen=True, slots=True)
class ConvLayer(Layer):
    """A convolution with an odd kernel, padded by half of the kernel."""

    size: Size
    filters: int
    kernel: int
    stride: int = 1
    has_bias: bool = True

    @property
    def size_out(self) -> Size:
        height, width = self.size
        return -(-height // self.stride), -(-width // self.stride)

    @property
    def channels_out(self) -> int:
        return self.filters

    @property
    def params(self) -> int:
        return (self.channels * self.kernel**2 + self.has_bias) * self.filters

    @property
    def macs(self) -> int:
        return self.channels * self.kernel**2 * self.activations

    @property
    def activations(self) -> int:
        return self.filters * num_positions(self.size_out)

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        """One product for each place of the kernel, joined into one with as many rows."""
        rows = self.kernel**2 * num_positions(self.size_out)
        return (MatrixProduct(rows, self.channels, self.filters),)

    def kept_bytes(self, storage: Storage) -> int:
        return self.input_bytes(storage, storage.low)


@dataclass(frozen=True, slots=True)
class PatchConvLayer(ConvLayer):
    """A convolution whose kernel is its stride; the map is padded to whole patches."""

    def kept_bytes(self, storage: Storage) -> int:
        """The padded map, where there is something to pad."""
        height, width = (side * self.stride for side in self.size_out)
        return height * width * storage.wide(self.channels) * storage.low


@dataclass(frozen=True, slots=True)
class TransposedConvLayer(Layer):
    """A transposed convolution with a bias whose kernel is its stride: each place becomes
    `factor` x `factor` places."""

    size: Size
    filters: int
    factor: int

    @property
    def size_out(self) -> Size:
        return self.factor * self.size[0], self.factor * self.size[1]

    @property
    def channels_out(self) -> int:
        return self.filters

    @property
    def params(self) -> int:
        return (self.channels * self.factor**2 + 1) * self.filters

    @property
    def macs(self) -> int:
        return self.channels * self.activations

    @property
    def activations(self) -> int:
        return self.filters * num_positions(self.size_out)

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        return (MatrixProduct(num_positions(self.size_out), self.channels, self.filters),)

    def kept_bytes(self, storage: Storage) -> int:
        return self.input_bytes(storage, storage.low)


@dataclass(frozen=True, slots=True)
class DepthwiseConvLayer(Layer):
    """A convolution with one filter for each channel, padded to keep the size.

    It does not sum over channels, so it has no matrix product.
    """

    kernel: int

    @property
    def params(self) -> int:
        return (self.kernel**2 + 1) * self.channels

    @property
    def macs(self) -> int:
        return self.kernel**2 * self.activations

    @property
    def activations(self) -> int:
        return self.channels * num_positions(self.size)

    def kept_bytes(self, storage: Storage) -> int:
        return self.input_bytes(storage, storage.low)


@dataclass(frozen=True, slots=True)
class LinearLayer(Layer):
    """A linear layer with a bias, applied at each position."""

    features: int
    input_remade: bool = False  # a fused block computes the input again instead of keeping it

    @property
    def channels_out(self) -> int:
        return self.features

    @property
    def params(self) -> int:
        return (self.channels + 1) * self.features

    @property
    def macs(self) -> int:
        return self.channels * self.features * num_positions(self.size)

    @property
    def activations(self) -> int:
        return self.features * num_positions(self.size)

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        return (MatrixProduct(num_positions(self.size), self.channels, self.features),)

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
        """The input, and a mean and a deviation a position; a vector's two are not counted."""
        if self.size is None:
            return storage.wide(self.channels) * FP32
        # If another layer keeps the input in bf16, the norm still keeps a copy in fp32.
        shared = self.input_kept and storage.low == FP32
        numbers = 2 if shared else storage.wide(self.channels) + 2
        return num_positions(self.size) * numbers * FP32


@dataclass(frozen=True, slots=True)
class BatchNormLayer(Layer):
    """A norm of each channel over the batch, with a scale and a shift."""

    @property
    def params(self) -> int:
        return 2 * self.channels

    def kept_bytes(self, storage: Storage) -> int:
        return self.input_bytes(storage, storage.low)


@dataclass(frozen=True, slots=True)
class ActivationLayer(Layer):
    """GELU or SiLU of the output of a convolution, linear layer or norm; a norm gives fp32."""

    after_norm: bool = False

    def kept_bytes(self, storage: Storage) -> int:
        return self.input_bytes(storage, FP32 if self.after_norm else storage.low)


@dataclass(frozen=True, slots=True)
class GateLayer(Layer):
    """GELU of a block's gate, times the value; each has `channels` numbers a position.

    The gate is one half of the output of the block's first linear layer. The mixer's input is a
    part of the other half. The whole output is kept once, whatever the mixer is.
    """

    size: Size
    mixed: int | None = None  # the mixer's output channels; None: the block cannot be fused

    def kept_bytes(self, storage: Storage) -> int:
        """The first linear's output, and the two factors of the product.

        A fused block keeps the mixer's output instead of the factors.
        """
        if storage.fused and self.mixed is not None:
            factors = storage.wide(self.mixed)
        else:
            factors = 2 * storage.wide(self.channels)
        numbers = storage.wide(2 * self.channels) + factors
        return num_positions(self.size) * numbers * storage.low
