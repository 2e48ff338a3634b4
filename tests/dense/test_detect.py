"""Detection training: exact resume, accumulation, bf16, the recipe, the run directory."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambaout.dense.coco import CocoData, read_coco
from mambaout.dense.detect import DetectorPlan, train_detector
from mambaout.dense.detect_images import (
    TrainingSamples,
    batch_places,
    epoch_order,
    resized_size,
    training_sample,
)
from mambaout.dense.detect_step import DetectorSteps, detect_optimizer
from mambaout.dense.evaluate import FIGURES
from mambaout.dense.loading import loaded
from mambaout.dense.mask_rcnn import MaskRCNN, mask_rcnn
from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.detect_recipe import DETECT_BASELINE, DetectRecipe, tuned_detect
from mambaout.errors import WrongRequest
from mambaout.train import checkpoint
from mambaout.train.backend import Cpu, backend
from mambaout.train.metrics import read_records
from mambaout.train.outcomes import Diverged, Finished, Preempted

TINY = tuned_detect(
    DETECT_BASELINE,
    {
        "global_batch": 4,
        "epochs": 2,
        "first_drop_epoch": 1,
        "second_drop_epoch": 2,
        "warmup_steps": 2,
        "shorter_side": 64,
        "longer_side": 96,
        "peak_lr": 1e-3,
        "depths": (1, 1, 1, 1),
        "dims": (8, 12, 16, 20),
        "head_channels": 16,
        "box_features": 32,
        "smallest_anchor": 8,
    },
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> tuple[CocoData, CocoData]:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=14, val=5, side=64))
    return read_coco(str(root), "train"), read_coco(str(root), "val")


def tiny_detector(drop_path: float = TINY.model.drop_path) -> MaskRCNN:
    model = replace(TINY.model, drop_path=drop_path)
    return mask_rcnn(model, 3, anchor_sizes=TINY.anchor_sizes, widths=TINY.widths)


def trained(shapes, out: Path, recipe: DetectRecipe = TINY, **settings: Any) -> Any:
    plan = DetectorPlan(build=tiny_detector, macs=1.0)
    given = {"backend": backend("cpu"), "micro_batch": 2, "log_every_steps": 2} | settings
    train, val = shapes
    return train_detector(recipe, plan, train, val, out=out, **given)


# -- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "new"),
    [((480, 640), (800, 1067)), ((640, 427), (1199, 800)), ((300, 900), (444, 1333))],
)
def test_an_image_is_resized_as_in_mmdetection(size, new):
    assert resized_size(size[0], size[1], 800, 1333) == new


def test_boxes_masks_and_pixels_are_resized_and_mirrored_together(shapes):
    train, _ = shapes
    double = replace(TINY, shorter_side=128, longer_side=128)
    plain, mirrored = (
        training_sample(train, 0, 0, 0, replace(double, hflip=chance)) for chance in (0.0, 1.0)
    )
    assert plain.pixels.shape == (3, 128, 128)
    assert plain.file_size == (64, 64)
    assert torch.equal(plain.pixels.flip(2), mirrored.pixels)
    assert torch.equal(plain.masks.flip(2), mirrored.masks)
    for sample in (plain, mirrored):
        for box, mask in zip(sample.boxes, sample.masks, strict=True):
            rows, columns = mask.nonzero().T
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == around


def test_half_of_the_samples_are_mirrored_and_epochs_differ(shapes):
    train, _ = shapes

    def pixels(epoch: int, chance: float = 0.5) -> list[torch.Tensor]:
        recipe = replace(TINY, hflip=chance)
        return [training_sample(train, i, epoch, 3, recipe).pixels for i in range(14)]

    plain = pixels(0, 0.0)
    mirrored = np.array(
        [[not torch.equal(a, b) for a, b in zip(plain, pixels(e), strict=True)] for e in range(6)]
    )
    assert 0.3 < mirrored.mean() < 0.7
    assert len({tuple(row) for row in mirrored}) == 6
    assert all(torch.equal(a, b) for a, b in zip(pixels(1), pixels(1), strict=True))


def test_an_epoch_shows_each_image_once_and_batches_are_whole(shapes):
    train, _ = shapes
    assert sorted(epoch_order(1, 5, 100)) == list(range(100))
    assert list(epoch_order(1, 5, 100)) != list(epoch_order(1, 6, 100))
    places = list(batch_places(train, 0, TINY, 0, 6))
    assert [len(each) for each in places] == [4] * 6
    assert [epoch for each in places for epoch, _ in each] == [0] * 12 + [1] * 12
    assert len({i for each in places[:3] for _, i in each}) == 12
    assert list(batch_places(train, 0, TINY, 4, 6)) == places[4:]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_make_the_same_samples(shapes):
    train, _ = shapes
    samples, places = TrainingSamples(train, 0, TINY), list(batch_places(train, 0, TINY, 0, 3))
    for one, other in zip(loaded(samples, places, 0), loaded(samples, places, 2), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert torch.equal(mine.pixels, theirs.pixels)
            assert torch.equal(mine.masks, theirs.masks)


# -- the step -------------------------------------------------------------------------------------


class _EverySample:
    """In place of torchvision's sampler: every positive and negative, so nothing is drawn."""

    def __call__(self, labels):
        return [each >= 1 for each in labels], [each == 0 for each in labels]


def gradients(
    shapes, micro_batch: int, indices: Sequence[int] = range(4)
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    detector = tiny_detector(drop_path=0.0)  # else each micro-batch draws its own
    network: Any = detector.rpn
    heads: Any = detector.roi_heads
    network.fg_bg_sampler = heads.fg_bg_sampler = _EverySample()
    steps = DetectorSteps(detector, Cpu(), "fp32", seed=0)
    batch = [training_sample(shapes[0], i, 0, 0, TINY) for i in indices]
    losses = steps.add_gradients(batch, micro_batch, 0)
    return {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}, losses


def test_micro_batches_give_the_gradients_of_the_whole_batch(shapes):
    """With the same samples. The mean over micro-batches would be another loss, because they differ
    in their positive boxes."""
    whole, losses = gradients(shapes, 4)
    alone = [gradients(shapes, 1, [index])[1] for index in range(4)]
    assert abs(float(torch.stack(alone).mean(0)[-1] / losses[-1]) - 1) > 1e-3
    for micro_batch in (1, 2, 3):
        parts, sums = gradients(shapes, micro_batch)
        assert parts.keys() == whole.keys()
        torch.testing.assert_close(sums, losses, rtol=1e-5, atol=1e-6)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5)


def test_both_passes_of_a_step_sample_the_same(shapes):
    torch.manual_seed(0)
    steps = DetectorSteps(tiny_detector(), Cpu(), "fp32", seed=0)
    steps.detector.train()
    part = [training_sample(shapes[0], i, 0, 0, TINY) for i in range(2)]
    with torch.random.fork_rng():
        counted = steps._counted(part, 5, 1)
        steps._seed(5, 1)
        steps.detector(*steps._placed(part))
    assert counted.anchors == steps.of_anchors.num_sampled == 512
    assert counted.boxes == steps.of_boxes.num_sampled
    assert counted.positives == steps.of_boxes.num_positive > 0


def test_images_without_objects_give_finite_losses(shapes):
    steps = DetectorSteps(tiny_detector(), Cpu(), "fp32", seed=0)
    batch = [training_sample(shapes[0], i, 0, 0, TINY) for i in range(2)]
    empty = [
        replace(each, boxes=each.boxes[:0], labels=each.labels[:0], masks=each.masks[:0])
        for each in batch
    ]
    for micro_batch in (1, 2):
        losses = steps.add_gradients(empty, micro_batch, 0)
        assert torch.isfinite(losses).all()
        assert losses[-1] == 0


def test_bf16_keeps_anchors_and_boxes_in_fp32_and_is_near_fp32(shapes):
    batch = [training_sample(shapes[0], i, 0, 0, TINY) for i in range(2)]
    found = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        steps = DetectorSteps(tiny_detector(), Cpu(), precision, seed=0)
        detector: Any = steps.detector
        kinds = {}
        detector.backbone.fpn.register_forward_hook(
            lambda m, args, out, kinds=kinds: kinds.update(inside=out["0"].dtype)
        )
        detector.rpn.head.bbox_pred.register_forward_hook(
            lambda m, args, out, kinds=kinds: kinds.update(rpn=out.dtype)
        )
        detector.roi_heads.box_predictor.register_forward_hook(
            lambda m, args, out, kinds=kinds: kinds.update(boxes=out[1].dtype)
        )
        found[precision] = steps.add_gradients(batch, 2, 0)
        inside = torch.bfloat16 if precision == "bf16" else torch.float32
        assert kinds == {"inside": inside, "rpn": torch.float32, "boxes": torch.float32}
    assert not torch.equal(found["fp32"], found["bf16"])
    torch.testing.assert_close(found["fp32"], found["bf16"], rtol=0.05, atol=0.02)


def test_norms_do_not_decay_and_biases_do():
    detector = tiny_detector()
    made = detect_optimizer(detector, lr=1.0, betas=(0.9, 0.999), weight_decay=0.1)
    kept = [p for group in made.param_groups if not group["weight_decay"] for p in group["params"]]
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) > 8
    assert {id(p) for p in kept} == {id(p) for m in norms for p in m.parameters()}
    total = sum(len(group["params"]) for group in made.param_groups)
    assert total == len(list(detector.parameters()))


# -- the recipe -----------------------------------------------------------------------------------


def test_the_rate_rises_in_warm_up_and_falls_after_8_and_11_epochs():
    recipe = DETECT_BASELINE
    rates = {step: recipe.learning_rate(step, 1000) for step in (0, 500, 1000, 7999, 8000, 11000)}
    assert rates == pytest.approx(
        {0: 1e-7, 500: 0.5005e-4, 1000: 1e-4, 7999: 1e-4, 8000: 1e-5, 11000: 1e-6}
    )
    assert (recipe.global_batch, recipe.epochs, recipe.weight_decay) == (16, 12, 0.05)
    assert (recipe.shorter_side, recipe.longer_side, recipe.hflip) == (800, 1333, 0.5)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"first_drop_epoch": 12}, "first_drop_epoch=12 is after second_drop_epoch=11"),
        ({"shorter_side": 1400}, "shorter_side=1400 is more than longer_side=1333"),
        ({"peak_lr": -1.0}, "peak_lr=-1.0 is out of range"),
        ({"mixup": 0.8}, "a detection recipe has no field 'mixup'"),
    ],
)
def test_a_wrong_field_is_named(values, what):
    with pytest.raises(WrongRequest, match=what):
        tuned_detect(DETECT_BASELINE, values)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"global_batch": 15}, "global_batch=15 is more than the 14 training images"),
        ({"warmup_steps": 6}, "warmup_steps=6 is not below the 6 steps"),
    ],
)
def test_a_recipe_that_does_not_suit_the_data_is_refused(shapes, tmp_path, values, what):
    with pytest.raises(WrongRequest, match=what):
        trained(shapes, tmp_path / "run", tuned_detect(TINY, values))
    assert not (tmp_path / "run").exists()


# -- the run --------------------------------------------------------------------------------------


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / checkpoint.LAST)["model"]


def values_of(out: Path) -> list[dict[str, float]]:
    timed = ("images_per_second", "input_wait_fraction", "peak_memory_bytes")
    return [
        {name: v for name, v in record.values.items() if name not in timed}
        for record in read_records(out / "records.jsonl")
    ]


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert isinstance(trained(shapes, out), Finished)
    return out


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(shapes, whole, tmp_path, at):
    """Stopped after step `at`: in an epoch, at its end, between two records."""
    out = tmp_path / "run"
    assert trained(shapes, out, max_steps=at) == Preempted(at)
    torch.manual_seed(99)  # another process has another state of torch's generator
    assert isinstance(trained(shapes, out), Finished)
    mine, theirs = weights_of(out), weights_of(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert values_of(out) == values_of(whole)


def test_a_killed_run_goes_on_from_its_last_checkpoint(shapes, whole, tmp_path):
    class Kill(BaseException):
        pass

    def kill(record) -> None:
        if record.step == 4:
            raise Kill

    out = tmp_path / "run"
    with pytest.raises(Kill):
        trained(shapes, out, sinks=[kill])
    saved: Any = checkpoint.load_latest(out)
    assert saved["step"] == 3  # the record of step 4 has no checkpoint
    assert isinstance(trained(shapes, out), Finished)
    mine, theirs = weights_of(out), weights_of(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert values_of(out) == values_of(whole)


def test_records_outcome_and_sheet_are_written(shapes, whole):
    records = list(read_records(whole / "records.jsonl"))
    assert [record.step for record in records] == [2, 3, 4, 6]
    assert records[0].values["train/loss"] == pytest.approx(
        sum(v for n, v in records[0].values.items() if n.startswith("train/loss_"))
    )
    evaluated = [r.step for r in records if "val/box_ap" in r.values and "val/mask_ap" in r.values]
    assert evaluated == [3, 6]
    assert records[-1].images_seen == 24
    assert records[-1].epoch == pytest.approx(24 / 14)
    outcome = json.loads((whole / "outcome.json").read_text())
    assert outcome["status"] == "finished"
    assert outcome["metrics"]["box_ap"] == records[-1].values["val/box_ap"]
    assert outcome["metrics"]["macs"] == 1.0
    assert outcome["facts"]["num_train"] == 14
    assert (whole / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert any(f"val/box_{name}" in records[-1].values for name in FIGURES)
    before = (whole / "last.ckpt").read_bytes()
    assert trained(shapes, whole) == Finished(outcome["metrics"])  # a run that is over stays
    assert (whole / "last.ckpt").read_bytes() == before


def test_another_run_in_the_directory_is_refused(shapes, whole, tmp_path):
    with pytest.raises(WrongRequest, match="holds another run, of seed 0, not 1"):
        trained(shapes, whole, seed=1)
    with pytest.raises(WrongRequest, match=r"another recipe \(peak_lr 0.001 not 0.002\)"):
        trained(shapes, whole, replace(TINY, peak_lr=2e-3))
    plan = DetectorPlan(build=tiny_detector, first_weights="file.ckpt")
    with pytest.raises(WrongRequest, match=r"of first_weights random, not file.ckpt"):
        train_detector(TINY, plan, shapes[0], shapes[1], out=whole, backend=backend("cpu"))


def test_a_loss_that_is_not_finite_ends_the_run(shapes, tmp_path):
    def broken():
        detector = tiny_detector()
        torch.nn.init.constant_(detector.backbone.body.stem.conv1.weight, math.nan)
        return detector

    plan = DetectorPlan(build=broken)
    given: Any = {"out": tmp_path / "run", "backend": backend("cpu"), "log_every_steps": 1}
    try:
        ended = train_detector(TINY, plan, shapes[0], shapes[1], **given)
    except AssertionError as error:  # torchvision may refuse the boxes first
        pytest.fail(str(error))
    assert isinstance(ended, Diverged)
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["status"] == "diverged"


def test_a_step_that_is_out_of_memory_is_taken_again_with_half_the_micro_batch(
    shapes, tmp_path, monkeypatch, caplog
):
    assert trained(shapes, tmp_path / "one", micro_batch=1, max_steps=2) == Preempted(2)
    real = DetectorSteps.add_gradients

    def add_gradients(self, batch, micro_batch, step):
        if micro_batch > 1:
            real(self, batch[:1], 1, step)  # leaves gradients behind
            raise MemoryError("there is no room")
        return real(self, batch, micro_batch, step)

    monkeypatch.setattr(DetectorSteps, "add_gradients", add_gradients)
    assert trained(shapes, tmp_path / "run", micro_batch=2, max_steps=2) == Preempted(2)
    assert "micro-batch 2 is out of memory; going on with 1" in caplog.text
    assert values_of(tmp_path / "run") == values_of(tmp_path / "one")
    mine, theirs = (weights_of(tmp_path / name) for name in ("run", "one"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_splits_of_other_categories_and_xla_are_refused(shapes, tmp_path):
    train, val = shapes
    other = replace(val, class_names=("circle", "square", "triangle"))
    with pytest.raises(
        WrongRequest, match="id 2 is 'rectangle' in the first and 'square' in the second"
    ):
        trained((train, other), tmp_path)
    xla = copy.copy(backend("cpu"))
    xla.compiles = True
    with pytest.raises(WrongRequest, match="does not run on XLA: its shapes are dynamic"):
        trained(shapes, tmp_path, backend=xla)
