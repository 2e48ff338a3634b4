"""The parts of the detector with fixed shapes run on XLA: backbone, pyramid, scores and boxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mambaout.dense import pyramid
from mambaout.dense.pyramid import FeaturePyramid, doubled, upsampled

HERE = Path(__file__).parent


@pytest.mark.parametrize("size", [(32, 48), (31, 45), (25, 9), (1, 1)])
@pytest.mark.parametrize("way", [upsampled, doubled])
def test_the_pyramid_is_torchvisions_for_any_size(way, size, monkeypatch):
    monkeypatch.setattr(pyramid, "upsampled", way)
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork([4, 6, 8], 5, LastLevelMaxPool())
    ours = FeaturePyramid([4, 6, 8], 5, LastLevelMaxPool())
    ours.load_state_dict(theirs.state_dict())
    maps, (height, width) = {}, size
    for place, dim in enumerate((4, 6, 8)):
        maps[str(place)] = torch.randn(2, dim, height, width, requires_grad=True)
        height, width = (height + 1) // 2, (width + 1) // 2
    found, expected = ours(maps), theirs(maps)
    assert list(found) == list(expected) == ["0", "1", "2", "pool"]
    for name in found:
        torch.testing.assert_close(found[name], expected[name])
    gradients = [
        torch.autograd.grad([each.square().sum() for each in outputs.values()], [*maps.values()])
        for outputs in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_xla_compiles_a_size_once_and_computes_what_the_cpu_computes():
    env = os.environ | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1"}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # half the time of a compilation
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), env.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, HERE / "detector_on_xla.py"], capture_output=True, text=True, env=env
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert len(found["xla"]) == len(found["cpu"]) == 4
    for one, other in zip(found["xla"], found["cpu"], strict=True):
        assert {name: len(values) for name, values in one.items()} == {
            "maps": 5,
            "scores": 5,
            "boxes": 5,
            "gradients": len(other["gradients"]),
        }
        assert len(other["gradients"]) > 60
        for name, values in one.items():
            assert values == pytest.approx(other[name], rel=1e-3, abs=1e-6), name
    assert found["fallbacks"] == []
    placing, first, again, other_size, other_again = found["compiled"]
    assert first == placing + 1
    assert again == first
    assert other_size == first + 1
    assert other_again == other_size
