"""What training takes of a device's memory, in closed form, and the micro-batch to begin with.

    need = train_memory(variant("tiny"), 224, 1000, "bf16", lanes=128)
    need.state_bytes, need.image_bytes  # of one device: whatever the batch, and of an image

Pure values: no torch, no I/O. Counted is what the backward pass needs of the forward pass, each
value once, as autograd keeps it (tests/test_memory.py weighs that), and what one block has in
flight. A compiler that fuses or computes again keeps less, and a TPU's tiles may take more than
their values: with `lanes` every channel count is rounded up to it, an upper bound, since the
compiler may put the batch and not the channels into the lanes. An estimate is where to begin; a
training run that meets an out-of-memory error halves its micro-batch all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mambaout.accounting import cost, matrix_unit_use
from mambaout.chips import CHIPS, GIB, Chip
from mambaout.errors import WrongRequest
from mambaout.layer_kinds import FP32, Storage
from mambaout.layers import ImageSize, layers
from mambaout.recipe import Recipe
from mambaout.variants import ModelConfig

MIB = 2**20
TPU_LANES = 128  # of a vector register, and the rows and columns of a v3's matrix unit
# The runtime, the program, the next batch and fragmentation have the rest.
USABLE = 0.9
LOSS_VECTORS = 3  # of a number a class, fp32: logits, their softmax, targets


@dataclass(frozen=True, slots=True)
class TrainMemory:
    """Bytes that training takes of each device that shares the batch."""

    state_bytes: int  # weights, gradients, AdamW's two moments; whole on every device
    kept_bytes: int  # for each image of its share, from the forward pass to the backward one
    flight_bytes: int  # for each image, of the block that the backward pass is at

    @property
    def image_bytes(self) -> int:
        return self.kept_bytes + self.flight_bytes

    def images_that_fit(self, device_bytes: float) -> int:
        """How many images of a micro-batch a device with so many usable bytes can hold."""
        return max(0, int((device_bytes - self.state_bytes) / self.image_bytes))


def train_memory(
    config: ModelConfig,
    image_size: ImageSize = 224,
    num_classes: int = 1000,
    precision: str = "bf16",
    *,
    lanes: int = 1,
    fused: bool = False,
) -> TrainMemory:
    """What a training step takes; `lanes`: TPU_LANES on a TPU, 1 where nothing is padded; `fused`:
    whether model/gated_block.py computes the blocks, which keeps 0.6 to 0.75 of what else is kept.
    """
    plain = Storage(2 if precision == "bf16" else FP32, lanes)
    storage = replace(plain, fused=fused)
    kept = in_flight = 0
    for part in layers(config, image_size, num_classes):
        of_one = sum(layer.kept_bytes(storage) for layer in part.layers.values())
        kept += part.times * of_one
        if part.num_blocks is not None:
            # A fused block remakes while it is in flight what it does not keep.
            whole = sum(layer.kept_bytes(plain) for layer in part.layers.values())
            in_flight = max(in_flight, whole)
    kept += LOSS_VECTORS * storage.wide(num_classes) * FP32
    params = cost(config, image_size, num_classes).params
    # Weights, gradients, two moments; autocast has the weights in bf16 too.
    copies = 4 * FP32 + (storage.low if precision == "bf16" else 0)
    return TrainMemory(params * copies, kept, in_flight)


def device_bytes(chip: Chip) -> float:
    """Bytes of one device of the chip, of which TPU v2 and v3 have two, that training may take."""
    return USABLE * chip.memory_bytes / chip.cores


def lanes_of(chip: Chip | None) -> int:
    """What the chip pads channels to."""
    return TPU_LANES if chip is not None and chip.name.startswith("TPU") else 1


def first_micro_batch(
    need: TrainMemory, sizes: Sequence[int], usable_bytes: float, num_devices: int = 1
) -> int:
    """The largest of `sizes`, images over all devices, that fits; the smallest where none does.

    `usable_bytes` of each of the devices, which share a micro-batch equally.
    """
    images = need.images_that_fit(usable_bytes) * num_devices
    return max((size for size in sizes if size <= images), default=min(sizes))


def micro_batches(recipe: Recipe, num_devices: int = 1) -> list[int]:
    """The micro-batch sizes that split the recipe's global batch evenly, largest first.

    Each device gets an equal share of a micro-batch, and whole pairs of images where the recipe
    mixes them. Raises ValueError where the global batch itself cannot be shared so.
    """
    batch, unit = recipe.global_batch, num_devices * (2 if recipe.augment.mixes else 1)
    if batch % unit:
        pairs = " in whole pairs of images" if unit > num_devices else ""
        near = sorted({max(unit, batch // unit * unit), -(-batch // unit) * unit})
        raise WrongRequest(
            f"global_batch={batch} does not split over {num_devices} devices{pairs}; "
            f"try {' or '.join(map(str, near))}"
        )
    return [n for n in range(batch, 0, -unit) if batch % n == 0]


# -- text -----------------------------------------------------------------------------------------

GLOBAL_BATCH = 4096
V3_8_CORES = 8


def tpu_table(
    shapes: Mapping[str, ModelConfig], image_size: int = 224, num_classes: int = 1000
) -> str:
    """How each shape fits a TPU v3, a line each, for a terminal."""
    chip, share = CHIPS["TPU v3"], GLOBAL_BATCH // V3_8_CORES
    sizes = [size for size in range(2, share + 1, 2) if share % size == 0]
    rows = [("variant", "matrix unit", "state", "an image", "first micro-batch")]
    for name, config in shapes.items():
        need = train_memory(config, image_size, num_classes, lanes=TPU_LANES)
        size = first_micro_batch(need, sizes, device_bytes(chip))
        use = matrix_unit_use(config, image_size, num_classes)
        fits = need.images_that_fit(device_bytes(chip)) >= size
        rows.append(
            (
                name,
                f"{100 * use:.0f} % used",
                f"{need.state_bytes / MIB:,.0f} MiB",
                f"{need.image_bytes / MIB:,.1f} MiB",
                f"{size} of {share}" if fits else "none fits",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"a core of a v3-8, bf16, batch {GLOBAL_BATCH:,}: what of its {TPU_LANES} x {TPU_LANES} "
        "matrix unit multiplies for the network and not for padding;",
        f"memory in training, channels padded to {TPU_LANES} (an upper bound; a core has "
        f"{chip.memory_bytes / chip.cores / GIB:.0f} GiB); images at a time to begin with",
    ]
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    return "\n".join(lines)
