"""Where C may do what torch's operations do: norm.py and gated_block.py ask before they call it.

C reads plain memory, knows one formula, and is seen by nobody who watches torch's operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

_PLAIN: tuple[type, ...] = (Tensor, nn.Parameter)


def can_read(tensor: Any) -> bool:
    """Whether `tensor` is memory of this process: no subclass, no stand-in of a tracer, no other
    device or layout."""
    return (
        type(tensor) in _PLAIN
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and (torch.compiler.is_compiling() or not tensor.is_neg())
    )


def is_watched() -> bool:
    """Whether something takes torch's operations one by one: an export, a trace, a dispatch mode
    such as FlopCounterMode, torch.func, or derivatives in forward mode."""
    if torch.compiler.is_compiling():
        return torch.compiler._is_exporting_flag  # Dynamo takes `is_exporting()` for true anywhere
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def is_as_built(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module does what its class says, and nobody listens to it."""
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
