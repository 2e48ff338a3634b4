"""The selective scan of Mamba (S6; arXiv 2312.00752, algorithm 2) over the positions of a map.

    y = selective_scan(x, step, decay, into, out_of, (height, width))

Along each direction the state h (D, N) of every image starts at 0:

    h = exp(step * decay) * h + weight(step, decay) * x * into        y = sum over N of out_of * h

| discretisation | weight |
|---|---|
| mamba_ssm | step, as the package mamba_ssm and VMamba compute |
| zero_order_hold | (exp(step * decay) - 1) / decay, the equation of the paper |

Three forms compute it:

| form | where | file |
|---|---|---|
| C | on a CPU with a C compiler: fp32, mamba_ssm's weight | scan.c |
| the package mamba_ssm | on CUDA where it is installed: fp32, its weight | mamba_ssm_scan.py |
| the odd-even scan of torch's operations | elsewhere, and in a trace or an export | odd_even.py |

The C form and the odd-even form keep their inputs and a few states for the backward pass. It
computes the other states again, a piece at a time. Under torch.compile both forms are operators of
torch.library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambaout.model import mamba_ssm_scan, odd_even, scan_passes
from mambaout.model.c_calls import can_read, is_watched
from mambaout.model.odd_even import ScanInputs
from mambaout.model.scan_passes import is_compiled

MAMBA_SSM, ZERO_ORDER_HOLD = "mamba_ssm", "zero_order_hold"
DISCRETISATIONS = (MAMBA_SSM, ZERO_ORDER_HOLD)
DIRECTIONS = (1, 2, 4)
LOSS = "the selective scan on this CPU is about 10 times slower"


def selective_scan(
    x: Tensor,
    step: Tensor,
    decay: Tensor,
    into: Tensor,
    out_of: Tensor,
    size: tuple[int, int],
    discretisation: str = MAMBA_SSM,
) -> Tensor:
    """The selective scan of x in K directions: their sum (B, L, D), each at the position's place.

    x (B, L, D): the L = height * width positions of a map, row by row. K is 1 (row by row), 2 (and
    from the last to the first) or 4 (the same two, column by column). All tensors are row by row.

    step (K, B, L, D), above 0. decay (K, D, N), below 0: A of the paper. into, out_of (K, B, L, N):
    B and C of the paper. `size`: height and width. Computes and returns fp32, under autocast too;
    float64 if an input is float64. There is no skip term, no softplus and no gate.

    Raises ValueError if the shapes do not fit together.
    """
    inputs = ScanInputs(x, step, decay, into, out_of)
    _check(inputs, size, discretisation)
    is_double = any(each.dtype == torch.float64 for each in inputs)
    precision = torch.float64 if is_double else torch.float32
    inputs = ScanInputs(*(each.to(precision) for each in inputs))
    is_held = discretisation == ZERO_ORDER_HOLD
    if is_watched():
        return odd_even.scan(inputs, size, is_held)[0]
    is_fast = not (is_held or is_double)
    if is_fast and mamba_ssm_scan.can_take(inputs):
        function = mamba_ssm_scan.selective_scan_fn()
        assert function is not None
        return mamba_ssm_scan.mamba_ssm_scan(function, inputs, size)
    in_c = is_fast and all(map(can_read, inputs)) and is_compiled()
    call: Any = (*inputs, *size, is_held, in_c, torch.is_grad_enabled())
    out: Any = _forward_op(*call)[0] if torch.compiler.is_compiling() else _Scan.apply(*call)
    return out


def _check(inputs: ScanInputs, size: tuple[int, int], discretisation: str) -> None:
    if discretisation not in DISCRETISATIONS:
        raise ValueError(f"discretisation={discretisation!r}: choose from {DISCRETISATIONS}")
    x, step, decay, *_ = inputs
    if x.ndim != 3 or x.numel() == 0 or x.shape[1] != size[0] * size[1]:
        raise ValueError(
            f"x has the shape {tuple(x.shape)}: it must be (images, {size[0] * size[1]}, channels) "
            f"for a map of {size[0]} x {size[1]}, and not empty"
        )
    if step.ndim != 4 or len(step) not in DIRECTIONS:
        raise ValueError(
            f"step has the shape {tuple(step.shape)}: it must be (directions, *x.shape), with 1, 2 "
            "or 4 directions"
        )
    if decay.ndim != 3 or decay.shape[-1] == 0:
        raise ValueError(
            f"decay has the shape {tuple(decay.shape)}: it must be (directions, channels, states)"
        )
    directions, (images, length, channels), states = len(step), x.shape, decay.shape[-1]
    of_states = (directions, images, length, states)
    wanted = ((directions, *x.shape), (directions, channels, states), of_states, of_states)
    for name, tensor, shape in zip(ScanInputs._fields[1:], inputs[1:], wanted, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}: it must be {shape}")


def _forward(
    x: Tensor,
    step: Tensor,
    decay: Tensor,
    into: Tensor,
    out_of: Tensor,
    height: int,
    width: int,
    is_held: bool,
    in_c: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The scan, and the states that the backward pass needs; without `keep` they are empty."""
    inputs = ScanInputs(x, step, decay, into, out_of)
    if in_c:
        return scan_passes.scan(inputs, (height, width), keep)
    out, kept = odd_even.scan(inputs, (height, width), is_held)
    return out, torch.stack(kept) if keep else x.new_empty(0)


def _forward_shapes(
    x: Tensor,
    step: Tensor,
    decay: Tensor,
    into: Tensor,
    out_of: Tensor,
    height: int,
    width: int,
    is_held: bool,
    in_c: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    inputs = ScanInputs(x, step, decay, into, out_of)
    shape = scan_passes.kept_shape(inputs) if in_c else odd_even.kept_shape(inputs)
    return x.new_empty(x.shape), x.new_empty(shape if keep else 0)


def _backward(
    out_grad: Tensor,
    x: Tensor,
    step: Tensor,
    decay: Tensor,
    into: Tensor,
    out_of: Tensor,
    kept: Tensor,
    height: int,
    width: int,
    is_held: bool,
    in_c: bool,
) -> list[Tensor]:
    """The gradients of the five inputs."""
    inputs = ScanInputs(x, step, decay, into, out_of)
    if in_c:
        return list(scan_passes.gradients(out_grad, inputs, kept, (height, width)))
    return list(odd_even.gradients(out_grad, inputs, list(kept), (height, width), is_held))


def _backward_shapes(
    out_grad: Tensor,
    x: Tensor,
    step: Tensor,
    decay: Tensor,
    into: Tensor,
    out_of: Tensor,
    kept: Tensor,
    height: int,
    width: int,
    is_held: bool,
    in_c: bool,
) -> list[Tensor]:
    return [each.new_empty(each.shape) for each in (x, step, decay, into, out_of)]


NOT_DIFFERENTIABLE = (None,) * 5  # height, width, is_held, in_c, keep


class _Scan(torch.autograd.Function):
    """The scan in eager mode."""

    @staticmethod
    def forward(ctx: Any, *call: Any) -> Tensor:
        *inputs, height, width, is_held, in_c, _ = call
        out, kept = _forward(*call)
        ctx.save_for_backward(*inputs, kept)
        ctx.rest = height, width, is_held, in_c
        return out

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, out_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (*_backward(out_grad, *ctx.saved_tensors, *ctx.rest), *NOT_DIFFERENTIABLE)


_forward_op = torch.library.custom_op("mambaout::selective_scan", _forward, mutates_args=())
_forward_op.register_fake(_forward_shapes)
_backward_op = torch.library.custom_op(
    "mambaout::selective_scan_backward", _backward, mutates_args=()
)
_backward_op.register_fake(_backward_shapes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, height, width, is_held, in_c, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])
    ctx.rest = height, width, is_held, in_c


def _op_backward(ctx: Any, out_grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if out_grad is None:
        return (None,) * (5 + len(NOT_DIFFERENTIABLE))
    return (*_backward_op(out_grad, *ctx.saved_tensors, *ctx.rest), *NOT_DIFFERENTIABLE)


_forward_op.register_autograd(_op_backward, setup_context=_keep)
