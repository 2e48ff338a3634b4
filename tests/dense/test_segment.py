"""Segmentation training: mIoU, micro-batches, exact resume, memory, the recipe, the directory."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mambaout.data.batches.device_augment import prepare_eval
from mambaout.dense.ade20k import IGNORED, SegmentData, read_ade20k
from mambaout.dense.confusion import Confusion
from mambaout.dense.segment import (
    SegmenterPlan,
    evaluate,
    micro_batch_of,
    segmenter_plan,
    train_segmenter,
)
from mambaout.dense.segment_images import training_sample
from mambaout.dense.segment_step import SegmenterSteps, segment_optimizer
from mambaout.dense.shapes import ShapesSize, write_shapes
from mambaout.dense.upernet import UperNet, upernet
from mambaout.errors import WrongRequest
from mambaout.segment_recipe import (
    SEGMENT_BASELINE,
    SegmentRecipe,
    segment_micro_batches,
    segment_recipe_from_json,
    segment_shape,
    tuned_segment,
)
from mambaout.train import checkpoint
from mambaout.train.backend import Cpu, backend
from mambaout.train.metrics import read_records
from mambaout.train.outcomes import Diverged, Finished, OutOfMemory, Preempted

TINY = tuned_segment(
    SEGMENT_BASELINE,
    {
        **{"global_batch": 4, "steps": 6, "warmup_steps": 2, "eval_every_steps": 3},
        **{"crop_size": 32, "shorter_side": 32, "longer_side": 64, "peak_lr": 1e-3},
        **{"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "head_channels": 8},
    },
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> tuple[SegmentData, SegmentData]:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, ShapesSize(train=7, val=3, side=32))
    return read_ade20k(str(root))


def trained(shapes, out: Path, recipe: SegmentRecipe = TINY, **settings: Any) -> Any:
    plan, _ = segmenter_plan(recipe, shapes[0], None)
    given = {"backend": backend("cpu"), "log_every_steps": 2} | settings
    return train_segmenter(recipe, plan, *shapes, out=out, **given)


def tiny_segmenter(recipe: SegmentRecipe = TINY, num_classes: int = 4) -> UperNet:
    torch.manual_seed(0)
    return upernet(recipe.model, num_classes, channels=recipe.head_channels, dropout=recipe.dropout)


# -- the figures ----------------------------------------------------------------------------------


def test_miou_is_that_of_a_count_over_all_images_and_leaves_an_absent_class_out():
    confusion = Confusion(3)
    confusion.add(np.array([[0, 0, 1]]), np.array([[0, 1, 1]], np.uint8))
    confusion.add(np.array([[1, IGNORED]]), np.array([[1, 2]], np.uint8))
    # Class 0: 1 of 2. Class 1: 2 of 3; by images it would be the mean of 1/2 and 1. Class 2: none.
    assert confusion.class_iou()[:2].tolist() == pytest.approx([50, 200 / 3])
    assert math.isnan(confusion.class_iou()[2])
    assert confusion.figures() == pytest.approx(
        {
            "miou": (50 + 200 / 3) / 2,
            "mean_accuracy": 75,
            "pixel_accuracy": 75,
            "absent_classes": 1,
        }
    )


def test_a_class_that_is_only_predicted_counts_with_0():
    confusion = Confusion(3)
    confusion.add(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]))
    found = confusion.figures()
    assert found["miou"] == pytest.approx((100 + 50 + 0) / 3)
    assert found["mean_accuracy"] == pytest.approx((100 + 50) / 2)
    assert found["absent_classes"] == 0


# -- the step -------------------------------------------------------------------------------------


def gradients(shapes, micro_batch: int, *, still: bool) -> tuple[dict[str, Any], torch.Tensor]:
    segmenter = tiny_segmenter()
    if still:  # batch norms stay in evaluation
        for module in segmenter.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = lambda mode=True, module=module: module
    steps = SegmenterSteps(segmenter, Cpu(), TINY, seed=0)
    batch = [training_sample(shapes[0], index, 0, 0, TINY) for index in range(4)]
    losses = steps.add_gradients(batch, micro_batch, 5)
    return {name: p.grad for name, p in segmenter.named_parameters()}, losses


def test_micro_batches_give_the_gradients_of_the_whole_batch_but_for_batch_norms(shapes):
    """Drop path and dropout act: they are drawn by an image's place in the batch."""
    assert TINY.model.drop_path > 0
    assert TINY.dropout > 0
    whole, losses = gradients(shapes, 4, still=True)
    for micro_batch in (1, 2):
        parts, sums = gradients(shapes, micro_batch, still=True)
        torch.testing.assert_close(sums, losses)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6)
    by_two, by_four = (gradients(shapes, size, still=False)[0] for size in (2, 4))
    name = "decoder.fuse.conv.weight"
    assert not torch.allclose(by_two[name], by_four[name], rtol=0.01)


def test_the_loss_is_divided_by_all_pixels_also_by_those_that_are_not_evaluated(shapes):
    recipe = replace(TINY, dropout=0.0, model=replace(TINY.model, drop_path=0.0))
    batch = [training_sample(shapes[0], index, 0, 0, recipe) for index in range(2)]
    labels = torch.stack([each.labels for each in batch]).long()
    labels[:, :20] = IGNORED
    batch = [
        replace(b, labels=one.byte(), inside=(32, 32)) for b, one in zip(batch, labels, strict=True)
    ]
    segmenter = tiny_segmenter(recipe)
    losses = SegmenterSteps(copy.deepcopy(segmenter), Cpu(), recipe, 0).add_gradients(batch, 2, 0)
    images = prepare_eval(torch.stack([each.pixels for each in batch]))
    logits, auxiliary = segmenter.train()(images)
    sums = [
        F.cross_entropy(each, labels, ignore_index=IGNORED, reduction="sum") / labels.numel()
        for each in (logits, auxiliary)
    ]
    torch.testing.assert_close(losses, torch.stack([sums[0], 0.4 * sums[1]]).detach())


def test_padding_is_the_mean_colour_and_does_not_depend_on_its_pixels(shapes):
    batch = [training_sample(shapes[0], index, 0, 0, TINY) for index in range(2)]
    batch = [replace(each, inside=(20, 30)) for each in batch]
    seen = []
    for value in (0, 255):
        for each in batch:
            each.pixels[20:] = value
            each.pixels[:, 30:] = value
        segmenter = tiny_segmenter()
        segmenter.backbone.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        SegmenterSteps(segmenter, Cpu(), TINY, 0).add_gradients(batch, 2, 0)
    assert torch.equal(seen[0], seen[1])
    assert not seen[0][:, :, 20:].any()
    assert not seen[0][..., 30:].any()
    assert seen[0][:, :, :20, :30].any()


def test_bf16_keeps_the_losses_in_fp32_and_is_near(shapes):
    batch = [training_sample(shapes[0], index, 0, 0, TINY) for index in range(4)]
    found = [
        SegmenterSteps(
            tiny_segmenter(), Cpu(), replace(TINY, precision=precision), 0
        ).add_gradients(batch, 4, 0)
        for precision in ("fp32", "bf16")
    ]
    assert found[1].dtype == torch.float32
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=0.05, atol=0.02)


def test_norms_do_not_decay_and_biases_do():
    segmenter = tiny_segmenter()
    kept = segment_optimizer(segmenter, TINY, Cpu()).param_groups[1]
    assert kept["decays"] is False
    kinds = (nn.LayerNorm, nn.BatchNorm2d)
    norms = [module for module in segmenter.modules() if isinstance(module, kinds)]
    assert {id(p) for p in kept["params"]} == {id(p) for m in norms for p in m.parameters()}


# -- whole images ---------------------------------------------------------------------------------


class _BrightestColour(nn.Module):
    """In place of a segmenter: the class of a pixel is its brightest colour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("with_mirrors", [False, True])
@pytest.mark.parametrize("sides", [[(20, 36)], [(10, 18), (40, 72)]])
def test_views_of_an_image_are_brought_back_to_its_size_and_place(compiles, with_mirrors, sides):
    """Also in bands of rows, and with the padding of a backend that compiles."""
    where: Any = copy.copy(backend("cpu"))
    where.compiles = compiles
    network: Any = _BrightestColour()
    steps = SegmenterSteps(network, where, replace(TINY, crop_size=32), seed=0)
    classes = np.zeros((40, 72), np.uint8)
    classes[:22, 10:] = 1
    classes[22:, 30:] = 2
    image = torch.from_numpy(255 * np.eye(3, dtype=np.uint8)[classes]).float()
    scaled = [
        F.interpolate(image.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0).byte()
        for size in sides
    ]
    found = steps.predict(scaled, (40, 72), with_mirrors=with_mirrors)
    assert found.shape == (40, 72)
    assert np.array_equal(found, classes)


# -- the recipe -----------------------------------------------------------------------------------


def test_the_rate_rises_in_warm_up_and_falls_to_0_in_a_straight_line():
    recipe = SEGMENT_BASELINE
    rates = {step: recipe.learning_rate(step) for step in (0, 750, 1500, 80_750, 159_999)}
    last = 1e-4 / 158_500
    assert rates == pytest.approx(
        {0: 1e-10, 750: 0.5e-4, 1500: 1e-4, 80_750: 0.5e-4, 159_999: last}, rel=1e-5
    )
    assert (recipe.global_batch, recipe.steps, recipe.weight_decay) == (16, 160_000, 0.01)
    assert (recipe.crop_size, recipe.shorter_side, recipe.longer_side) == (512, 512, 2048)
    assert replace(recipe, poly_power=2.0).learning_rate(80_750) == pytest.approx(0.25e-4)


def test_drop_path_and_macs_are_the_authors():
    assert SEGMENT_BASELINE.model == segment_shape("tiny")
    rates = {name: segment_shape(name).drop_path for name in ("femto", "tiny", "small", "base")}
    assert rates == {"femto": 0.025, "tiny": 0.3, "small": 0.3, "base": 0.6}
    assert round(SEGMENT_BASELINE.cost(150).macs / 1e9) == 938


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"shorter_side": 2049}, "shorter_side=2049 is more than longer_side=2048"),
        ({"scale_min": 3.0}, "scale_min=3.0 is more than scale_max=2.0"),
        ({"steps": 1500}, "warmup_steps=1500 is not below steps=1500; try 75"),
        ({"global_batch": 1}, "global_batch=1 is out of range: at least 2"),
        ({"mixup": 0.8}, "a segmentation recipe has no field 'mixup'"),
    ],
)
def test_a_wrong_field_is_named(values, what):
    with pytest.raises(WrongRequest, match=what):
        tuned_segment(SEGMENT_BASELINE, values)


def test_micro_batches_are_equal_parts_of_two_or_more():
    assert segment_micro_batches(12) == [12, 6, 4, 3, 2]
    assert segment_micro_batches(16, 4) == [16, 8, 4]
    assert micro_batch_of(TINY, 4, backend("cpu"), None) == 4
    assert micro_batch_of(SEGMENT_BASELINE, 150, backend("cpu"), None) in (2, 4)
    with pytest.raises(WrongRequest, match="--micro-batch 3 does not split --global-batch 4 into"):
        micro_batch_of(TINY, 4, backend("cpu"), 3)


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
    assert isinstance(trained(shapes, out, micro_batch=2, multi_scale=True), Finished)
    return out


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(shapes, whole, tmp_path, at):
    out = tmp_path / "run"
    given: Any = {"micro_batch": 2, "multi_scale": True}
    assert trained(shapes, out, max_steps=at, **given) == Preempted(at)
    torch.manual_seed(99)  # another process has another state of torch's generator
    assert isinstance(trained(shapes, out, **given), Finished)
    mine, theirs = weights_of(out), weights_of(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert values_of(out) == values_of(whole)


def test_records_outcome_and_sheet_are_written(shapes, whole):
    records = list(read_records(whole / "records.jsonl"))
    assert [record.step for record in records] == [2, 3, 4, 6]
    first, last = records[0].values, records[-1].values
    parts = first["train/loss_decoder"] + first["train/loss_auxiliary"]
    assert first["train/loss"] == pytest.approx(parts)
    assert first["micro_batch"] == 2
    assert [r.step for r in records if "val/miou" in r.values] == [3, 6]
    assert [r.step for r in records if "val/miou_multi_scale" in r.values] == [6]
    outcome = json.loads((whole / "outcome.json").read_text())
    assert outcome["metrics"]["miou"] == last["val/miou"]
    assert outcome["metrics"]["macs"] == TINY.cost(4).macs
    assert list(outcome["facts"]["class_iou"]) == ["ground", "circle", "rectangle", "triangle"]
    assert (whole / "predictions.png").read_bytes().startswith(b"\x89PNG")
    text = (whole / "recipe.json").read_text()
    assert segment_recipe_from_json(text, "it") == TINY
    assert trained(shapes, whole) == Finished(outcome["metrics"])  # a run that is over stays


def test_another_run_in_the_directory_is_refused(shapes, whole):
    with pytest.raises(WrongRequest, match="holds another run, of seed 0, not 1"):
        trained(shapes, whole, seed=1)
    with pytest.raises(WrongRequest, match=r"another recipe \(peak_lr 0.001 not 0.002\)"):
        trained(shapes, whole, replace(TINY, peak_lr=2e-3))
    with pytest.raises(WrongRequest, match="is no recipe of a segmentation run"):
        segment_recipe_from_json("[]", "it")


def test_a_loss_that_is_not_finite_ends_the_run(shapes, tmp_path):
    def broken() -> UperNet:
        segmenter = tiny_segmenter()
        nn.init.constant_(segmenter.backbone.stem.conv1.weight, math.nan)
        return segmenter

    plan, out = SegmenterPlan(build=broken), tmp_path / "run"
    ended = train_segmenter(TINY, plan, *shapes, out=out, backend=backend("cpu"), log_every_steps=1)
    assert isinstance(ended, Diverged)
    assert json.loads((out / "outcome.json").read_text())["status"] == "diverged"


# -- memory ---------------------------------------------------------------------------------------


def short_of_memory(monkeypatch, most: int) -> None:
    """From now on a micro-batch of more than `most` images is out of memory, in its second part."""
    real = SegmenterSteps.add_gradients

    def add_gradients(self, batch, micro_batch, step):
        if micro_batch > most:
            real(self, batch[:2], 2, step)  # leaves gradients and statistics of batch norms behind
            raise MemoryError("there is no room")
        return real(self, batch, micro_batch, step)

    monkeypatch.setattr(SegmenterSteps, "add_gradients", add_gradients)


def test_a_step_that_is_out_of_memory_is_taken_again_with_half_the_micro_batch(
    shapes, whole, tmp_path, monkeypatch, caplog
):
    short_of_memory(monkeypatch, 2)
    out = tmp_path / "run"
    assert trained(shapes, out, max_steps=3, multi_scale=True) == Preempted(3)
    assert "micro-batch 4 is out of memory; going on with 2" in caplog.text
    caplog.clear()
    assert isinstance(trained(shapes, out, multi_scale=True), Finished)
    assert "out of memory" not in caplog.text  # the checkpoint knows
    mine, theirs = weights_of(out), weights_of(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert values_of(out) == values_of(whole)


def test_the_smallest_micro_batch_that_does_not_fit_ends_the_call(shapes, tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 1)
    assert trained(shapes, tmp_path / "run") == OutOfMemory(2, "there is no room")


def test_an_evaluation_that_is_out_of_memory_is_tried_again_once(shapes, tmp_path, monkeypatch):
    calls: list[int] = []
    real = SegmenterSteps.predict

    def predict(self, *words, **settings):
        calls.append(1)
        if len(calls) in broken:
            raise MemoryError("there is no room")
        return real(self, *words, **settings)

    monkeypatch.setattr(SegmenterSteps, "predict", predict)
    broken = {2}
    assert trained(shapes, tmp_path / "run", max_steps=3) == Preempted(3)
    calls.clear()
    broken = {1, 2}
    ended = trained(shapes, tmp_path / "run")
    assert isinstance(ended, OutOfMemory)
    assert "in the evaluation of one image at a time" in ended.text


# -- learning -------------------------------------------------------------------------------------


def test_four_images_are_learned_by_heart(tmp_path):
    write_shapes(tmp_path / "set", ShapesSize(train=4, val=1, side=64))
    train, _ = read_ade20k(str(tmp_path / "set"))
    recipe = tuned_segment(
        TINY,
        {
            **{"steps": 400, "warmup_steps": 10, "eval_every_steps": 400, "peak_lr": 5e-3},
            **{"crop_size": 64, "shorter_side": 64, "longer_side": 64, "max_class_share": 1.0},
            **{"scale_min": 1.0, "scale_max": 1.0, "photometric": 0.0, "hflip": 0.0},
            **{"dims": (24, 48, 72, 96), "head_channels": 64, "drop_path": 0.0, "dropout": 0.0},
        },
    )
    plan, _ = segmenter_plan(recipe, train, None)
    ended = train_segmenter(
        recipe, plan, train, train, out=tmp_path / "run", backend=backend("cpu")
    )
    assert isinstance(ended, Finished)
    assert ended.metrics["miou"] > 90


def test_an_evaluation_counts_every_evaluated_pixel_once(shapes):
    steps = SegmenterSteps(tiny_segmenter(), Cpu(), TINY, 0)
    found, kept = evaluate(steps, shapes[1], keep=frozenset([1]))
    assert found.counts.sum() == sum((shapes[1].pair(n)[1] != IGNORED).sum() for n in range(3))
    assert kept.keys() == {1}
    assert kept[1].shape == (32, 32)
