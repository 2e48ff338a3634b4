"""What a network and a run cost, in closed form: parameters, MACs, activations, MFU, training MACs.

    cost(variant("tiny")).macs  # 4,469,655,744
    print(account_table({"tiny": variant("tiny")}))

Pure values: no torch, no I/O, so that a study is priced before anything is built. MACs are the
multiply-adds of convolutions and linears; norms, activations, biases and sums are not counted,
as in the paper (Table 4) and in torch's FlopCounterMode. Activations are the elements that
convolutions and linears put out, which is what timm's benchmark files list (Tiny: 16.68 M).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mambaout.chips import Chip
from mambaout.errors import WrongRequest
from mambaout.recipe import Recipe, steps_per_epoch
from mambaout.variants import ALIGNMENT, ModelConfig

IMAGE_CHANNELS = 3
HEAD_EXPANSION = 4  # hidden size of the classifier head / channels of the last stage
TRAIN_FORWARDS = 3  # a training step: forward, gradient of the inputs, gradient of the weights
FLOP_PER_MAC = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters; multiply-adds and output elements of one image, one forward."""

    params: int = 0
    macs: int = 0
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.macs + other.macs,
            self.activations + other.activations,
        )

    def times(self, count: int) -> Cost:
        return Cost(self.params * count, self.macs * count, self.activations * count)


def _conv(channels_in: int, channels_out: int, kernel: int, side: int, groups: int = 1) -> Cost:
    """A convolution whose output is `side` x `side`."""
    weights = channels_in // groups * channels_out * kernel**2
    return Cost(weights + channels_out, weights * side**2, channels_out * side**2)


def _linear(channels_in: int, channels_out: int, positions: int = 1) -> Cost:
    weights = channels_in * channels_out
    return Cost(weights + channels_out, weights * positions, channels_out * positions)


def _norm(channels: int) -> Cost:
    return Cost(params=2 * channels)


def _halved(side: int) -> int:
    """Output side of a 3 x 3 convolution of stride 2, padding 1."""
    return (side + 1) // 2


def sides(config: ModelConfig, image_size: int) -> tuple[int, ...]:
    """Sides of the maps on a square image: inside the stem, then of the four stages."""
    found = [_halved(image_size) if config.stem_stride == 4 else image_size]
    for _ in config.dims:
        found.append(_halved(found[-1]))
    return tuple(found)


def _depthwise_conv_cost(channels: int, side: int, config: ModelConfig) -> Cost:
    return _conv(channels, channels, config.kernel_size, side, groups=channels)


# (channels, side of the map, config) -> cost, for every mixer that model/mixers.py builds
MIXER_COSTS: dict[str, Callable[[int, int, ModelConfig], Cost]] = {
    "gated_conv": _depthwise_conv_cost,
}


def _block(dim: int, side: int, config: ModelConfig) -> Cost:
    hidden = config.hidden(dim)
    return (
        _norm(dim)
        + _linear(dim, 2 * hidden, side**2)
        + MIXER_COSTS[config.mixer](config.conv_channels(dim), side, config)
        + _linear(hidden, dim, side**2)
    )


def parts(
    config: ModelConfig, image_size: int = 224, num_classes: int = 1000
) -> list[tuple[str, Cost]]:
    """The network's cost part by part, in forward order, named as its modules are."""
    if image_size < 1 or num_classes < 1:
        raise WrongRequest(f"image_size={image_size}, num_classes={num_classes}: give 1 or more")
    dims, (inside, *stages) = config.dims, sides(config, image_size)
    first = _conv(IMAGE_CHANNELS, dims[0] // 2, 3, inside) + _norm(dims[0] // 2)
    found = [("stem", first + _conv(dims[0] // 2, dims[0], 3, stages[0]) + _norm(dims[0]))]
    for stage, (dim, depth, side) in enumerate(zip(dims, config.depths, stages, strict=True)):
        if stage > 0:
            downsample = _conv(dims[stage - 1], dim, 3, side) + _norm(dim)
            found.append((f"stages.{stage}.downsample", downsample))
        found.append((f"stages.{stage}.blocks", _block(dim, side, config).times(depth)))
    hidden = HEAD_EXPANSION * dims[-1]
    head = _norm(dims[-1]) + _linear(dims[-1], hidden) + _norm(hidden)
    found.append(("head", head + _linear(hidden, num_classes)))
    return found


def cost(config: ModelConfig, image_size: int = 224, num_classes: int = 1000) -> Cost:
    """What the whole network costs on square images of `image_size` px."""
    total = Cost()
    for _, part in parts(config, image_size, num_classes):
        total += part
    return total


def train_macs(recipe: Recipe, num_train: int, num_classes: int) -> int:
    """MACs of the whole training run, forward and backward, evaluations left out."""
    images = recipe.schedule.total_epochs * steps_per_epoch(recipe, num_train) * recipe.global_batch
    return TRAIN_FORWARDS * images * cost(recipe.model, recipe.image_size, num_classes).macs


def alignment(config: ModelConfig, multiple: int = ALIGNMENT) -> list[tuple[str, int]]:
    """The widths and hidden sizes that are no multiple of `multiple`, with where they are.

    8 suits tensor cores and vector units. A TPU's matrix unit pads channels to 128: ask for 128 to
    see what it pads; small networks cannot meet that, and large ones gain from it.
    """
    sizes = [(f"stages.{i} width", dim) for i, dim in enumerate(config.dims)]
    sizes += [(f"stages.{i} hidden", config.hidden(dim)) for i, dim in enumerate(config.dims)]
    return [(where, size) for where, size in sizes if size % multiple]


def matrix_unit_use(
    config: ModelConfig, image_size: int = 224, num_classes: int = 1000, unit: int = 128
) -> float:
    """The share of a matrix unit's multiply-adds that are the network's, 0 to 1.

    A unit of `unit` rows and columns, 128 in a TPU, takes the channels that come in and go out in
    whole multiples of it; the images and positions that stream through it fill it. The backward
    pass has the same share: it has the same products, transposed. A convolution counts once for
    each place of its kernel; a compiler that joins places and colours in the stem does better.
    Depthwise convolutions, 1.5 to 4.5 % of the MACs, have no channels to
    sum over and are left out.
    """
    dims, (inside, *stages) = config.dims, sides(config, image_size)
    products = [  # (how often, channels in, channels out)
        (9 * inside**2, IMAGE_CHANNELS, dims[0] // 2),
        (9 * stages[0] ** 2, dims[0] // 2, dims[0]),
        (1, dims[-1], HEAD_EXPANSION * dims[-1]),
        (1, HEAD_EXPANSION * dims[-1], num_classes),
    ]
    for stage, (dim, depth, side) in enumerate(zip(dims, config.depths, stages, strict=True)):
        hidden = config.hidden(dim)
        if stage > 0:
            products.append((9 * side**2, dims[stage - 1], dim))
        products.append((depth * side**2, dim, 2 * hidden))
        products.append((depth * side**2, hidden, dim))
    used = sum(count * into * out for count, into, out in products)
    slots = sum(
        count * math.ceil(into / unit) * math.ceil(out / unit) for count, into, out in products
    )
    return used / (slots * unit**2)


def mfu(
    macs: int, images_per_second: float, chip: Chip | None, precision: str, num_devices: int = 1
) -> float | None:
    """Model FLOP/s utilisation in training, 0 to 1; None where the peak is not known.

    `macs` of one image, one forward; `images_per_second` over all `num_devices` devices, which on
    TPU v2 and v3 are cores. A training step is counted as three forwards, recomputation not.
    """
    if chip is None or precision not in chip.peak_flops:
        return None
    peak = chip.peak_flops[precision] / chip.cores * num_devices
    return FLOP_PER_MAC * TRAIN_FORWARDS * macs * images_per_second / peak


# -- text -----------------------------------------------------------------------------------------


def account_table(
    shapes: Mapping[str, ModelConfig], image_size: int = 224, num_classes: int = 1000
) -> str:
    """What each shape costs, a line each, for a terminal; unaligned sizes are named below."""
    rows = [("variant", "depths", "dims", "parameters", "MACs", "activations")]
    notes = []
    for name, config in shapes.items():
        total = cost(config, image_size, num_classes)
        depths, dims = (",".join(map(str, sizes)) for sizes in (config.depths, config.dims))
        params, macs, outputs = (f"{n:,}" for n in (total.params, total.macs, total.activations))
        rows.append((name, depths, dims, params, macs, outputs))
        if unaligned := [f"{where} {size}" for where, size in alignment(config)]:
            notes.append(f"{name}: slow sizes, no multiples of {ALIGNMENT}: {', '.join(unaligned)}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        f"{image_size} px, {num_classes:,} classes; MACs and activations of one image, forward"
    ]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(texts + numbers))
    return "\n".join(lines + notes)
