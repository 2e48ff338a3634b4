"""MambaOut as a Ray-distributed hyper-parameter and scaling study (arXiv 2405.07992)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mambaout.recipe import BASELINE, Recipe
from mambaout.variants import VARIANTS, ModelConfig

if TYPE_CHECKING:
    from mambaout.model.network import build

__version__ = "0.6.0"  # the only place that holds the version

__all__ = ["BASELINE", "VARIANTS", "ModelConfig", "Recipe", "build"]


def __getattr__(name: str) -> Any:
    # `build` is imported on first use: to list, price or report a study must not import torch.
    if name == "build":
        from mambaout.model.network import build

        return build
    raise AttributeError(f"module 'mambaout' has no attribute {name!r}")
