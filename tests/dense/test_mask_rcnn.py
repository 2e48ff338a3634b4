"""Mask R-CNN is mmdetection's where docs/dense.md says so, learns, and costs what is said."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectors import (
    SMALL,
    WIDTHS,
    as_published,
    check_parameters,
    counted,
    scene,
    small_detector,
)
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import box_iou

from mambaout.data.batches.device_augment import prepare_eval
from mambaout.dense.mask_rcnn import mask_rcnn
from mambaout.dense.proposals import AnchorGrid, AnchorMatcher, ProposalNetwork
from mambaout.dense.roi_heads import (
    PyramidRegions,
    as_rois,
    box_losses,
    mask_loss,
    mask_targets,
)
from mambaout.dense_accounting import DETECTOR
from mambaout.dense_layers import detector_layers
from mambaout.variants import VARIANTS

OBJECTS = ([6, 8, 40, 44], [50, 20, 90, 60])
LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_the_published_closed_form_is_what_torch_counts(name):
    with torch.device("meta"):
        detector = mask_rcnn(VARIANTS[name]).eval()
    closed = DETECTOR.cost(VARIANTS[name])
    assert closed.params == sum(parameter.numel() for parameter in detector.parameters())
    assert closed.macs == counted(as_published(detector, (800, 1280)))


@pytest.mark.parametrize("size", [(64, 96), (96, 32)])
def test_the_list_of_layers_is_the_detector_for_any_shape(size):
    with torch.device("meta"):
        detector = mask_rcnn(SMALL, 5, widths=WIDTHS).eval()
    parts = detector_layers(SMALL, size, 5, WIDTHS)
    check_parameters(detector, parts)
    macs = sum(part.times * sum(x.macs for x in part.layers.values()) for part in parts)
    assert macs == counted(as_published(detector, size))


# -- what is equal to mmdetection -----------------------------------------------------------------


def anchors_of(sizes: tuple[int, ...], strides: tuple[int, ...], maps: list[Tensor]) -> Tensor:
    images = ImageList(torch.empty(1, 3, 800, 800), [(800, 800)])
    return AnchorGrid(sizes, strides)(images, maps)[0]


def test_anchors_are_not_rounded_and_stand_at_the_strides():
    # mmdetection's AnchorGenerator(scales=[8], ratios=[0.5, 1, 2], strides=[4]), at place (0, 0)
    expected = [
        [-22.6274, -11.3137, 22.6274, 11.3137],
        [-16.0, -16.0, 16.0, 16.0],
        [-11.3137, -22.6274, 11.3137, 22.6274],
    ]
    found = anchors_of((32,), (4,), [torch.empty(1, 1, 2, 3)])
    torch.testing.assert_close(found[:3], torch.tensor(expected), rtol=0, atol=1e-4)
    offsets = torch.tensor([[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]]).repeat(1, 2)
    torch.testing.assert_close(
        found.view(6, 3, 4) - found[:3], offsets[:, None].expand(6, 3, 4).float()
    )
    # The fifth map of an 800 px image has 13 places; 800 // 13 is 61.
    fifth = anchors_of((512,), (64,), [torch.empty(1, 1, 13, 13)]).view(13, 13, 3, 4)
    assert float(fifth[0, 12, 1, 0] - fifth[0, 0, 1, 0]) == 12 * 64


def test_the_detectors_maps_have_the_strides_of_its_anchors():
    detector = small_detector()
    maps = detector.backbone(torch.randn(1, 3, 128, 192))
    assert detector.backbone.strides == (4, 8, 16, 32, 64)
    for each, stride in zip(maps.values(), detector.backbone.strides, strict=True):
        assert each.shape == (1, 16, 128 // stride, 192 // stride)


def test_an_object_that_no_anchor_covers_by_0_3_has_no_anchor():
    matcher = AnchorMatcher()
    overlaps = torch.tensor([[0.8, 0.1, 0.0, 0.2], [0.0, 0.29, 0.0, 0.1], [0.0, 0.0, 0.31, 0.0]])
    assert matcher(overlaps).tolist() == [0, -1, 2, -1]
    assert matcher(torch.zeros(1, 3)).tolist() == [-1, -1, -1]  # torchvision: all three match
    assert matcher(torch.tensor([[0.5, 0.4]])).tolist() == [0, -2]


def test_the_loss_of_the_proposals_is_l1_over_the_sampled_anchors():
    network = ProposalNetwork(4, (8,), (4,))
    labels = torch.tensor([1.0, 0.0, 0.0, -1.0])  # -1: neither, and not sampled
    deltas, targets = torch.randn(4, 4), torch.randn(4, 4)
    scores = torch.randn(4, 1)
    of_scores, of_boxes = network.compute_loss(scores, deltas, [labels], [targets])
    assert of_boxes == pytest.approx(float((deltas[0] - targets[0]).abs().sum() / 3))
    expected = F.binary_cross_entropy_with_logits(scores[:3, 0], labels[:3])
    assert of_scores == pytest.approx(float(expected))


def test_the_loss_of_the_boxes_is_l1_over_all_sampled_boxes():
    scores, boxes, targets = torch.randn(3, 3), torch.randn(3, 12), torch.randn(3, 4)
    labels = torch.tensor([2, 0, 1])
    found = box_losses(scores, boxes, labels, targets)
    apart = (boxes[0, 8:12] - targets[0]).abs().sum() + (boxes[2, 4:8] - targets[2]).abs().sum()
    assert found["loss_box_reg"] == pytest.approx(float(apart / 3))
    assert found["loss_classifier"] == pytest.approx(float(F.cross_entropy(scores, labels)))


def test_regions_are_cut_without_the_shift_by_half_a_pixel():
    """On a map whose values are its own coordinates, a bin has the coordinate of its centre."""
    across = torch.arange(32.0).expand(1, 1, 32, 32)
    regions = PyramidRegions(7, (4, 8, 16, 32))
    features = {str(i): across for i in range(4)} | {"pool": across}
    cut = regions(features, [torch.tensor([[8.0, 8.0, 36.0, 36.0]])], [(128, 128)])
    # 7 bins of one place, from place 2 on; the centre of place 2 is 2.5, whose value is 2
    torch.testing.assert_close(cut[0, 0, 3], torch.arange(2.0, 9.0))


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (448, 3), (4000, 3)]
)
def test_larger_boxes_come_from_coarser_maps(side, level):
    rois = as_rois([torch.empty(0, 4), torch.tensor([[5.0, 5.0, 5.0 + side, 5.0 + side]])])
    assert rois[0, 0] == 1
    assert PyramidRegions(7, (4, 8, 16, 32)).levels(rois).tolist() == [level]


def test_masks_are_cut_from_their_objects_and_are_0_or_1():
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
    masks[1, :, 16:] = 1
    boxes = [torch.tensor([[2.0, 2.0, 30.0, 30.0]]), torch.empty(0, 4)]
    found = mask_targets([masks, masks[:0]], boxes, [torch.tensor([1]), torch.empty(0).long()], 28)
    expected = (torch.arange(28) >= 14).float().expand(28, 28)
    assert torch.equal(found[0], expected)


def test_the_loss_of_the_masks_is_that_of_each_boxs_own_class():
    logits = torch.randn(2, 3, 4, 4)
    truth = (torch.rand(2, 4, 4) > 0.5).float()
    own = torch.stack([logits[0, 2], logits[1, 0]])
    expected = F.binary_cross_entropy_with_logits(own, truth)
    assert torch.equal(mask_loss(logits, torch.tensor([3, 1]), truth), expected)


def test_the_numbers_of_the_configuration():
    detector: Any = mask_rcnn(SMALL, widths=WIDTHS)
    rpn, heads = detector.rpn, detector.roi_heads
    assert rpn._post_nms_top_n == {"training": 1000, "testing": 1000}
    assert rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert (rpn.nms_thresh, rpn.fg_bg_sampler.batch_size_per_image) == (0.7, 256)
    assert rpn.fg_bg_sampler.positive_fraction == 0.5
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.score_thresh) == (512, 0.05)
    assert (heads.fg_bg_sampler.positive_fraction, heads.nms_thresh) == (0.25, 0.5)
    assert (heads.detections_per_img, heads.box_coder.weights) == (100, (10.0, 10.0, 5.0, 5.0))
    assert (detector.transform.min_size, detector.transform.max_size) == ((800,), 1333)
    assert heads.box_predictor.cls_score.out_features == 81
    assert heads.box_predictor.bbox_pred.out_features == 320


# -- it works -------------------------------------------------------------------------------------


def test_training_gives_five_losses_and_moves_every_parameter():
    detector = small_detector().train()
    images, targets = zip(scene(OBJECTS, (64, 96)), scene(OBJECTS[:1], (70, 60)), strict=True)
    losses = detector(list(images), list(targets))
    assert losses.keys() == LOSSES
    torch.stack(list(losses.values())).sum().backward()
    still = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@torch.no_grad()
def detected(detector: Any, images: list[Tensor]) -> list[dict[str, Tensor]]:
    return detector.eval()(images)


@pytest.mark.parametrize("sampled_boxes", [20, 48])
def test_the_box_head_learns_from_as_many_boxes_of_an_image_as_asked(sampled_boxes):
    detector = mask_rcnn(SMALL, 3, shorter_side=64, widths=WIDTHS, sampled_boxes=sampled_boxes)
    seen = []
    detector.roi_heads.box_head.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    image, target = scene(OBJECTS, (64, 96))
    detector.train()([image, image], [target, target])
    assert seen == [2 * sampled_boxes]


def test_it_learns_one_image():
    """What training calls class 1, its box and its mask is what an evaluation finds."""
    detector = small_detector().train()
    image, target = scene(([4, 4, 30, 36], [34, 24, 62, 60]), (64, 64))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(70):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 70)
        loss: Any = sum(detector([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (found,) = detected(detector, [image])
    order = found["labels"][:2].argsort()
    assert found["labels"][order].tolist() == target["labels"].tolist() == [1, 2]
    assert (box_iou(target["boxes"], found["boxes"][order]).diag() > 0.7).all()
    masks, truth = found["masks"][order, 0] > 0.5, target["masks"].bool()
    overlap = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    assert (overlap > 0.7).all()


def test_detections_are_in_the_images_own_pixels():
    detector: Any = small_detector()
    detector.roi_heads.score_thresh = 0.0
    found = detected(detector, [torch.rand(3, 200, 130), torch.rand(3, 40, 50)])
    for each, size in zip(found, [(200, 130), (40, 50)], strict=True):
        assert len(each["boxes"]) == 100
        assert each["masks"].shape == (100, 1, *size)
        assert each["labels"].min() >= 1
        assert each["labels"].max() <= 3
        assert float(each["boxes"][:, 2].max()) <= size[1]
        assert float(each["boxes"][:, 3].max()) <= size[0]


def test_the_detections_are_those_that_torchvision_selects():
    """Of the boxes. torchvision's masks have a background, ours have none."""
    detector: Any = small_detector().eval()
    heads = detector.roi_heads
    heads.score_thresh = 0.0
    images = [torch.rand(3, 64, 64), torch.rand(3, 50, 90)]
    with torch.no_grad():
        batch, _ = detector.transform(images)
        maps = detector.backbone(batch.tensors)
        proposals, _ = detector.rpn(batch, maps)
        found, _ = heads(maps, proposals, batch.image_sizes)
        heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
        theirs, _ = RoIHeads.forward(heads, maps, proposals, batch.image_sizes)
    for ours, each in zip(found, theirs, strict=True):
        assert {name: len(value) for name, value in ours.items()} == dict.fromkeys(ours, 100)
        assert all(torch.equal(ours[name], value) for name, value in each.items())


@pytest.mark.parametrize("others", [[], [OBJECTS]])
def test_images_without_objects_have_finite_losses(others):
    pairs = [scene(boxes, (64, 64)) for boxes in ([], *others)]
    losses = small_detector().train()([image for image, _ in pairs], [t for _, t in pairs])
    assert losses.keys() == LOSSES
    assert all(math.isfinite(value.item()) for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()


def test_a_detector_of_boxes_alone_needs_no_masks():
    detector: Any = small_detector()
    heads = detector.roi_heads
    heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
    image, target = scene(OBJECTS, (64, 96))
    del target["masks"]
    assert detector.train()([image], [target]).keys() == LOSSES - {"loss_mask"}
    assert detector.eval()([image])[0].keys() == {"boxes", "labels", "scores"}


def test_under_bf16_autocast_boxes_and_scores_are_fp32_and_losses_near():
    detector = small_detector().train()
    image, target = scene(OBJECTS, (64, 96))
    kinds = {}
    for name, module in detector.named_modules():
        if name.endswith(("bbox_pred", "cls_logits", "cls_score", "head.conv", "box_head.fc6")):
            module.register_forward_hook(
                lambda _, __, out, name=name: kinds.update({name: out.dtype})
            )
    losses = {}
    for low in (False, True):
        torch.manual_seed(1)  # the same samples
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            losses[low] = detector([image], [target])
    assert kinds.pop("rpn.head.conv") == kinds.pop("roi_heads.box_head.fc6") == torch.bfloat16
    assert kinds.keys() == {
        *("rpn.head.cls_logits", "rpn.head.bbox_pred"),
        *("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
    }
    assert set(kinds.values()) == {torch.float32}
    for name, loss in losses[True].items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(losses[False][name].item(), abs=0.02), name


def test_without_resizing_images_keep_their_size_in_evaluation_too():
    detector: Any = small_detector().eval()
    detector.transform._skip_resize = True
    images, _ = detector.transform([torch.rand(3, 40, 50)])
    assert images.image_sizes == [(40, 50)]
    assert images.tensors.shape == (1, 3, 64, 64)


def test_the_backbone_gets_the_pixels_that_a_classifier_gets():
    """So weights of a classifier find in the detector what they were trained on."""
    detector: Any = small_detector().eval()
    detector.transform._skip_resize = True
    pixels = torch.randint(256, (1, 64, 96, 3), dtype=torch.uint8)
    images, _ = detector.transform([pixels[0].permute(2, 0, 1).float() / 255])
    torch.testing.assert_close(images.tensors, prepare_eval(pixels))


def without(target: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in target.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: None, "1 images have none targets; give one to each image"),
        (lambda t: without(t, "masks"), "the target of image 0 has no 'masks'"),
        (
            lambda t: t | {"labels": t["labels"] * 0},
            r"labels of image 0 are \[0, 0\] .* from 1 to 3",
        ),
        (
            lambda t: t | {"labels": t["labels"] + 2},
            r"labels of image 0 are \[3, 4\] .* from 1 to 3",
        ),
        (lambda t: t | {"labels": t["labels"].int()}, "torch.int32; give int64"),
        (lambda t: t | {"boxes": t["boxes"][:1]}, r"are \(1, 4\) of torch.float32; give \(2, 4\)"),
        (lambda t: t | {"masks": t["masks"][:, 1:]}, r"masks of image 0 are \(2, 63, 96\)"),
        (lambda t: t | {"boxes": t["boxes"].flip(1)}, "image 0 has the box .* holds no pixel"),
    ],
)
def test_a_wrong_target_is_named(change, said):
    image, target = scene(OBJECTS, (64, 96))
    changed = change(target)
    with pytest.raises(ValueError, match=said):
        small_detector().train()([image], None if changed is None else [changed])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"shorter_side": 900, "longer_side": 800}, "shorter_side=900, longer_side=800"),
        ({"anchor_sizes": (8, 16)}, r"anchor_sizes=\(8, 16\): give 5 sizes"),
    ],
)
def test_a_wrong_detector_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        mask_rcnn(SMALL, **words)
