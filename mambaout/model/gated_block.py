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
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambaout.model.c_calls import can_read, is_watched
from mambaout.model.norm import FLAGS, NormCall, norm_function
from mambaout.native import LONG, NUMBER, POINTER, CFile, function

SOURCE = Path(__file__).with_name("gated_block.c")
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


class _GatedCall(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("images", "height", "width", "hidden", "mixed", "threads")),
        *((name, POINTER) for name in ("weight", "bias", "first_bias", "drop", "h", "y", "v")),
        *((name, POINTER) for name in ("y_grad", "h_grad")),
        *((name, POINTER) for name in ("weight_grad", "bias_grad", "first_bias_grad")),
    ]


class _Functions(NamedTuple):
    """The functions of the C files for one kernel size and precision."""

    gated: Any
    joined: Any  # None in fp32
    norm: Any


def c_files(kernel_size: int) -> tuple[CFile, CFile]:
    """The C files for blocks with that kernel size: the one for fp32, the one for bf16."""
    flags = (*FLAGS, f"-DK={kernel_size}")
    return CFile(SOURCE, (*flags, "-DLOW=0")), CFile(SOURCE, (*flags, "-DLOW=1"))


@functools.cache
def _functions(kernel_size: int, is_low: bool) -> _Functions | None:
    source = c_files(kernel_size)[int(is_low)]
    gated = function(source, "gated", [ctypes.POINTER(_GatedCall)], NUMBER)
    norm = norm_function(is_low)
    if gated is None or norm is None:
        return None
    joined = function(source, "joined", [POINTER] * 5 + [LONG] * 4) if is_low else None
    return _Functions(gated, joined, norm)


def is_compiled(kernel_size: int, is_low: bool) -> bool:
    """Whether the C code for that kernel size can be used here; compiles it if needed."""
    return _functions(kernel_size, is_low) is not None


# What torch.compiler.assume_constant_result does. That imports torch._dynamo, which takes 1.6 s.
setattr(is_compiled, "_dynamo_marked_constant", True)  # noqa: B010 - not in its type


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
    call: Any = _forward_op if torch.compiler.is_compiling() else _Block.apply
    return call(x.float(), *weights, drop, epsilon, is_low, keep)[0]


def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    drop: Tensor | None,
    epsilon: float,
    is_low: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The block's output, and the tensors that its backward pass needs beside x: the outputs of
    norm, mean and deviation, first linear layer and convolution; without `keep` they are empty."""
    low = torch.bfloat16 if is_low else torch.float32
    c = _required(conv_weight, is_low)
    x, norm_weight, norm_bias, fc1_bias, conv_bias, fc2_bias = (
        each.contiguous() for each in (x, norm_weight, norm_bias, fc1_bias, conv_bias, fc2_bias)
    )
    images, height, width, dim = x.shape
    positions, hidden, mixed = height * width, fc2_weight.shape[1], len(conv_bias)
    threads = torch.get_num_threads()
    normed = x.new_empty(images * positions, dim, dtype=low)
    stats, out = x.new_empty(images * positions, 2), torch.empty_like(x)
    c.norm(
        NormCall(
            *(images, positions, dim, threads, epsilon, x.data_ptr()),
            *(norm_weight.data_ptr(), norm_bias.data_ptr(), fc2_bias.data_ptr(), _address(drop)),
            *(normed.data_ptr(), stats.data_ptr(), out.data_ptr()),
        )
    )
    h = normed @ fc1_weight.to(low).t()  # (B * H * W, 2 hidden), without the bias: `gated` adds it
    y = h.new_empty(len(h), hidden)
    v = h.new_empty((len(h), mixed) if keep else 0)
    weight = _by_place(conv_weight)
    _check(
        c.gated(
            _GatedCall(
                *(images, height, width, hidden, mixed, threads),
                *(weight.data_ptr(), conv_bias.data_ptr(), fc1_bias.data_ptr()),
                None if is_low else _address(drop),
                *(h.data_ptr(), y.data_ptr(), v.data_ptr() if keep else None),
            )
        )
    )
    product = fc2_weight.to(low).t()
    if is_low:
        branch = y @ product
        c.joined(
            *(x.data_ptr(), branch.data_ptr(), fc2_bias.data_ptr(), _address(drop)),
            *(out.data_ptr(), images, positions, dim, threads),
        )
    else:
        out.view(-1, dim).addmm_(y, product)  # adds to x + drop * bias, which `norm` wrote
    if not keep:
        normed, stats, h = (x.new_empty(0) for _ in range(3))  # an operator's outputs must differ
    return out, normed, stats, h, v


def _forward_shapes(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    drop: Tensor | None,
    epsilon: float,
    is_low: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    low = torch.bfloat16 if is_low else torch.float32
    out = x.new_empty(x.shape)
    if not keep:
        return out, x.new_empty(0), x.new_empty(0), x.new_empty(0), x.new_empty(0, dtype=low)
    rows = x.numel() // x.shape[-1]
    return (
        out,
        x.new_empty(rows, x.shape[-1], dtype=low),
        x.new_empty(rows, 2),
        x.new_empty(rows, fc1_weight.shape[0], dtype=low),
        x.new_empty(rows, conv_weight.shape[0], dtype=low),
    )


def _backward(
    out_grad: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    conv_weight: Tensor,
    fc2_weight: Tensor,
    drop: Tensor | None,
    normed: Tensor,
    stats: Tensor,
    h: Tensor,
    v: Tensor,
) -> list[Tensor]:
    """The gradients of x and of the eight parameters, in `_forward`'s order."""
    # Autocast may differ from the forward pass, which would change the types that C reads.
    with torch.autocast("cpu", enabled=False):
        low, is_low = h.dtype, h.dtype == torch.bfloat16
        c = _required(conv_weight, is_low)
        x, out_grad = x.contiguous(), out_grad.resolve_neg().contiguous()
        norm_weight, fc1_bias = norm_weight.contiguous(), fc1_bias.contiguous()
        images, height, width, dim = x.shape
        positions, hidden, mixed = height * width, fc2_weight.shape[1], conv_weight.shape[0]
        threads = torch.get_num_threads()
        branch_grad = out_grad.view(-1, dim).to(low)  # without the factor `drop`: C applies it
        y_grad = branch_grad @ fc2_weight.to(low)
        y, h_grad = torch.empty_like(y_grad), torch.empty_like(h)
        weight = _by_place(conv_weight)
        conv_weight_grad = x.new_empty(images, *weight.shape)
        conv_bias_grad, fc1_bias_grad = x.new_empty(images, mixed), x.new_empty(images, 2 * hidden)
        _check(
            c.gated(
                _GatedCall(
                    *(images, height, width, hidden, mixed, threads),
                    *(weight.data_ptr(), None, fc1_bias.data_ptr(), _address(drop)),
                    *(
                        h.data_ptr(),
                        y.data_ptr(),
                        v.data_ptr(),
                        y_grad.data_ptr(),
                        h_grad.data_ptr(),
                    ),
                    *(
                        each.data_ptr()
                        for each in (conv_weight_grad, conv_bias_grad, fc1_bias_grad)
                    ),
                )
            )
        )
        fc2_weight_grad = (branch_grad.t() @ y).float()
        del y, y_grad
        normed_grad = h_grad @ fc1_weight.to(low)
        fc1_weight_grad = (h_grad.t() @ normed).float()
        del h_grad
        x_grad, of_norm = torch.empty_like(x), x.new_empty(3, images, dim)
        c.norm(
            NormCall(
                *(images, positions, dim, threads, 0.0, x.data_ptr()),
                *(norm_weight.data_ptr(), None, None, _address(drop)),
                *(normed_grad.data_ptr(), stats.data_ptr(), x_grad.data_ptr(), out_grad.data_ptr()),
                *(each.data_ptr() for each in of_norm),
            )
        )
        norm_weight_grad, norm_bias_grad, fc2_bias_grad = (each.sum(0) for each in of_norm)
        # Contiguous, as `_backward_shapes` says: torch.compile relies on the strides.
        conv_weight_grad = conv_weight_grad.sum(0).t().contiguous().view(conv_weight.shape)
        return [
            *(x_grad, norm_weight_grad, norm_bias_grad, fc1_weight_grad, fc1_bias_grad.sum(0)),
            *(conv_weight_grad, conv_bias_grad.sum(0), fc2_weight_grad, fc2_bias_grad),
        ]


def _backward_shapes(
    out_grad: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    conv_weight: Tensor,
    fc2_weight: Tensor,
    drop: Tensor | None,
    normed: Tensor,
    stats: Tensor,
    h: Tensor,
    v: Tensor,
) -> list[Tensor]:
    dim, mixed = fc2_weight.shape[0], conv_weight.shape[0]
    vectors = x.new_empty(dim), x.new_empty(dim)
    return [
        *(x.new_empty(x.shape), *vectors, x.new_empty(fc1_weight.shape)),
        *(x.new_empty(fc1_bias.shape), x.new_empty(conv_weight.shape), x.new_empty(mixed)),
        *(x.new_empty(fc2_weight.shape), x.new_empty(dim)),
    ]


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
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _forward(*inputs)

    setup_context = staticmethod(_keep)

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, out_grad: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        if out_grad is None:
            return NO_GRADIENT
        return (*_backward(out_grad, *ctx.saved_tensors), *NOT_DIFFERENTIABLE)


_forward_op = torch.library.custom_op("mambaout::gated_block", _forward, mutates_args=())
_forward_op.register_fake(_forward_shapes)
_backward_op = torch.library.custom_op("mambaout::gated_block_backward", _backward, mutates_args=())
_backward_op.register_fake(_backward_shapes)


def _op_backward(ctx: Any, out_grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if out_grad is None:
        return NO_GRADIENT
    return (*_backward_op(out_grad, *ctx.saved_tensors), *NOT_DIFFERENTIABLE)


_forward_op.register_autograd(_op_backward, setup_context=_keep)


def _required(conv_weight: Tensor, is_low: bool) -> _Functions:
    found = _functions(conv_weight.shape[-1], is_low)
    assert found is not None, "`can_take` has said that the C is there"
    return found


def _by_place(conv_weight: Tensor) -> Tensor:
    """(mixed, 1, k, k) as (k * k, mixed): the channels of one place lie side by side."""
    return conv_weight.reshape(len(conv_weight), -1).t().contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(status: int) -> None:
    if status < 0:
        raise MemoryError("no memory for a row of a block's convolution")
