"""A chip is found by its driver's name for it, and by no other chip's."""

from __future__ import annotations

import pytest

from mambaout.chips import CHIPS, find_chip


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("Tesla V100-SXM2-16GB", "V100 SXM2 16GB"),
        ("Tesla V100-PCIE-32GB", "V100 PCIe 32GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("TPU v3", "TPU v3"),
    ],
)
def test_a_chip_is_found_by_the_name_its_driver_reports(device, name):
    assert find_chip(device) is CHIPS[name]


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GH200 480GB",
        "NVIDIA H800",
        "NVIDIA L40S",
        "NVIDIA GeForce GTX 1080",
        "AMD EPYC 9005 (2 threads)",
        "Intel(R) Xeon(R) Processor (2 threads)",
        "",
    ],
)
def test_a_chip_that_is_not_in_the_table_is_unknown_not_its_neighbour(device):
    assert find_chip(device) is None


def test_every_chip_cites_its_source_and_finds_itself():
    for name, chip in CHIPS.items():
        assert find_chip(name) is chip
        assert chip.source
        assert chip.memory_bytes >= 16 * 2**30
        assert set(chip.peak_flops) <= {"bf16", "fp16", "tf32", "fp32"}
