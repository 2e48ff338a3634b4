"""The table of known accelerators: peak FLOP/s and memory, with the source of each number.

    find_chip("NVIDIA H100 80GB HBM3").peak_flops["bf16"]  # 9.89e14

Pure values: no torch, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TERA = 1e12
GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """One accelerator's published peak: dense, not sparse; accumulation in fp32.

    `cores` is how many devices a program sees in one chip. It is two in TPU v2 and v3, where each
    core is a device. It is one in a GPU, and in a TPU from v4 on, because its cores are fused.
    """

    name: str
    words: frozenset[str]  # the name that the driver reports contains all of them
    peak_flops: Mapping[str, float]  # FLOP/s of the chip, for each precision of matrix products
    memory_bytes: int  # nominal; the driver keeps a little of it
    cores: int = 1
    source: str


def _chip(
    name: str, words: str, memory_gib: int, source: str, *, cores: int = 1, **tera_flops: float
) -> Chip:
    return Chip(
        name=name,
        words=frozenset(words.split()),
        peak_flops={precision: peak * TERA for precision, peak in tera_flops.items()},
        memory_bytes=memory_gib * GIB,
        cores=cores,
        source=source,
    )


_TPU = "cloud.google.com/tpu/docs, page of the version"
_HOPPER = "NVIDIA H100 and H200 datasheets, half of the figures with sparsity"
_AMPERE = "NVIDIA A100 datasheet"
_VOLTA = "NVIDIA V100 datasheet"
_GA102 = "NVIDIA Ampere GA102 white paper, appendix A"
_ADA = "NVIDIA Ada GPU architecture white paper, appendix A"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture white paper, appendix A"

# TPUs have no fp32 peak here: their matrix units take bf16, and Google publishes only that peak.
_ROWS = (
    _chip("TPU v2", "tpu v2", 16, _TPU, cores=2, bf16=45),
    _chip("TPU v3", "tpu v3", 32, _TPU, cores=2, bf16=123),
    _chip("TPU v4", "tpu v4", 32, _TPU, bf16=275),
    _chip("TPU v5e", "tpu v5e", 16, _TPU, bf16=197),
    _chip("TPU v5p", "tpu v5p", 95, _TPU, bf16=459),
    _chip("TPU v6e", "tpu v6e", 32, _TPU, bf16=918),
    _chip("H200", "h200", 141, _HOPPER, bf16=989, fp16=989, tf32=494, fp32=67),
    _chip("H200 NVL", "h200 nvl", 141, _HOPPER, bf16=835, fp16=835, tf32=417, fp32=60),
    _chip("H100", "h100", 80, _HOPPER, bf16=989, fp16=989, tf32=494, fp32=67),
    _chip("H100 NVL", "h100 nvl", 94, _HOPPER, bf16=835, fp16=835, tf32=417, fp32=60),
    _chip("H100 PCIe", "h100 pcie", 80, _HOPPER, bf16=756, fp16=756, tf32=378, fp32=51),
    _chip("A100 80GB", "a100 80gb", 80, _AMPERE, bf16=312, fp16=312, tf32=156, fp32=19.5),
    _chip("A100 40GB", "a100 40gb", 40, _AMPERE, bf16=312, fp16=312, tf32=156, fp32=19.5),
    _chip("V100 SXM2 16GB", "v100 sxm2 16gb", 16, _VOLTA, fp16=125, fp32=15.7),
    _chip("V100 SXM2 32GB", "v100 sxm2 32gb", 32, _VOLTA, fp16=125, fp32=15.7),
    _chip("V100 PCIe 16GB", "v100 pcie 16gb", 16, _VOLTA, fp16=112, fp32=14),
    _chip("V100 PCIe 32GB", "v100 pcie 32gb", 32, _VOLTA, fp16=112, fp32=14),
    _chip("T4", "t4", 16, "NVIDIA T4 datasheet", fp16=65, fp32=8.1),
    _chip("L4", "l4", 24, "NVIDIA L4 datasheet", bf16=121, fp16=121, tf32=60, fp32=30.3),
    _chip("RTX 3090", "rtx 3090", 24, _GA102, bf16=71, fp16=71, tf32=35.6, fp32=35.6),
    _chip("RTX 4090", "rtx 4090", 24, _ADA, bf16=165.2, fp16=165.2, tf32=82.6, fp32=82.6),
    _chip("RTX 5090", "rtx 5090", 32, _BLACKWELL, bf16=209.5, fp16=209.5, tf32=104.8, fp32=104.8),
)
CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ROWS}

# A name with one of these words belongs to another chip than the row: "RTX 4090 D",
# "RTX 3090 Ti", "RTX 4090 Laptop GPU", a MIG slice of an H100.
_OTHER_CHIP = frozenset({"d", "ti", "super", "laptop", "mobile", "max", "mig"})


def find_chip(device_name: str) -> Chip | None:
    """The chip that a driver calls `device_name`; None if no row fits with certainty."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if words & _OTHER_CHIP:
        return None
    fitting = [chip for chip in _ROWS if chip.words <= words]
    return max(fitting, key=lambda chip: len(chip.words), default=None)
