"""Decides whether C may replace torch's operations. norm.py and gated_block.py ask before a call.

C reads plain memory and computes one fixed formula. Code that watches torch's operations does not
see a call of C.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

_PLAIN: tuple[type, ...] = (Tensor, nn.Parameter)


def can_read(tensor: Any) -> bool:
    """Whether C can read `tensor` as plain memory of this process.

    It cannot read a subclass, the placeholder of a tracer, or another device or layout.
    """
    return (
        type(tensor) in _PLAIN
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and (torch.compiler.is_compiling() or not tensor.is_neg())
    )


def is_watched() -> bool:
    """Whether some code watches each of torch's operations: an export, a trace, a dispatch mode
    like FlopCounterMode, torch.func, or derivatives in forward mode."""
    if torch.compiler.is_compiling():
        return torch.compiler._is_exporting_flag  # Dynamo takes `is_exporting()` for true anywhere
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def is_as_built(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module is exactly of the class `kind`, unchanged, and has no hooks."""
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or _has_any_global_hook()
        )
    )
