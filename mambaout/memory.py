"""The device memory that training needs, in closed form, and the micro-batch to start with.

    need = train_memory(variant("tiny"), 224, 1000, "bf16", lanes=128)
    need.state_bytes, need.image_bytes  # a device: independent of the batch, and for each image

Pure values: no torch, no I/O. The estimate counts the values of the forward pass that autograd
keeps for the backward pass, each once (tests/test_memory.py measures that), and the values that one
block holds while it is computed. A compiler that fuses keeps less. A TPU's tiles may
take more than their values: `lanes` rounds every channel count up to a multiple of it. That is an
upper bound, because the compiler may put the batch instead of the channels into the lanes. The
estimate only gives the first micro-batch: a training that runs out of memory still halves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mambaout.accounting import cost, matrix_unit_use
from mambaout.chips import CHIPS, GIB, Chip
from mambaout.errors import WrongRequest
from mambaout.layer_kinds import FP32, Storage
from mambaout.layers import ImageSize, both_sides, layers
from mambaout.recipe import Recipe
from mambaout.recompute import ALL_STAGES, Stages, stages_text
from mambaout.variants import ModelConfig

MIB = 2**20
TPU_LANES = 128  # lanes of a vector register; rows and columns of a v3's matrix unit
# The rest is for the runtime, the program, the next batch and fragmentation.
USABLE = 0.9
# Words in the errors of torch, CUDA's libraries and XLA when memory is short. cuBLAS cannot make
# its work space; the driver is not ready while it maps memory; the allocator fails its own check.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "resource_exhausted",
    "_status_alloc_failed",
    "driver error: device not ready",
)
_ALLOCATOR_CHECK = ("internal assert failed", "cudacachingallocator")
LOSS_VECTORS = 3  # one fp32 number a class in each: logits, softmax, targets


@dataclass(frozen=True, slots=True)
class TrainMemory:
    """Bytes that training takes on each of the devices that share the batch."""

    state_bytes: int  # weights, gradients, AdamW's two moments; every device holds all of them
    kept_bytes: int  # for each image of the device's share, from the forward to the backward pass
    flight_bytes: int  # for each image, in the block whose backward pass is running
    placed_bytes: int = 0  # for each image, its pixels in each micro-batch that is on the device

    @property
    def image_bytes(self) -> int:
        return self.kept_bytes + self.flight_bytes + self.placed_bytes

    def images_that_fit(self, device_bytes: float) -> int:
        """The number of images that a device with `device_bytes` usable bytes can hold."""
        return max(0, int((device_bytes - self.state_bytes) / self.image_bytes))


def train_memory(
    config: ModelConfig,
    image_size: ImageSize = 224,
    num_classes: int = 1000,
    precision: str = "bf16",
    *,
    lanes: int = 1,
    fused: bool = False,
    recompute: Stages = (),
    placed: int = 0,
) -> TrainMemory:
    """The memory that a training step takes on one device.

    `image_size` is one side or (height, width), in pixels. `lanes` is TPU_LANES on a TPU, and 1 if
    channels are not padded. `fused` says whether model/gated_block.py computes the blocks; it keeps
    0.6 to 0.75 of the bytes that the modules keep. The blocks of the stages `recompute` keep only
    their inputs. `placed` micro-batches of pixels are on the device at once.
    """
    plain = Storage(2 if precision == "bf16" else FP32, lanes)
    storage = replace(plain, fused=fused)
    kept = in_flight = 0
    for part in layers(config, image_size, num_classes):
        computed = of_one = sum(layer.kept_bytes(storage) for layer in part.layers.values())
        if part.stage in recompute:
            norm, *_ = part.layers.values()
            of_one = norm.input_bytes(storage, FP32)
        kept += part.times * of_one
        if part.num_blocks is not None:
            # While a fused block is computed, it also holds the values that it does not keep.
            whole = sum(layer.kept_bytes(plain) for layer in part.layers.values())
            whole += max(layer.flight_bytes(storage) for layer in part.layers.values())
            in_flight = max(in_flight, whole + computed - of_one)
    kept += LOSS_VECTORS * storage.wide(num_classes) * FP32
    params = cost(config, image_size, num_classes).params
    # Weights, gradients, two moments. Autocast adds a copy of the weights in bf16.
    copies = 4 * FP32 + (storage.low if precision == "bf16" else 0)
    height, width = both_sides(image_size)
    return TrainMemory(params * copies, kept, in_flight, placed * 3 * height * width)


def says_out_of_memory(error: str) -> bool:
    """Whether the text of an error says that memory was short, on any kind of device."""
    text = error.lower()
    return any(words in text for words in _NO_MEMORY) or all(
        words in text for words in _ALLOCATOR_CHECK
    )


def device_bytes(chip: Chip) -> float:
    """Bytes that training may take on one device of the chip; TPU v2 and v3 have two devices."""
    return USABLE * chip.memory_bytes / chip.cores


def lanes_of(chip: Chip | None) -> int:
    """The chip pads channels to a multiple of this number."""
    return TPU_LANES if chip is not None and chip.name.startswith("TPU") else 1


def first_micro_batch(
    need: TrainMemory, sizes: Sequence[int], usable_bytes: float, num_devices: int = 1
) -> int:
    """The largest micro-batch of `sizes` that fits, or the smallest of them if none fits.

    `sizes` are images over all devices, which share a micro-batch equally. Each device has
    `usable_bytes`.
    """
    images = need.images_that_fit(usable_bytes) * num_devices
    return max((size for size in sizes if size <= images), default=min(sizes))


def micro_batches(recipe: Recipe, num_devices: int = 1) -> list[int]:
    """The micro-batch sizes, in images, that split the recipe's global batch evenly, largest first.

    Each device gets an equal share of a micro-batch. If the recipe mixes images, the share holds
    whole pairs. Raises ValueError if the global batch itself cannot be shared so.
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
RECOMPUTE_SHOWN: tuple[Stages, ...] = ((), (1,), (1, 2), ALL_STAGES)
V3_8_CORES = 8


def tpu_table(
    shapes: Mapping[str, ModelConfig], image_size: ImageSize = 224, num_classes: int = 1000
) -> str:
    """A table for a terminal: one line for each shape says how it fits a TPU v3."""
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
    lines = [
        f"a core of a v3-8, bf16, batch {GLOBAL_BATCH:,}: what of its {TPU_LANES} x {TPU_LANES} "
        "matrix unit multiplies for the network and not for padding;",
        f"memory in training, channels padded to {TPU_LANES} (an upper bound; a core has "
        f"{chip.memory_bytes / chip.cores / GIB:.0f} GiB); images at a time to begin with",
    ]
    return "\n".join(lines + _columns(rows))


def recompute_table(
    shapes: Mapping[str, ModelConfig], image_size: ImageSize = 224, num_classes: int = 1000
) -> str:
    """A table for a terminal: the memory that --recompute leaves, one line for each shape."""
    rows = [("variant", *(stages_text(stages) for stages in RECOMPUTE_SHOWN))]
    for name, config in shapes.items():
        needs = [
            train_memory(config, image_size, num_classes, recompute=stages)
            for stages in RECOMPUTE_SHOWN
        ]
        rows.append((name, *(f"{need.image_bytes / MIB:,.1f} MiB" for need in needs)))
    title = "memory of an image in training on a GPU, bf16, by the stages of --recompute"
    return "\n".join([title, *_columns(rows)])


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    return lines
