"""LayerNorm over the channels; in C on a CPU if there are few channels and many places.

torch's kernel runs along the channels of one place, so 4 channels take as long as 16. In the
smallest networks that was a third of a training step.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mambaout.model.c_calls import can_read, is_watched
from mambaout.native import LONG, POINTER, CFile, function

SOURCE = Path(__file__).with_name("norm.c")
MOST_CHANNELS = 32  # with more channels torch's LayerNorm is as fast
FLAGS = ("-fopenmp", "-ffp-contract=fast", "-Wno-psabi", "-Wno-unused-function")


class NormCall(ctypes.Structure):
    """The argument of norm.c, with the names of its `struct norm`: addresses, or 0 for none."""

    _fields_ = [
        *((name, LONG) for name in ("images", "positions", "channels", "threads")),
        ("epsilon", ctypes.c_double),
        *((name, POINTER) for name in ("x", "weight", "shift", "bias", "drop", "normed")),
        *((name, POINTER) for name in ("stats", "out", "out_grad")),
        *((name, POINTER) for name in ("weight_grad", "shift_grad", "bias_grad")),
    ]


def norm_file(is_low: bool) -> CFile:
    """norm.c with its output in bf16 (`is_low`) or fp32."""
    return CFile(SOURCE, (*FLAGS, f"-DLOW={int(is_low)}"))


@functools.cache
def norm_function(is_low: bool) -> Any:
    """`norm` of norm.c, or None if C cannot run here."""
    return function(norm_file(is_low), "norm", [ctypes.POINTER(NormCall)])


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm of maps (B, H, W, channels), but faster for few channels."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if (
            not torch.compiler.is_compiling()
            and can_read(weight)
            and weight.numel() <= MOST_CHANNELS
            and can_read(bias)
            and can_read(input)
            and input.dtype == weight.dtype == bias.dtype == torch.float32
            and input.ndim == 4
            and input.numel() > 0
            and input.shape[3:] == weight.shape == bias.shape
            and not is_watched()
            and norm_function(False) is not None
        ):
            normed: Any = _Norm.apply(input, weight, bias, self.eps)
            return normed
        return super().forward(input)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor, epsilon: float) -> Tensor:
        x, weight, shift = x.contiguous(), weight.contiguous(), shift.contiguous()
        images, height, width, channels = x.shape
        normed, stats = torch.empty_like(x), x.new_empty(images * height * width, 2)
        call = NormCall(images, height * width, channels, torch.get_num_threads(), epsilon)
        call.x, call.weight, call.shift = x.data_ptr(), weight.data_ptr(), shift.data_ptr()
        call.normed, call.stats = normed.data_ptr(), stats.data_ptr()
        norm_function(False)(call)
        ctx.save_for_backward(x, weight, stats)
        return normed

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, stats = ctx.saved_tensors
        grad = grad.resolve_neg().contiguous()
        images, height, width, channels = x.shape
        x_grad, sums = torch.empty_like(x), x.new_empty(2, images, channels)
        call = NormCall(images, height * width, channels, torch.get_num_threads())
        call.x, call.weight, call.stats = x.data_ptr(), weight.data_ptr(), stats.data_ptr()
        call.normed, call.out = grad.data_ptr(), x_grad.data_ptr()
        call.weight_grad, call.shift_grad = (each.data_ptr() for each in sums)
        norm_function(False)(call)
        weight_grad, shift_grad = sums.sum(1)
        return x_grad, weight_grad, shift_grad, None
