"""Python text that builds one of our networks with timm, and a check that executes the text.

The network is the classifier, or the four stages' maps without a head.

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
from mambaout.model.network import MambaOut, Trunk
from mambaout.recipe import PIXEL_MEAN, PIXEL_STD, Recipe
from mambaout.variants import TIMM_VALUES, VARIANTS, ModelConfig

OURS = "`mambaout evaluate` and --init read its run"
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


def timm_features_code(config: ModelConfig, weights: Path) -> str:
    """Python lines that set `model` to timm's network of the four stages' maps, by its name.

    A ValueError says why timm cannot build such a network.
    """
    _require_timms(config)
    arguments: dict[str, Any] = {}
    name = next((n for n, known in VARIANTS.items() if _computed(known) == _computed(config)), None)
    if name is None:
        name, arguments = "femto", _sizes(config)
        if arguments["expansion_ratio"] is None:
            raise WrongRequest(
                f"hidden_multiple={config.hidden_multiple} gives the stages other ratios of hidden "
                "channels, and timm's features_only has one ratio; export without --features, and "
                "call model.forward_intermediates"
            )
    # timm loads a file before it takes the stages apart only if the file is the pretrained one.
    arguments |= {
        "features_only": True,
        "pretrained": True,
        "pretrained_cfg_overlay": {"file": str(weights)},
    }
    lines = [
        "import timm",
        "",
        f'model = timm.create_model("mambaout_{name}", {_arguments(arguments)})',
    ]
    if config.stem_stride == 2:
        lines.append(
            'model["stem"].conv1.stride = (1, 1)  # stem_stride=2: the strides of feature_info are '
            "half of what it says"
        )
    return "\n".join(
        [
            *lines,
            "model.eval()",
            "# maps = model(images)  # normalised (B, 3, H, W) -> four maps (B, H, W, C)",
        ]
    )


def _require_timms(config: ModelConfig) -> None:
    for name in config.not_in_timm:
        raise WrongRequest(
            f"timm's MambaOut has no {name}={getattr(config, name)!r}, only {TIMM_VALUES[name]!r}: "
            f"no call of timm's builds this network; {OURS}"
        )


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """The arguments of timm's class for the shape; expansion_ratio is None if there is no single
    one."""
    sizes = {dim: config.hidden(dim) for dim in config.dims}
    expansion = config.expansion if _gives(config.expansion, sizes) else _expansion(sizes)
    return {
        "depths": config.depths,
        "dims": config.dims,
        "kernel_size": config.kernel_size,
        "expansion_ratio": expansion,
        "conv_ratio": config.conv_ratio,
    }


def _building(config: ModelConfig, num_classes: int) -> tuple[list[str], list[str]]:
    """The imports, and the lines that build the network with fresh weights."""
    _require_timms(config)
    small_stem = ["model.stem.conv1.stride = (1, 1)  # stem_stride=2: timm has no argument for it"]
    after = small_stem if config.stem_stride == 2 else []
    for name, published in VARIANTS.items():
        if _computed(published) == _computed(config):
            call = f'model = timm.create_model("mambaout_{name}", num_classes={num_classes})'
            return ["import timm"], [call, *after]
    arguments = {"num_classes": num_classes, **_sizes(config)}
    expansion = arguments["expansion_ratio"]
    arguments["expansion_ratio"] = expansion or config.expansion
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


def check(code: str, model: Trunk, image_size: int) -> str:
    """Execute `code` and compare what its network computes with what `model` does: logits, or maps
    if `model` has no head. Returns a sentence with the result.

    `image_size` is in pixels. Raises ValueError if they differ by more than rounding.
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
        theirs = made["model"](images)
        model.eval()
        if isinstance(model, MambaOut):
            what, ours, theirs = "logits", [model(images)], [theirs]
        else:
            what, ours = "maps", model.forward_pyramid(images)
    # torch's maximum of numbers with a nan is nan; Python's need not be.
    largest = float(torch.stack([each.abs().max() for each in ours]).max())
    pairs = zip(ours, theirs, strict=True)
    apart = float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())
    if not math.isfinite(largest):
        raise WrongRequest(f"the weights give {what} that are not finite")
    if not apart <= TOLERANCE * max(1.0, largest):
        raise WrongRequest(
            f"timm {timm.__version__} computes something else with these weights: its {what} "
            f"differ by up to {apart:.2g}, where the largest is {largest:.2g}"
        )
    return (
        f"checked: timm {timm.__version__} runs these lines, loads every tensor, and its {what} "
        f"differ from ours by at most {apart:.1g} of {largest:.2g} "
        f"({CHECKED_IMAGES} random images of {side} px)"
    )
