"""Resizing and pooling of maps as two products with constant matrices, one for each side.

    resized(maps, (128, 128))  # as F.interpolate(..., mode="bilinear", align_corners=False)
    pooled(maps, 6)            # as F.adaptive_avg_pool2d(maps, 6)

On XLA the pooling to 3 and 6 and the gradient of the resizing fall back to the CPU, in each step.
Products do not: they are exact, have fixed shapes, and run on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mambaout.model.mixers import nchw, nhwc


def resize_matrix(size_in: int, size_out: int, device: torch.device) -> Tensor:
    """(size_out, size_in): the weights of the places from which each new place is interpolated."""
    centres = torch.arange(size_out, device=device) + 0.5
    source = (centres * (size_in / size_out) - 0.5).clamp(0, size_in - 1)
    apart = source[:, None] - torch.arange(size_in, device=device)
    return (1 - apart.abs()).clamp(min=0)


def pool_matrix(size_in: int, bins: int, device: torch.device) -> Tensor:
    """(bins, size_in): the weights of the places whose mean each bin is; bins may overlap."""
    bounds = torch.arange(bins + 1, device=device) * size_in
    start, end = bounds[:-1] // bins, -(-bounds[1:] // bins)
    place = torch.arange(size_in, device=device)
    inside = (place >= start[:, None]) & (place < end[:, None])
    return inside / (end - start)[:, None]


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), bilinear."""
    height, width = x.shape[-2:]
    rows = resize_matrix(height, size[0], x.device)
    return product(x, rows, resize_matrix(width, size[1], x.device))


def pooled(x: Tensor, bins: int) -> Tensor:
    """(B, C, H, W) -> (B, C, bins, bins): the means of equal parts of the map."""
    height, width = x.shape[-2:]
    return product(x, pool_matrix(height, bins, x.device), pool_matrix(width, bins, x.device))


def product(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows` (H', H) and `columns` (W', W) times (B, C, H, W): (B, C, H', W'), in memory channels
    last."""
    x = nhwc(x)  # (B, H, W, C)
    x = (rows.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])  # (B, H', W, C)
    return nchw(columns.to(x.dtype) @ x)  # (B, C, H', W')
