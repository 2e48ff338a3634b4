"""The generated sets: the label is in the image, and in no small piece or count of it."""

from __future__ import annotations

from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mambaout.data.packing.named_sets import NAMED
from mambaout.data.packing.order_sets import (
    CELL_SIDE,
    COLOURS,
    GLYPHS,
    GRID,
    PAIR_KINDS,
    PAPER,
    SIDE,
    lit_grid,
    pair_parts,
)

NUM = 3000  # images that a test looks at; an accuracy on half of them has an error of 1.3 points
CLASSES = {"distant-pair": 2, "next-patch": 8}
# The digest of the first 8 images of train, then of val
PIXELS = {"distant-pair": "6bbc634686c8", "next-patch": "02dee6ffe4d1"}


def source(name, tmp_path):
    return NAMED[name].read(tmp_path)


def pixels(name, tmp_path, number, split="train"):
    samples = getattr(source(name, tmp_path), split)[:number]
    images = np.stack([sample.read() for sample in samples])
    return images, np.array([sample.label for sample in samples])


def accuracy(features, labels):
    """Of a logistic regression that is fitted on one half, on the other half."""
    half = len(labels) // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    model.fit(features[:half], labels[:half])
    return model.score(features[half:], labels[half:])


def tells_nothing(values, labels):
    table = np.zeros((values.max() + 1, labels.max() + 1))
    np.add.at(table, (values, labels), 1)
    found: Any = chi2_contingency(table)
    return found.pvalue > 1e-3


@pytest.mark.parametrize("name", CLASSES)
def test_the_pixels_are_the_same_on_any_machine(name, tmp_path):
    digest = blake2b(digest_size=6)
    for split in ("train", "val"):
        images, _ = pixels(name, tmp_path, 8, split)
        digest.update(images.tobytes())
    assert digest.hexdigest() == PIXELS[name]


@pytest.mark.parametrize("name", CLASSES)
def test_both_splits_have_equally_many_images_of_each_class(name, tmp_path):
    found = source(name, tmp_path)
    assert found.class_names is not None
    assert len(found.class_names) == CLASSES[name]
    for samples, number in ((found.train, 20_000), (found.val, 4_000)):
        counts = np.bincount([sample.label for sample in samples])
        assert counts.tolist() == [number // CLASSES[name]] * CLASSES[name]


@pytest.mark.parametrize("name", CLASSES)
def test_the_rules_know_that_the_label_is_an_arrangement(name):
    assert NAMED[name].is_arrangement


# -- distant-pair ---------------------------------------------------------------------------------


def test_the_label_is_whether_the_upper_two_framed_glyphs_are_of_one_kind():
    for index in range(200):
        label, framed, _ = pair_parts("train", index)
        upper = [one.kind for one in sorted(framed, key=lambda one: one.top)[:2]]
        assert label == (upper[0] == upper[1]) == index % 2


def test_framed_glyphs_are_half_a_side_apart_or_more():
    for index in range(300):
        _, framed, _ = pair_parts("train", index)
        for one, other in combinations(framed, 2):
            assert max(abs(one.top - other.top), abs(one.left - other.left)) >= SIDE // 2


def test_no_framed_glyph_alone_tells_the_label():
    drawn = [pair_parts("train", index) for index in range(NUM)]
    labels = np.array([label for label, _, _ in drawn])
    for corner in range(4):
        assert tells_nothing(np.array([framed[corner].kind for _, framed, _ in drawn]), labels)


def test_the_framed_glyphs_have_two_of_each_of_two_kinds_in_both_classes():
    for index in range(500):
        counts = np.bincount([one.kind for one in pair_parts("train", index)[1]])
        assert sorted(counts[counts > 0]) == [2, 2]


def test_a_logistic_regression_on_the_counts_of_glyphs_is_at_chance():
    counts = np.zeros((NUM, 2, PAIR_KINDS))
    for index in range(NUM):
        _, *groups = pair_parts("train", index)
        for which, group in enumerate(groups):
            for one in group:
                counts[index, which, one.kind] += 1
    flat = counts.reshape(NUM, -1)
    products = flat[:, :, None] * flat[:, None]  # any pair of counts
    features = np.concatenate([flat, products.reshape(NUM, -1)], 1)
    assert accuracy(features, np.arange(NUM) % 2) == pytest.approx(0.5, abs=0.04)


def test_a_logistic_regression_on_pooled_local_features_is_at_chance(tmp_path):
    """Local features: random 9 x 9 filters with a ReLU, at every third pixel."""
    import torch
    from torch.nn.functional import conv2d, relu

    images, labels = pixels("distant-pair", tmp_path, 1600)
    inputs = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    filters = torch.randn(24, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    filters -= filters.mean((1, 2, 3), keepdim=True)
    found = torch.cat([relu(conv2d(part, filters, stride=3)) for part in inputs.split(250)])
    pooled = torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1).numpy()
    assert accuracy(pooled, labels) == pytest.approx(0.5, abs=0.07)


# -- next-patch -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grids():
    return [lit_grid("train", index) for index in range(NUM)]


def test_the_label_is_the_kind_after_the_lit_cell_in_raster_order(grids):
    for index, grid in enumerate(grids):
        assert grid.kinds[grid.lit + 1] == grid.label == index % 8


def test_half_of_the_lit_cells_are_the_last_of_their_row(grids):
    share = np.mean([grid.lit % GRID == GRID - 1 for grid in grids])
    assert share == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("step", [-GRID, -1, 0, 2, GRID], ids=lambda step: f"{step:+d}")
def test_no_other_cell_near_the_lit_one_tells_the_label(grids, step):
    near = [
        (1 + grid.kinds[grid.lit + step], grid.label)  # 0: empty
        for grid in grids
        if 0 <= grid.lit + step < GRID * GRID
    ]
    assert tells_nothing(*map(np.array, zip(*near, strict=True)))


def test_the_place_of_the_lit_cell_tells_nothing(grids):
    assert tells_nothing(*np.array([(grid.lit // GRID, grid.label) for grid in grids]).T)
    assert tells_nothing(*np.array([(grid.lit % GRID, grid.label) for grid in grids]).T)


def test_a_logistic_regression_on_the_counts_of_glyphs_is_far_from_the_label(grids):
    """The glyph after the lit cell raises its kind's count by one, which is above chance, 1/8."""
    counts = np.array([np.bincount(1 + grid.kinds, minlength=9) for grid in grids])
    assert accuracy(counts, np.arange(NUM) % 8) < 0.3


def test_the_pixels_show_the_lit_cell_and_the_glyph_after_it(tmp_path):
    """Read by hand: the brightest cell, then the glyph that fits the next cell best."""
    images, labels = pixels("next-patch", tmp_path, 300)
    right = 0
    for image, label in zip(images.astype(float), labels, strict=True):
        cells = image.reshape(GRID, CELL_SIDE, GRID, CELL_SIDE, 3).swapaxes(1, 2)
        cells = cells.reshape(GRID * GRID, CELL_SIDE, CELL_SIDE, 3)
        edges = cells[:, [0, -1]].mean((1, 2, 3)) + cells[:, :, [0, -1]].mean((1, 2, 3))
        after = cells[edges.argmax() + 1]
        room = range(CELL_SIDE - GLYPHS.shape[1] + 1)
        fits = [
            max(fit(after, kind, top, left) for top in room for left in room)
            for kind in range(len(GLYPHS))
        ]
        right += int(np.argmax(fits)) == label
    assert right > 0.95 * len(labels)


def fit(cell, kind, top, left):
    """How well a glyph at a place fits a cell."""
    glyph = GLYPHS[kind]
    drawn = np.full_like(cell, PAPER)
    drawn[top : top + len(glyph), left : left + len(glyph)][glyph] = COLOURS[kind]
    return -np.square(cell - drawn).sum()
