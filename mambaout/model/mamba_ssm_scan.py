"""The selective scan by the package mamba_ssm, on CUDA and where the package is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from mambaout.model.odd_even import ScanInputs, in_scan_order, placed

MOST_STATES = 256  # of its kernel


def can_take(inputs: ScanInputs) -> bool:
    """Whether `mamba_ssm_scan` works here."""
    is_small = inputs.decay.shape[-1] <= MOST_STATES
    return inputs.x.is_cuda and is_small and selective_scan_fn() is not None


@functools.cache
def selective_scan_fn() -> Callable[..., Tensor] | None:
    """mamba_ssm's function of that name, or None if the package cannot be imported."""
    try:
        # To install the package, one needs a compiler for CUDA. So few machines have it.
        from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore[reportMissingImports]
            selective_scan_fn,
        )
    except ImportError:
        return None
    return selective_scan_fn


def mamba_ssm_scan(
    function: Callable[..., Tensor], inputs: ScanInputs, size: tuple[int, int]
) -> Tensor:
    """The sum over directions (B, L, D), by `selective_scan_fn`: a group for each direction."""
    x, step, decay, into, out_of = in_scan_order(inputs, size)
    directions, images, length, channels = step.shape
    grouped = (images, directions * channels, length)
    x, step = (each.permute(1, 0, 3, 2).reshape(grouped) for each in (x, step))
    into, out_of = (each.permute(1, 0, 3, 2).contiguous() for each in (into, out_of))
    out = function(x, step, decay.flatten(0, 1).contiguous(), into, out_of)
    return placed(out.unflatten(1, (directions, channels)).permute(1, 0, 3, 2), size).sum(0)
