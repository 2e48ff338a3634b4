"""The forward and the backward pass of a Gated CNN block on a CPU (gated_block.py says for what).

A pass takes a few images at a time, so that what one operation writes is still in the cache when
the next one reads it. Of these values only a chunk's are in memory at once.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambaout.model.norm import FLAGS, NormCall, norm_file, norm_function
from mambaout.model.products import PRODUCTS, LowProducts, Products
from mambaout.native import LONG, NUMBER, POINTER, CFile, function

SOURCE = Path(__file__).with_name("gated_block.c")
CHUNK_BYTES = 4 * 2**20  # of the first linear layer's output


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


def c_files(kernel_size: int, is_low: bool) -> tuple[CFile, ...]:
    """The C files for blocks with that kernel size, in bf16 (`is_low`) or fp32."""
    gated = CFile(SOURCE, (*FLAGS, f"-DK={kernel_size}", f"-DLOW={int(is_low)}"))
    return (gated, norm_file(is_low), *(() if is_low else (PRODUCTS,)))


@functools.cache
def _functions(kernel_size: int, is_low: bool) -> _Functions | None:
    source = c_files(kernel_size, is_low)[0]
    gated = function(source, "gated", [ctypes.POINTER(_GatedCall)], NUMBER)
    norm = norm_function(is_low)
    if gated is None or norm is None or not (is_low or Products.are_compiled()):
        return None
    joined = function(source, "joined", [POINTER] * 5 + [LONG] * 4) if is_low else None
    return _Functions(gated, joined, norm)


def is_compiled(kernel_size: int, is_low: bool) -> bool:
    """Whether the C code for that kernel size can be used here; compiles it if needed."""
    return _functions(kernel_size, is_low) is not None


# What torch.compiler.assume_constant_result does. That imports torch._dynamo, which takes 1.6 s.
setattr(is_compiled, "_dynamo_marked_constant", True)  # noqa: B010 - not in its type


def forward(
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
    c, products = _required(conv_weight, is_low), LowProducts() if is_low else Products()
    x, norm_weight, norm_bias, fc1_bias, conv_bias, fc2_bias = (
        each.contiguous() for each in (x, norm_weight, norm_bias, fc1_bias, conv_bias, fc2_bias)
    )
    images, height, width, dim = x.shape
    positions, hidden, mixed = height * width, fc2_weight.shape[1], len(conv_bias)
    threads, low, weight = torch.get_num_threads(), products.dtype, _by_place(conv_weight)
    fc1, fc2 = products.factor(fc1_weight, turned=True), products.factor(fc2_weight, turned=True)
    chunk = _chunk(images, positions * 2 * hidden * low.itemsize)
    out, (rows, shared) = torch.empty_like(x), (images * positions, chunk * positions)
    kept = rows if keep else shared
    normed, stats = x.new_empty(kept, dim, dtype=low), x.new_empty(kept, 2)
    h, v = normed.new_empty(kept, 2 * hidden), normed.new_empty((rows, mixed) if keep else (0, 0))
    y = normed.new_empty(shared, hidden)
    branch = normed.new_empty(shared, dim) if is_low else None
    for first in range(0, images, chunk):
        count = min(chunk, images - first)
        part = slice(first * positions, (first + count) * positions)
        room = slice(0, count * positions)
        of_part = part if keep else room
        factors = None if drop is None else drop[first:]
        x_part, out_part = x[first:], out.view(-1, dim)[part]
        c.norm(
            NormCall(
                *(count, positions, dim, threads, epsilon, x_part.data_ptr()),
                *(norm_weight.data_ptr(), norm_bias.data_ptr(), fc2_bias.data_ptr()),
                *(_address(factors), normed[of_part].data_ptr(), stats[of_part].data_ptr()),
                out_part.data_ptr(),
            )
        )
        products.multiply(normed[of_part], fc1, h[of_part])  # without the bias: `gated` adds it
        _check(
            c.gated(
                _GatedCall(
                    *(count, height, width, hidden, mixed, threads),
                    *(weight.data_ptr(), conv_bias.data_ptr(), fc1_bias.data_ptr()),
                    *(None if is_low else _address(factors), h[of_part].data_ptr()),
                    *(y.data_ptr(), v[part].data_ptr() if keep else None),
                )
            )
        )
        if branch is None:
            # `norm` has written x + drop * bias.
            products.multiply(y[room], fc2, out_part, add=True)
        else:
            products.multiply(y[room], fc2, branch[room])
            c.joined(
                *(x_part.data_ptr(), branch.data_ptr(), fc2_bias.data_ptr(), _address(factors)),
                *(out_part.data_ptr(), count, positions, dim, threads),
            )
    if not keep:
        normed, stats, h, v = (x.new_empty(0) for _ in range(4))  # an operator's outputs differ
    return out, normed, stats, h, v


def forward_shapes(
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
    """Empty tensors with the shapes and types of what `forward` returns."""
    low = torch.bfloat16 if is_low else torch.float32
    out = x.new_empty(x.shape)
    if not keep:
        return out, x.new_empty(0), x.new_empty(0), x.new_empty(0), x.new_empty(0)
    rows = x.numel() // x.shape[-1]
    return (
        out,
        x.new_empty(rows, x.shape[-1], dtype=low),
        x.new_empty(rows, 2),
        x.new_empty(rows, fc1_weight.shape[0], dtype=low),
        x.new_empty(rows, conv_weight.shape[0], dtype=low),
    )


def backward(
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
    """The gradients of x and of the eight parameters, in `forward`'s order."""
    # Autocast may differ from the forward pass, which would change the types that C reads.
    with torch.autocast("cpu", enabled=False):
        low, is_low = h.dtype, h.dtype == torch.bfloat16
        c, products = _required(conv_weight, is_low), LowProducts() if is_low else Products()
        x, out_grad = x.contiguous(), out_grad.resolve_neg().contiguous()
        norm_weight, fc1_bias = norm_weight.contiguous(), fc1_bias.contiguous()
        images, height, width, dim = x.shape
        positions, hidden, mixed = height * width, fc2_weight.shape[1], conv_weight.shape[0]
        threads, weight = torch.get_num_threads(), _by_place(conv_weight)
        fc1 = products.factor(fc1_weight, turned=False)
        fc2 = products.factor(fc2_weight, turned=False)
        chunk = _chunk(images, positions * 2 * hidden * low.itemsize)
        rows = chunk * positions
        y_grad, y, h_grad, normed_grad = (
            normed.new_empty(rows, columns) for columns in (hidden, hidden, 2 * hidden, dim)
        )
        x_grad = torch.empty_like(x)
        conv_weight_grad = x.new_empty(images, *weight.shape)
        conv_bias_grad, fc1_bias_grad = x.new_empty(images, mixed), x.new_empty(images, 2 * hidden)
        of_norm = x.new_empty(3, images, dim)
        fc1_grad, fc2_grad = x.new_zeros(dim, 2 * hidden), x.new_zeros(dim, hidden)
        for first in range(0, images, chunk):
            count = min(chunk, images - first)
            part = slice(first * positions, (first + count) * positions)
            room = slice(0, count * positions)
            factors = None if drop is None else drop[first:]
            out_part = out_grad.view(-1, dim)[part]
            branch_grad = out_part.to(low)  # without the factor `drop`: C applies it
            products.multiply(branch_grad, fc2, y_grad[room])
            _check(
                c.gated(
                    _GatedCall(
                        *(count, height, width, hidden, mixed, threads),
                        *(weight.data_ptr(), None, fc1_bias.data_ptr(), _address(factors)),
                        *(h[part].data_ptr(), y.data_ptr(), v[part].data_ptr()),
                        *(y_grad.data_ptr(), h_grad.data_ptr()),
                        *(conv_weight_grad[first:].data_ptr(), conv_bias_grad[first:].data_ptr()),
                        fc1_bias_grad[first:].data_ptr(),
                    )
                )
            )
            products.add_outer(branch_grad, y[room], fc2_grad)
            products.multiply(h_grad[room], fc1, normed_grad[room])
            products.add_outer(normed[part], h_grad[room], fc1_grad)
            c.norm(
                NormCall(
                    *(count, positions, dim, threads, 0.0, x[first:].data_ptr()),
                    *(norm_weight.data_ptr(), None, None, _address(factors)),
                    *(normed_grad.data_ptr(), stats[part].data_ptr()),
                    *(x_grad[first:].data_ptr(), out_part.data_ptr()),
                    *(each[first:].data_ptr() for each in of_norm),
                )
            )
        norm_weight_grad, norm_bias_grad, fc2_bias_grad = (each.sum(0) for each in of_norm)
        conv_weight_grad = conv_weight_grad.sum(0).t().contiguous().view(conv_weight.shape)
        return [
            *(x_grad, norm_weight_grad, norm_bias_grad),
            *(products.turned(fc1_grad), fc1_bias_grad.sum(0)),
            *(conv_weight_grad, conv_bias_grad.sum(0), fc2_grad, fc2_bias_grad),
        ]


def backward_shapes(
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
    """Empty tensors with the shapes and types of what `backward` returns."""
    dim, mixed = fc2_weight.shape[0], conv_weight.shape[0]
    vectors = x.new_empty(dim), x.new_empty(dim)
    return [
        *(x.new_empty(x.shape), *vectors, x.new_empty(fc1_weight.shape)),
        *(x.new_empty(fc1_bias.shape), x.new_empty(conv_weight.shape), x.new_empty(mixed)),
        *(x.new_empty(fc2_weight.shape), x.new_empty(dim)),
    ]


def _chunk(images: int, image_bytes: int) -> int:
    """The number of images that a pass takes at a time; all chunks are about as large."""
    chunks = -(-images // max(1, CHUNK_BYTES // image_bytes))
    return -(-images // chunks)


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
