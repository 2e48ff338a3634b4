"""Python text that builds one of our networks with timm, and a check that executes the text.

timm's class takes a published shape by its name and other shapes by arguments. Its constructor has
no argument for the small stem and for hidden sizes that are rounded up; the text sets these
afterwards with timm's own parts. timm cannot build another token mixer: that is a ValueError.

Users copy the text, so the check executes that same text.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from mambaout.errors import WrongRequest
from mambaout.model.network import MambaOut
from mambaout.recipe import PIXEL_MEAN, PIXEL_STD, Recipe
from mambaout.variants import VARIANTS, ModelConfig

TOLERANCE = 1e-5  # of a logit, relative to the largest logit or to 1, whichever is larger
CHECKED_IMAGES = 2
CHECKED_SIDE = 224  # px at most, so that the check of a network for 2,048 px takes no minutes


def data_config(recipe: Recipe) -> dict[str, Any]:
    """The evaluation's preprocessing of an image, under timm's names."""
    return {
        "input_size": (3, recipe.image_size, recipe.image_size),
        "interpolation": "bicubic",
        "crop_pct": recipe.eval_crop,
        "mean": PIXEL_MEAN,
        "std": PIXEL_STD,
    }


def timm_code(recipe: Recipe, num_classes: int, weights: Path) -> str:
    """Python lines that set `model` to timm's network with these weights, and `transform` to the
    preprocessing of an image.

    A ValueError says why timm's class cannot build such a network.
    """
    imports, lines = _building(recipe.model, num_classes)
    config = ", ".join(f"{name}={value!r}" for name, value in data_config(recipe).items())
    return "\n".join(
        [
            *imports,
            "from timm.data import create_transform",
            "from timm.models import load_checkpoint",
            "",
            *lines,
            f"load_checkpoint(model, {str(weights)!r})",
            "model.eval()",
            f"transform = create_transform({config})",
            '# logits = model(transform(image.convert("RGB")).unsqueeze(0))',
        ]
    )


def _building(config: ModelConfig, num_classes: int) -> tuple[list[str], list[str]]:
    """The imports, and the lines that build the network with fresh weights."""
    if config.mixer != "gated_conv":
        raise WrongRequest(
            f"timm's MambaOut has no mixer={config.mixer!r}, only 'gated_conv': no call of timm's "
            "builds this network"
        )
    small_stem = ["model.stem.conv1.stride = (1, 1)  # stem_stride=2: timm has no argument for it"]
    after = small_stem if config.stem_stride == 2 else []
    for name, published in VARIANTS.items():
        if _computed(published) == _computed(config):
            call = f'model = timm.create_model("mambaout_{name}", num_classes={num_classes})'
            return ["import timm"], [call, *after]
    sizes = {dim: config.hidden(dim) for dim in config.dims}
    expansion = config.expansion if _gives(config.expansion, sizes) else _expansion(sizes)
    arguments = {"num_classes": num_classes, "depths": config.depths, "dims": config.dims}
    arguments |= {
        "kernel_size": config.kernel_size,
        "expansion_ratio": expansion or config.expansion,
        "conv_ratio": config.conv_ratio,
    }
    call = f"model = MambaOut({_arguments(arguments)})"
    if expansion is not None:
        return ["from timm.models.mambaout import MambaOut"], [call, *after]
    return (
        ["from timm.models.mambaout import MambaOut, MambaOutStage"],
        [call, *_stages(config), *after],
    )


def _computed(config: ModelConfig) -> tuple[Any, ...]:
    """Everything that the arguments of timm's class decide. If it is equal for two shapes, their
    networks are equal."""
    sizes = [(config.hidden(dim), config.conv_channels(dim)) for dim in config.dims]
    return (config.depths, config.dims, sizes, config.kernel_size, config.mixer)


def _stages(config: ModelConfig) -> list[str]:
    """One line for each stage, for hidden sizes that no single expansion gives."""
    lines = ["# hidden sizes are rounded up, which takes another expansion_ratio in each stage"]
    before = config.dims[0]
    for stage, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
        arguments: dict[str, Any] = {"depth": depth, "kernel_size": config.kernel_size}
        arguments["expansion_ratio"] = _expansion({dim: config.hidden(dim)})
        arguments["conv_ratio"] = config.conv_ratio
        if stage > 0:
            arguments["downsample"] = "conv"
        lines.append(
            f"model.stages[{stage}] = MambaOutStage({before}, {dim}, {_arguments(arguments)})"
        )
        before = dim
    return lines


def _arguments(values: dict[str, Any]) -> str:
    """The text of a call's arguments, without those that equal timm's defaults."""
    defaults = {"kernel_size": 7, "expansion_ratio": 8 / 3, "conv_ratio": 1.0}
    return ", ".join(f"{n}={v!r}" for n, v in values.items() if defaults.get(n) != v)


def _gives(expansion: float, sizes: dict[int, int]) -> bool:
    return all(int(expansion * dim) == hidden for dim, hidden in sizes.items())


def _expansion(sizes: dict[int, int]) -> float | None:
    """The shortest expansion that gives every width its hidden size; None if there is none."""
    low = max(hidden / dim for dim, hidden in sizes.items())
    high = min((hidden + 1) / dim for dim, hidden in sizes.items())
    candidates = (round((low + high) / 2, digits) for digits in range(1, 10))
    return next((number for number in candidates if _gives(number, sizes)), None)


def check(code: str, model: MambaOut, image_size: int) -> str:
    """Execute `code` and compare its network's logits with those of `model`; returns a sentence
    with the result.

    `image_size` is in pixels. Raises ValueError if the logits differ by more than rounding.
    """
    try:
        import timm
    except ImportError as error:
        return f"not checked: timm cannot be imported ({error})"
    made: dict[str, Any] = {}
    exec(compile(code, "the call of timm's", "exec"), made)
    side = min(image_size, CHECKED_SIDE)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        images = torch.randn(CHECKED_IMAGES, 3, side, side)
        ours, theirs = model.eval()(images), made["model"](images)
    largest = float(ours.abs().max())
    apart = float((ours - theirs).abs().max())
    if not math.isfinite(largest):
        raise WrongRequest("the weights give logits that are not finite")
    if not apart <= TOLERANCE * max(1.0, largest):
        raise WrongRequest(
            f"timm {timm.__version__} computes something else with these weights: its logits "
            f"differ by up to {apart:.2g}, where the largest is {largest:.2g}"
        )
    return (
        f"checked: timm {timm.__version__} runs these lines, loads every tensor, and its logits "
        f"differ from ours by at most {apart:.1g} of {largest:.2g} "
        f"({CHECKED_IMAGES} random images of {side} px)"
    )
