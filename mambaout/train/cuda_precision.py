"""How a GPU multiplies: which precisions it has units for, and torch's settings for them.

By default torch 2.9 multiplies fp32 matrices in fp32, but it convolves in TF32, with ten bits of
mantissa. Here fp32 means fp32 in both, and tf32 means TF32 in both.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

LEAST_CAPABILITY = (8, 0)  # Ampere: the first GPUs with units for bf16 and TF32


def set_products(tf32: bool) -> None:
    """Compute the fp32 products of this process's GPUs in TF32, or in fp32; matrices and
    convolutions alike.

    Torch has an older and a newer name for each setting. TorchInductor reads the older ones, and
    they raise an error where the two disagree (pytorch/pytorch#166387). So both are set.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API", UserWarning)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    cudnn: Any = torch.backends.cudnn
    for kind in (cudnn.conv, cudnn.rnn):  # the older name covers both, so they must agree
        kind.fp32_precision = "tf32" if tf32 else "ieee"


def why_not(precision: str, device: str, capability: tuple[int, int]) -> str | None:
    """Why a GPU of this compute capability does not train in `precision`; None if it does."""
    if precision == "fp32" or capability >= LEAST_CAPABILITY:
        return None
    return (
        f"precision={precision} on {device}: its compute capability is "
        f"{'.'.join(map(str, capability))}, and units for {precision} begin with 8.0; "
        "give --precision fp32"
    )
