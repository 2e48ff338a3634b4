"""A Gated CNN block as one operation on a CPU, forward and backward: C between torch's products.

    out = gated_block(x, weights, drop)  # x + drop * fc2(GELU(gate) * [rest, depthwise(mixed)])

The result equals that of network.GatedCNNBlock's modules, up to rounding. It keeps less for the
backward pass, because it computes the product in front of the last linear layer again. `can_take`
says whether it works. Otherwise the modules compute the block: on other devices and types, without
a compiler, with hooks or another activation, in a trace or an export, under torch.func, and when
operations are counted. Under autocast the linear layers are in bfloat16, x + branch in fp32.

In eager mode it is an autograd.Function. torch.compile gets two operators of torch.library instead,
and calls them as they are. Such a call costs 0.3 ms more, which is the time of a small block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambaout.model import gated_passes
from mambaout.model.c_calls import can_read, is_watched
from mambaout.model.gated_passes import is_compiled

_IN_USE = True
LOSS = "training on this CPU is about 1.5 times slower"


class GatedWeights(NamedTuple):
    """A block's parameters, all fp32."""

    norm_weight: Tensor  # (dim,)
    norm_bias: Tensor
    fc1_weight: Tensor  # (2 hidden, dim)
    fc1_bias: Tensor
    conv_weight: Tensor  # (mixed, 1, kernel, kernel)
    conv_bias: Tensor
    fc2_weight: Tensor  # (dim, hidden)
    fc2_bias: Tensor


@contextlib.contextmanager
def modules_alone() -> Iterator[None]:
    """In this context the modules compute the blocks, so that tests and benchmarks can compare."""
    global _IN_USE
    before, _IN_USE = _IN_USE, False
    try:
        yield
    finally:
        _IN_USE = before


def can_take(x: Tensor, weights: GatedWeights, drop: Tensor | None) -> bool:
    """Whether `gated_block` works here and gives the same result as the modules."""
    if not (_IN_USE and can_read(x) and all(can_read(weight) for weight in weights)):
        return False
    is_low = torch.is_autocast_enabled("cpu")
    if is_low and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    types = {weight.dtype for weight in weights}
    if types != {torch.float32} or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if not (is_low or x.dtype == torch.float32) or not _fit(x, weights) or is_watched():
        return False
    # Only the parameters and x get a gradient.
    if drop is not None and (not can_read(drop) or drop.requires_grad or drop.numel() != len(x)):
        return False
    return is_compiled(weights.conv_weight.shape[-1], is_low)


def _fit(x: Tensor, weights: GatedWeights) -> bool:
    """Whether the shapes fit together: C would read past the end of a tensor that is too short."""
    if x.ndim != 4 or x.numel() == 0 or weights.conv_weight.ndim != 4:
        return False
    dim, (mixed, _, kernel_size, _) = x.shape[-1], weights.conv_weight.shape
    hidden = weights.fc2_weight.shape[-1]
    vectors, wide = (dim,), (2 * hidden,)
    wanted = (
        *(vectors, vectors, (2 * hidden, dim), wide),
        *((mixed, 1, kernel_size, kernel_size), (mixed,), (dim, hidden), vectors),
    )
    shapes = tuple(tuple(weight.shape) for weight in weights)
    return shapes == wanted and 0 < mixed <= hidden and kernel_size % 2 == 1


def gated_block(x: Tensor, weights: GatedWeights, drop: Tensor | None, epsilon: float) -> Tensor:
    """x + drop * branch of x, as fp32 (B, H, W, dim); `epsilon` is that of the norm.

    `drop` (B,) multiplies each image's branch (drop path); None: 1 for every image.
    """
    is_low = torch.is_autocast_enabled("cpu")
    keep = torch.is_grad_enabled()
    drop = None if drop is None else drop.float().contiguous()
    inputs: Any = (x.float(), *weights, drop, epsilon, is_low, keep)
    out: Any = _forward_op(*inputs)[0] if torch.compiler.is_compiling() else _Block.apply(*inputs)
    return out


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, norm_weight, _, fc1_weight, fc1_bias, conv_weight, _, fc2_weight, _, drop, *_ = inputs
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        x, norm_weight, fc1_weight, fc1_bias, conv_weight, fc2_weight, drop, *kept
    )


NOT_DIFFERENTIABLE = (None,) * 4  # drop, epsilon, is_low, keep
NO_GRADIENT = (None,) * (9 + len(NOT_DIFFERENTIABLE))  # the output has no gradient


class _Block(torch.autograd.Function):
    """The block in eager mode. It leaves out the images that drop path drops."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        *weights, drop, epsilon, is_low, keep = others
        active = _active(drop)
        part, factors = (x, drop) if active is None else (x[active], drop[active])
        of_part: Any = (part, *weights, factors, epsilon, is_low, keep)
        out, *kept = gated_passes.forward(*of_part)
        if keep:
            norm_weight, _, fc1_weight, fc1_bias, conv_weight, _, fc2_weight, _ = weights
            of_weights = norm_weight, fc1_weight, fc1_bias, conv_weight, fc2_weight
            ctx.save_for_backward(active, part, *of_weights, factors, *kept)
        return out if active is None else x.index_copy(0, active, out)

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, out_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        active, *saved = ctx.saved_tensors
        part = out_grad if active is None else out_grad[active]
        x_grad, *others = gated_passes.backward(part, *saved)
        if active is not None:
            x_grad = out_grad.index_copy(0, active, x_grad)
        return (x_grad, *others, *NOT_DIFFERENTIABLE)


def _active(drop: Tensor | None) -> Tensor | None:
    """The images that are not dropped, at least one of them; None: all."""
    if drop is None:
        return None
    active = drop.nonzero()[:, 0]
    return None if len(active) == len(drop) else active if len(active) else drop.new_zeros(1).long()


_forward_op = torch.library.custom_op(
    "mambaout::gated_block", gated_passes.forward, mutates_args=()
)
_forward_op.register_fake(gated_passes.forward_shapes)
_backward_op = torch.library.custom_op(
    "mambaout::gated_block_backward", gated_passes.backward, mutates_args=()
)
_backward_op.register_fake(gated_passes.backward_shapes)


def _op_backward(ctx: Any, out_grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if out_grad is None:
        return NO_GRADIENT
    return (*_backward_op(out_grad, *ctx.saved_tensors), *NOT_DIFFERENTIABLE)


_forward_op.register_autograd(_op_backward, setup_context=_keep)
