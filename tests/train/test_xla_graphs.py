"""What XLA gets to compile, ours beside timm's: counts of instructions, no times."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import pytest
from places import TESTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def graphs() -> Any:
    """benchmarks/xla_graphs.py"""
    sys.path.insert(0, str(TESTS.parent / "benchmarks"))
    yield import_module("xla_graphs")
    sys.path.pop(0)


@pytest.fixture(scope="module")
def counts(graphs) -> dict[str, Any]:
    """By side and part, of the smallest network of benchmarks/step.py in fp32."""
    return graphs.both_sides("w8-d4", "fp32", dumped=True, flags=graphs.QUICK)


@pytest.mark.parametrize("part", ["infer", "train"])
def test_xla_gets_no_more_work_and_fewer_transposes_than_from_timm(part, counts):
    ours, theirs = (counts[side][part]["before"] for side in ("ours", "timm"))
    assert ours["computing"] <= 0.9 * theirs["computing"]
    assert ours["transposes"] <= 0.4 * theirs["transposes"]
    assert ours["moved_mb"] <= 0.5 * theirs["moved_mb"]
    assert counts["ours"][part]["graphs"] <= counts["timm"][part]["graphs"]


def test_inference_gets_no_more_instructions_of_any_kind_than_from_timm(counts):
    ours, theirs = (counts[side]["infer"]["before"] for side in ("ours", "timm"))
    assert ours["instructions"] <= theirs["instructions"]


def test_no_map_is_transposed(graphs, counts):
    """Only the image and the matrix of each linear layer are."""
    cell = graphs.CELLS["w8-d4"]
    linear = 2 * sum(cell.config.depths) + 2  # in the blocks and in the head
    assert counts["ours"]["infer"]["before"]["transposes"] == linear + 1


def test_every_product_of_fp32_asks_for_fp32(counts):
    for part in ("infer", "train"):
        assert counts["ours"][part]["before"]["unasked"] == 0
    # torch_xla asks for it in the forward pass alone: one reason for the own operations.
    assert counts["timm"]["train"]["before"]["unasked"] > 0


def test_the_texts_of_modules_are_counted(graphs):
    text = """
%add.1 (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.2 = f32[] add(f32[] %x, f32[] %y)
}
ENTRY %main {
  %p0 = f32[2,3]{1,0} parameter(0), sharding={replicated}
  %copy.1 = f32[2,3]{0,1} copy(f32[2,3]{1,0} %p0)
  %transpose.1 = bf16[3,2]{1,0} transpose(bf16[2,3]{1,0} %p1), dimensions={1,0}
  %dot.1 = f32[2,2]{1,0} dot(%copy.1, %p2), operand_precision={highest,highest}
  %dot.2 = f32[2,2]{1,0} dot(%copy.1, %p2), lhs_contracting_dims={1}
  ROOT %tuple.1 = (f32[2,2]{1,0}, f32[2,2]{1,0}) tuple(%dot.1, %dot.2)
}
"""
    assert graphs.counted(text) == {
        "instructions": 7,
        "computing": 5,
        "transposes": 1,
        "copies": 1,
        "moved_mb": 24e-6 + 12e-6,
        "all_gathers": 0,
        "unasked": 1,
    }
