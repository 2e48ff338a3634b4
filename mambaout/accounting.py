"""Closed-form costs of a network and a run: parameters, MACs, activations, MFU, training MACs.

    cost(variant("tiny")).macs  # 4,469,655,744
    print(account_table({"tiny": variant("tiny")}))

Pure values: no torch, no I/O. A study is therefore priced before anything is built.

MACs are the multiply-adds of convolutions, linear layers, attention and scans. Norms, activation
functions, biases and sums are not counted; the paper (Table 4) and torch's FlopCounterMode count
the same way. Activations are the output elements of convolutions and linear layers. timm's
benchmark files list the same number (Tiny: 16.68 M).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mambaout.chips import Chip
from mambaout.layer_kinds import Layer
from mambaout.layers import ImageSize, layers, size_text
from mambaout.recipe import Recipe, steps_per_epoch
from mambaout.variants import ALIGNMENT, ModelConfig

TRAIN_FORWARDS = 3  # a training step: forward, gradient of the inputs, gradient of the weights
FLOP_PER_MAC = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters, and the multiply-adds and output elements of one image in one forward pass."""

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


def parts(
    config: ModelConfig, image_size: ImageSize = 224, num_classes: int = 1000
) -> list[tuple[str, Cost]]:
    """The cost of each part of the network, in forward order, with the part's module name."""
    return [
        (part.name, cost_of(part.layers.values()).times(part.times))
        for part in layers(config, image_size, num_classes)
    ]


def cost_of(of_one: Iterable[Layer]) -> Cost:
    """The cost of these layers, each once."""
    params = macs = activations = 0
    for layer in of_one:
        params += layer.params
        macs += layer.macs
        activations += layer.activations
    return Cost(params, macs, activations)


@functools.lru_cache(maxsize=4096)  # a study has few shapes, and asks for them once a recipe
def cost(config: ModelConfig, image_size: ImageSize = 224, num_classes: int = 1000) -> Cost:
    """The cost of the whole network; `image_size` is one side or (height, width), in pixels."""
    total = Cost()
    for _, part in parts(config, image_size, num_classes):
        total += part
    return total


def least_macs(config: ModelConfig, image_size: ImageSize = 224, num_classes: int = 1000) -> int:
    """The network's MACs, where a scan counts only the multiplications of its recurrence.

    The MACs of `cost` count 9 for each position, channel and number of a scan's state, as VMamba's
    tables do. The recurrence itself has 4. Without a scan the two are equal.
    """
    return sum(
        part.times * sum(layer.least_macs for layer in part.layers.values())
        for part in layers(config, image_size, num_classes)
    )


def train_macs(recipe: Recipe, num_train: int, num_classes: int) -> int:
    """MACs of the whole training run, forward and backward, without evaluations."""
    images = recipe.schedule.total_epochs * steps_per_epoch(recipe, num_train) * recipe.global_batch
    return TRAIN_FORWARDS * images * cost(recipe.model, recipe.image_size, num_classes).macs


def alignment(config: ModelConfig, multiple: int = ALIGNMENT) -> list[tuple[str, int]]:
    """The widths and hidden sizes that are not a multiple of `multiple`: (place, size) each.

    8 suits tensor cores and vector units. A TPU's matrix unit pads channels to a multiple of 128;
    `multiple=128` shows which sizes it pads. Small networks cannot avoid that padding. Large
    networks run faster without it.
    """
    sizes = [(f"stages.{i} width", dim) for i, dim in enumerate(config.dims)]
    sizes += [(f"stages.{i} hidden", config.hidden(dim)) for i, dim in enumerate(config.dims)]
    return [(where, size) for where, size in sizes if size % multiple]


def matrix_unit_use(
    config: ModelConfig, image_size: ImageSize = 224, num_classes: int = 1000, unit: int = 128
) -> float:
    """The share of a matrix unit's multiply-adds that the network uses, 0 to 1.

    The unit has `unit` rows and columns, 128 in a TPU. It pads input and output channels to whole
    multiples of `unit`. Images and positions stream through it and need no padding. The backward
    pass has the same share, because it computes the same products transposed. A convolution counts
    as one product for each place of its kernel; a compiler that joins places and colours in the
    stem does better. Depthwise convolutions are left out, because they do not sum over channels.
    They are 1.5 to 4.5 % of the MACs.
    """
    used = slots = 0
    for part in layers(config, image_size, num_classes):
        for rows, into, out in (p for layer in part.layers.values() for p in layer.products):
            used += part.times * rows * into * out
            slots += part.times * rows * math.ceil(into / unit) * math.ceil(out / unit)
    return used / (slots * unit**2)


def mfu(
    macs: int, images_per_second: float, chip: Chip | None, precision: str, num_devices: float = 1
) -> float | None:
    """Model FLOP/s utilisation (MFU) in training, 0 to 1; None if the chip's peak is unknown.

    `macs` is for one image and one forward pass. `images_per_second` is the throughput of all
    `num_devices` devices; a device of TPU v2 and v3 is a core, and half of a GPU is 0.5. A training
    step counts as three forward passes. Recomputation is not counted.
    """
    if chip is None or precision not in chip.peak_flops:
        return None
    peak = chip.peak_flops[precision] / chip.cores * num_devices
    return FLOP_PER_MAC * TRAIN_FORWARDS * macs * images_per_second / peak


# -- text -----------------------------------------------------------------------------------------


def account_rows(
    shapes: Mapping[str, ModelConfig], image_size: ImageSize = 224, num_classes: int = 1000
) -> list[dict[str, Any]]:
    """One row with the costs of each shape, for JSON."""
    rows = []
    for name, config in shapes.items():
        total = cost(config, image_size, num_classes)
        rows.append(
            {
                "variant": name,
                "depths": config.depths,
                "dims": config.dims,
                "image_size": image_size,
                "num_classes": num_classes,
                "macs": total.macs,
                "least_macs": least_macs(config, image_size, num_classes),
                "params": total.params,
                "activations": total.activations,
            }
        )
    return rows


def account_table(
    shapes: Mapping[str, ModelConfig], image_size: ImageSize = 224, num_classes: int = 1000
) -> str:
    """A table for a terminal: one line with the costs of each shape, then the unaligned sizes."""
    rows = [("variant", "depths", "dims", "parameters", "MACs", "activations")]
    notes = []
    for name, config in shapes.items():
        total = cost(config, image_size, num_classes)
        depths, dims = (",".join(map(str, sizes)) for sizes in (config.depths, config.dims))
        params, macs, outputs = (f"{n:,}" for n in (total.params, total.macs, total.activations))
        rows.append((name, depths, dims, params, macs, outputs))
        least = least_macs(config, image_size, num_classes)
        if least != total.macs:
            notes.append(
                f"{name}: {least:,} MACs, if a scan counts 4 for each number of its state (its own "
                "multiplications) instead of 9 (VMamba's count)"
            )
        if unaligned := [f"{where} {size}" for where, size in alignment(config)]:
            notes.append(f"{name}: slow sizes, no multiples of {ALIGNMENT}: {', '.join(unaligned)}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        f"{size_text(image_size)}, {num_classes:,} classes; MACs and activations of one image, "
        "forward"
    ]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(texts + numbers))
    return "\n".join(lines + notes)
