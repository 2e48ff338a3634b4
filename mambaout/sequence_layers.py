"""The layers that mix a whole sequence of positions: a selective scan and attention.

    scan = ScanLayer(96, (56, 56), state=16, directions=1)
    scan.macs, scan.least_macs  # with 9 and with 4 multiply-adds for each number of the state

Pure values: no torch, no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mambaout.layer_kinds import FP32, Layer, MatrixProduct, Size, Storage, num_positions

# Positions from one kept state of a scan in C to the next. With 32, the states of 16 channels stay
# in the second-level cache, or in the first.
STATE_EVERY = 32
# In torch's operations a scan is computed in pieces, and holds about so many values for each
# position, channel and number of the state.
PIECE_VALUES = 10
PIECE = 1024  # positions of an image, of all directions together
# In each direction. XLA compiles each piece anew, so that a map of up to 64 x 64 is one piece.
XLA_PIECE = 4096
STEP_RANK_OF = 16  # channels for each value from which steps are computed, as in Mamba
HEAD_CHANNELS = 32  # of attention, where the channels allow it

# Multiply-adds of a scan for each position, channel and number of the state. VMamba's tables have
# 9, which is what its parallel form computes; the recurrence itself multiplies 4 times.
SCAN_MACS, LEAST_SCAN_MACS = 9, 4


def step_rank(channels: int) -> int:
    """The number of values from which a scan computes the steps of all channels."""
    return math.ceil(channels / STEP_RANK_OF)


def num_heads(channels: int) -> int:
    """Heads of attention: all are equal, and as near to HEAD_CHANNELS as a divisor allows."""
    return math.gcd(channels, max(1, channels // HEAD_CHANNELS))


@dataclass(frozen=True, slots=True)
class ScanLayer(Layer):
    """A selective scan with its projections (Mamba, arXiv 2312.00752, Algorithm 2), in fp32."""

    size: Size
    state: int
    directions: int

    @property
    def _projected(self) -> int:
        """Values of one position from which steps, B and C of all directions are made."""
        return self.directions * (step_rank(self.channels) + 2 * self.state)

    @property
    def params(self) -> int:
        of_direction = self.channels * (step_rank(self.channels) + 1 + self.state)
        return self._projected * self.channels + self.directions * of_direction + self.channels

    @property
    def macs(self) -> int:
        return self._macs(SCAN_MACS)

    @property
    def least_macs(self) -> int:
        return self._macs(LEAST_SCAN_MACS)

    def _macs(self, of_number: int) -> int:
        """With the product of input and skip factor, one for each channel."""
        numbers = self.directions * self.state * of_number + 1
        products = sum(math.prod(product) for product in self.products)
        return products + num_positions(self.size) * self.channels * numbers

    @property
    def activations(self) -> int:
        """Of the two linear layers inside."""
        return num_positions(self.size) * (self._projected + self.directions * self.channels)

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        positions, rank = num_positions(self.size), step_rank(self.channels)
        return (
            MatrixProduct(positions, self.channels, self._projected),
            MatrixProduct(self.directions * positions, rank, self.channels),
        )

    def flight_bytes(self, storage: Storage) -> int:
        """The values of a piece in torch's operations; scan.c needs hardly any."""
        if storage.fused:
            return 0
        piece = XLA_PIECE * self.directions if storage.lanes > 1 else PIECE
        positions = min(self.directions * num_positions(self.size), piece)
        return PIECE_VALUES * positions * storage.wide(self.channels) * self.state * FP32

    def kept_bytes(self, storage: Storage) -> int:
        """The input, what is computed of it, the steps before and after softplus, some states."""
        positions, wide = num_positions(self.size), storage.wide(self.channels)
        steps = 2 * self.directions * wide
        states = math.ceil(positions / STATE_EVERY) * self.directions * wide * self.state
        numbers = positions * (self._projected + steps) + states
        copy = 0 if storage.low == FP32 else positions * wide * FP32
        return self.input_bytes(storage, storage.low) + copy + numbers * FP32


@dataclass(frozen=True, slots=True)
class AttentionLayer(Layer):
    """From queries, keys and values (three times the channels) to the attended values.

    MACs count all pairs of positions, also under a causal mask, as torch's FlopCounterMode does.
    """

    size: Size

    @property
    def channels_out(self) -> int:
        return self.channels // 3

    @property
    def macs(self) -> int:
        return sum(math.prod(product) for product in self.products)

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        positions, heads = num_positions(self.size), num_heads(self.channels_out)
        of_head = self.channels_out // heads
        return (
            MatrixProduct(heads * positions, of_head, positions),
            MatrixProduct(heads * positions, positions, of_head),
        )

    def kept_bytes(self, storage: Storage) -> int:
        """The input and one fp32 number for each position and head; the layer after this one keeps
        the output."""
        positions = num_positions(self.size)
        sums = positions * num_heads(self.channels_out) * FP32
        return self.input_bytes(storage, storage.low) + sums
