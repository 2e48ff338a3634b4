"""What is computed in fp32, also under autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available


def in_fp32(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`compute(x)` in fp32.

    A box of 1,000 px has its corners to 4 px in bf16. What boxes, scores and logits are computed
    from is therefore in fp32; it is a small part of the work.
    """
    device = x.device.type
    if is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return compute(x.float())
    return compute(x)
