"""The network's blocks, norms, convolutions and activations written in XLA's own instructions.

    operations = registered(register)  # torch_xla.core.xla_op_registry.register
    use_in(network, operations)

torch_xla writes them with about twice as many instructions: a convolution is transposed to channels
first and back, its bias is broadcast and transposed, each sum of tensors has a factor of 1, a mean
divides by a size that is computed in the graph. Each operation here is recorded as one, and has a
backward pass of its own; xla_instructions.py builds it. The results are those of torch's modules,
up to rounding.

In fp32 every product is asked to be in fp32. torch_xla asks that only of the forward convolutions;
a TPU would multiply in bf16 in their backward passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mambaout.model.mixers import MapConv
from mambaout.model.network import GatedCNNBlock
from mambaout.train import xla_instructions as xla

Operation = Callable[..., Any]  # of tensors, to a tensor or a list of them
Register = Callable[[str, Callable[..., Any]], Operation]
FUNCTIONS = (
    *(xla.norm, xla.norm_backward, xla.conv, xla.conv_backward, xla.gelu, xla.gelu_backward),
    *(xla.gate, xla.gate_backward, xla.join, xla.join_backward, xla.adamw),
)


def use_in(network: nn.Module, operations: dict[str, Operation]) -> None:
    """Make the network's modules use the operations, in place."""
    whole = set[nn.Module]()  # the parts of blocks that are computed in one
    for module in network.modules():
        forward = None
        if module in whole:
            continue
        if isinstance(module, GatedCNNBlock) and module.weights() is not None:
            forward = functools.partial(_block, operations, module)
            whole.update(module.modules())
        elif isinstance(module, nn.LayerNorm) and _is_usual_norm(module):
            forward = functools.partial(_normed, operations, module)
        elif isinstance(module, MapConv) and _is_usual_conv(module):
            forward = functools.partial(_convolved, operations, module)
        elif isinstance(module, nn.GELU) and module.approximate == "none":
            forward = functools.partial(_activated, operations)
        if forward is not None:
            setattr(module, "forward", forward)  # noqa: B010


@functools.cache
def registered(register: Register) -> dict[str, Operation]:
    """The operations by name."""
    return {each.__name__: register(f"mambaout_{each.__name__}", each) for each in FUNCTIONS}


def _is_usual_norm(module: nn.LayerNorm) -> bool:
    return len(module.normalized_shape) == 1 and module.bias is not None


def _is_usual_conv(module: MapConv) -> bool:
    return (
        (module.groups == 1 or module.groups == module.in_channels == module.out_channels)
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.bias is not None
    )


def _block(
    operations: dict[str, Operation], block: GatedCNNBlock, x: Tensor, scale: Tensor | None
) -> Tensor:
    """What GatedCNNBlock.forward computes: x (B, H, W, dim) and `scale` (B,) to (B, H, W, dim)."""
    weights = block.weights()
    if weights is None:  # since the network was moved, a part was replaced or has got a hook
        return type(block).forward(block, x, scale)
    of_norm, fc1, of_conv, fc2 = weights[:2], weights[2:4], weights[4:6], weights[6:]
    normed: Any = _XlaNorm.apply(operations, x, *of_norm, block.norm.eps)
    h = F.linear(normed, fc1[0])  # (B, H, W, 2 hidden), without the bias: `gate` adds it
    y: Any = _XlaGate.apply(operations, h, fc1[1], *of_conv)
    joined: Any = _XlaJoin.apply(operations, x, F.linear(y, fc2[0]), fc2[1], scale)
    return joined


def _normed(operations: dict[str, Operation], module: nn.LayerNorm, x: Tensor) -> Tensor:
    """In fp32, like under CUDA's autocast."""
    normed: Any = _XlaNorm.apply(operations, x, module.weight, module.bias, module.eps)
    return normed


def _convolved(operations: dict[str, Operation], module: MapConv, x: Tensor) -> Tensor:
    if torch.is_autocast_enabled("xla"):
        x = x.to(torch.get_autocast_dtype("xla"))
    settings = (module.stride, module.padding, module.groups)
    convolved: Any = _XlaConvolution.apply(operations, x, module.weight, module.bias, settings)
    return convolved


def _activated(operations: dict[str, Operation], x: Tensor) -> Tensor:
    activated: Any = _XlaGelu.apply(operations, x)
    return activated


class _XlaNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operations: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> Tensor:
        normed, mean, deviation = operations["norm"](x, weight, bias, epsilon=epsilon)
        ctx.operations = operations
        ctx.save_for_backward(x, weight, mean, deviation)
        return normed

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return None, *ctx.operations["norm_backward"](grad, *ctx.saved_tensors), None


class _XlaConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operations: Any, x: Tensor, weight: Tensor, bias: Tensor, settings: Any
    ) -> Tensor:
        ctx.operations, ctx.settings = operations, settings
        ctx.save_for_backward(x, weight)
        return operations["conv"](x, weight, bias, settings=settings)

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        of_x = ctx.needs_input_grad[1]  # an image has no gradient
        grads = ctx.operations["conv_backward"](
            grad, *ctx.saved_tensors, settings=ctx.settings, of_x=of_x
        )
        return None, *(() if of_x else (None,)), *grads, None


class _XlaGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operations: Any, x: Tensor) -> Tensor:
        ctx.operations = operations
        ctx.save_for_backward(x)
        return operations["gelu"](x)

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return None, ctx.operations["gelu_backward"](grad, *ctx.saved_tensors)


class _XlaGate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operations: Any, h: Tensor, bias: Tensor, weight: Tensor, conv_bias: Tensor
    ) -> Tensor:
        y, v = operations["gate"](h, bias, weight, conv_bias)
        ctx.operations = operations
        ctx.save_for_backward(h, bias, weight, v)
        return y

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return None, *ctx.operations["gate_backward"](grad, *ctx.saved_tensors)


class _XlaJoin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operations: Any, x: Tensor, branch: Tensor, bias: Tensor, scale: Tensor | None
    ) -> Tensor:
        ctx.operations, ctx.kind = operations, branch.dtype
        scales = () if scale is None else (scale,)
        ctx.save_for_backward(*scales)
        return operations["join"](x, branch, bias, *scales)

    @staticmethod
    @once_differentiable
    # The type of once_differentiable has only positional arguments.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        kind = "bf16" if ctx.kind == torch.bfloat16 else "f32"
        of_branch, of_bias = ctx.operations["join_backward"](grad, *ctx.saved_tensors, kind=kind)
        return None, grad, of_branch, of_bias, None
