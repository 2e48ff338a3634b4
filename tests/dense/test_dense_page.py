"""The Python of docs/dense.md runs, and what it builds trains and computes with our weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mambaout.dense.backbone import Backbone
from mambaout.model.weights import save_weights
from mambaout.variants import VARIANTS

PAGE = Path(__file__).parent.parent.parent / "docs" / "dense.md"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("page")
    save_weights(Backbone(VARIANTS["femto"]), folder / "features.safetensors")
    return folder


@pytest.fixture(scope="module")
def page(exported) -> dict[str, Any]:
    """The names that the page's blocks make, one after another."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exported)
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M):
            exec(block, found)
    return found


def test_the_backbone_gives_four_maps_of_sides_rounded_up(page):
    assert [each.shape[-2:] for each in page["maps"]] == [(50, 75), (25, 38), (13, 19), (7, 10)]


def test_torchvisions_detector_trains_on_our_backbone(page):
    detector = page["detector"]
    detector.transform.min_size, detector.transform.max_size = (64,), 96
    image = torch.rand(3, 64, 96)
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        "labels": torch.tensor([90]),
        "masks": torch.ones(1, 64, 96, dtype=torch.uint8),
    }
    losses = detector.train()([image], [target])
    assert len(losses) == 5
    torch.stack([*losses.values()]).sum().backward()
    gradient = detector.backbone.body.stem.conv1.weight.grad
    assert gradient.isfinite().all()
    assert gradient.any()
    with torch.no_grad():
        (found,) = detector.eval()([image])
    assert {"boxes", "labels", "scores", "masks"} == found.keys()


def test_a_segmenter_of_smp_computes_our_maps(page, exported):
    torch.manual_seed(0)
    ours = Backbone(VARIANTS["femto"]).eval()
    encoder = page["segmenter"].encoder.model.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(encoder(images), ours.forward_pyramid(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert page["segmenter"](images).shape == (1, 4, 64, 96)
