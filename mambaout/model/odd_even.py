"""The selective scan in torch's operations, on any device: the odd-even scan.

The recurrence is h[t] = a[t] h[t-1] + b[t]. Two positions at a time it is a recurrence of half the
length. So L positions take about log2(L) rounds and 2 L products. Nothing is divided, so that a
decay that underflows gives no nan.

A tensor of all positions, channels and states would be large. So `scan` and `gradients` work
through the positions in pieces, and keep only the state between two pieces.

Here K is the number of directions. Tensors of directions are in the order of the recurrence, not
of the map: `in_order` and `in_place` turn one into the other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mambaout.sequence_layers import PIECE, XLA_PIECE


class ScanInputs(NamedTuple):
    """The five tensors of selective_scan.selective_scan."""

    x: Tensor  # (B, L, D)
    step: Tensor  # (K, B, L, D)
    decay: Tensor  # (K, D, N)
    into: Tensor  # (K, B, L, N)
    out_of: Tensor  # (K, B, L, N)


def in_order(tensor: Tensor, size: tuple[int, int], column_major: bool, reverse: bool) -> Tensor:
    """The positions (B, L, ..) of a map in the order in which a direction visits them."""
    if column_major:
        tensor = tensor.unflatten(1, size).transpose(1, 2).flatten(1, 2)
    return tensor.flip(1) if reverse else tensor


def in_place(tensor: Tensor, size: tuple[int, int], column_major: bool, reverse: bool) -> Tensor:
    """The inverse of `in_order`: each position at its place in the map."""
    tensor = tensor.flip(1) if reverse else tensor
    if column_major:
        tensor = tensor.unflatten(1, (size[1], size[0])).transpose(1, 2).flatten(1, 2)
    return tensor


def _directions(number: int) -> list[tuple[bool, bool]]:
    """(column_major, reverse) of each direction."""
    return [(False, False), (False, True), (True, False), (True, True)][:number]


def ordered(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, B, L, ..) of the map, each direction in its own order."""
    each = zip(tensor.unbind(), _directions(len(tensor)), strict=True)
    return torch.stack([in_order(part, size, *direction) for part, direction in each])


def placed(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `ordered`."""
    each = zip(tensor.unbind(), _directions(len(tensor)), strict=True)
    return torch.stack([in_place(part, size, *direction) for part, direction in each])


def recurrence(a: Tensor, b: Tensor, start: Tensor, reverse: bool = False) -> Tensor:
    """h[t] = a[t] h[t-1] + b[t] along dimension 2, with h[-1] = `start`, of length 1 there.

    `reverse`: h[t] = a[t] h[t+1] + b[t], and `start` stands behind the last.
    """
    length = int(a.shape[2])  # a plain number in a trace, too
    if length == 1:
        return a * start + b
    # Of each two positions one is the first in the order of the recurrence. At an odd length the
    # last one has no second.
    pairs, alone = length // 2, length % 2
    offset = 1 - alone if reverse else 0
    a_first, b_first = a[:, :, offset::2], b[:, :, offset::2]
    a_second, b_second = a[:, :, 1 - offset :: 2], b[:, :, 1 - offset :: 2]
    skipped = alone if reverse else 0
    a_paired, b_paired = (each.narrow(2, skipped, pairs) for each in (a_first, b_first))
    second = recurrence(a_paired * a_second, a_second * b_paired + b_second, start, reverse)
    # The state before each first is that of the second before it.
    count = pairs + alone - 1
    known = second.narrow(2, pairs - count if reverse else 0, count)
    first = a_first * torch.cat([known, start] if reverse else [start, known], 2) + b_first
    even, odd = (second, first) if offset else (first, second)
    joined = torch.stack([even[:, :, :pairs], odd], 3).flatten(2, 3)
    return torch.cat([joined, even[:, :, pairs:]], 2) if alone else joined


class _Piece(NamedTuple):
    """Some positions of all directions; sizes are (K, B, positions, D, N), some of them 1."""

    x: Tensor
    step: Tensor
    decay: Tensor
    into: Tensor
    out_of: Tensor
    factor: Tensor  # h[t] = factor[t] h[t-1] + weight[t] x[t] into[t]
    weight: Tensor

    def states(self, start: Tensor) -> Tensor:
        return recurrence(self.factor, self.weight * self.x * self.into, start)


def _piece(inputs: ScanInputs, part: slice, zero_order_hold: bool) -> _Piece:
    x, step = inputs.x[:, :, part, :, None], inputs.step[:, :, part, :, None]
    into, out_of = inputs.into[:, :, part, None], inputs.out_of[:, :, part, None]
    decay = inputs.decay[:, None, None]
    exponent = step * decay
    weight = torch.expm1(exponent) / decay if zero_order_hold else step
    return _Piece(x, step, decay, into, out_of, exponent.exp(), weight)


def in_scan_order(inputs: ScanInputs, size: tuple[int, int]) -> ScanInputs:
    """The same with each direction in its own order; x is (K, B, L, D)."""
    x = inputs.x.expand(len(inputs.step), *inputs.x.shape)
    x, step, into, out_of = (
        ordered(each, size) for each in (x, inputs.step, inputs.into, inputs.out_of)
    )
    return ScanInputs(x, step, inputs.decay, into, out_of)


def pieces(inputs: ScanInputs) -> list[slice]:
    """The positions of each piece; all pieces are about as long."""
    length, directions = int(inputs.x.shape[1]), int(inputs.step.shape[0])
    longest = XLA_PIECE if inputs.x.device.type == "xla" else max(1, PIECE // directions)
    number = -(-length // longest)
    size = -(-length // number)
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def kept_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The shape of the states before each piece, stacked."""
    directions, channels, states = inputs.decay.shape
    return (len(pieces(inputs)), directions, len(inputs.x), 1, channels, states)


def scan(
    inputs: ScanInputs, size: tuple[int, int], zero_order_hold: bool
) -> tuple[Tensor, list[Tensor]]:
    """The sum over directions (B, L, D), and the state before each piece (K, B, 1, D, N)."""
    ways = in_scan_order(inputs, size)
    directions, channels, states = inputs.decay.shape
    state = inputs.x.new_zeros(directions, inputs.x.shape[0], 1, channels, states)
    outs, kept = [], []
    for part in pieces(inputs):
        piece = _piece(ways, part, zero_order_hold)
        h = piece.states(state)
        outs.append((piece.out_of * h).sum(-1))
        kept.append(state)
        state = h[:, :, -1:]
    return placed(torch.cat(outs, 2), size).sum(0), kept


def gradients(
    out_grad: Tensor,
    inputs: ScanInputs,
    kept: list[Tensor],
    size: tuple[int, int],
    zero_order_hold: bool,
) -> ScanInputs:
    """The gradients of the inputs, from `scan`'s states before each piece."""
    ways = in_scan_order(inputs, size)
    out_grads = ordered(out_grad.expand(len(inputs.step), *out_grad.shape), size)
    decay_grad = torch.zeros_like(inputs.decay)
    found: list[tuple[Tensor, ...]] = []
    carry = torch.zeros_like(kept[0])
    for part, state in reversed(list(zip(pieces(inputs), kept, strict=True))):
        piece = _piece(ways, part, zero_order_hold)
        h = piece.states(state)
        out = out_grads[:, :, part, :, None]
        h_grad = out * piece.out_of  # not yet through later positions
        # What goes back from each position to the one before it.
        back = recurrence(piece.factor, piece.factor * h_grad, carry, reverse=True)
        h_grad = h_grad + torch.cat([back[:, :, 1:], carry], 2)
        carry = back[:, :, :1]
        exponent_grad = back * torch.cat([state, h[:, :, :-1]], 2)
        grads, of_decay = _piece_gradients(piece, h_grad, exponent_grad, zero_order_hold)
        decay_grad = decay_grad + of_decay
        found.append((*grads, (out * h).sum(3)))
    x_grad, step_grad, into_grad, out_of_grad = (
        placed(torch.cat(each[::-1], 2), size) for each in zip(*found, strict=True)
    )
    return ScanInputs(x_grad.sum(0), step_grad, decay_grad, into_grad, out_of_grad)


def _piece_gradients(
    piece: _Piece, h_grad: Tensor, exponent_grad: Tensor, zero_order_hold: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """The gradients of x, step and into at the piece's positions, and the piece's part in decay's.

    `exponent_grad` is that of step * decay through `factor` alone.
    """
    x, step, decay, into, _, factor, weight = piece
    into_grad = (h_grad * (weight * x)).sum(3)
    if not zero_order_hold:
        input_grad = (h_grad * into).sum(-1)  # of step * x
        of_step = input_grad * x[..., 0] + (exponent_grad * decay).sum(-1)
        grads = (input_grad * step[..., 0], of_step, into_grad)
        return grads, (exponent_grad * step).sum((1, 2))
    x_grad = (h_grad * into * weight).sum(-1)
    weight_grad = h_grad * x * into
    of_step = (exponent_grad * decay + weight_grad * factor).sum(-1)
    of_decay = exponent_grad * step + weight_grad * step.square() * _slope(step * decay)
    return (x_grad, of_step, into_grad), of_decay.sum((1, 2))


def _slope(z: Tensor) -> Tensor:
    """(exp(z) - expm1(z) / z) / z, for z below 0: expm1(z) / z differentiated."""
    near = torch.zeros_like(z)
    factorial = 3628800.0  # of 10
    for power in range(8, -1, -1):  # the series: (power + 1) / (power + 2)! z^power
        near = near * z + (power + 1) / factorial
        factorial /= power + 2
    far = torch.where(z < -0.1, z, -0.1)  # nearer to 0 the difference has few digits
    return torch.where(z < -0.1, (far.exp() - far.expm1() / far) / far, near)
