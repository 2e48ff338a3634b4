"""Aerial photographs with real boxes and no masks: read right, and no tile is in both splits."""

from __future__ import annotations

import numpy as np
from deepforest_tiles import (
    PHOTOGRAPHS,
    SIDE,
    deepforest_data,
    needs_deepforest,
    tiles,
    write_deepforest_tiles,
)

from mambaout.dense.coco import read_coco


def test_a_box_belongs_to_each_tile_that_holds_half_of_it():
    boxes = [[10, 10, 30, 30], [150, 20, 190, 60], [180, 100, 220, 140], [190, 150, 240, 190]]
    found = {(left, top): each.tolist() for left, top, each in tiles(np.array(boxes), 250, 450)}
    # The third lies in two tiles to one half each; the last to a fifth in the first tile.
    assert found == {(0, 0): [[10, 10, 30, 30], [150, 20, 190, 60], [180, 100, 200, 140]]}
    more = np.array([*boxes, [250, 0, 260, 10]])
    assert [left for left, _, _ in tiles(more, 250, 450)] == [0, 200]


@needs_deepforest
def test_113_tiles_have_at_least_three_trees_and_no_photograph_is_in_both_splits(tmp_path):
    source = deepforest_data()
    assert source is not None
    write_deepforest_tiles(tmp_path, source)
    data = [read_coco(str(tmp_path), split) for split in ("train", "val")]
    assert [len(each.images) for each in data] == [81, 32]
    assert sum(len(image.objects) for each in data for image in each.images) == 812
    for each in data:
        assert not each.has_masks
        assert not any(each.left_out.values())
        assert each.class_names == ("tree",)
        photographs = {image.file_name.rsplit("-", 2)[0] for image in each.images}
        assert photographs == set(PHOTOGRAPHS[each.split])
        for image in each.images:
            assert each.pixels(image).shape == (SIDE, SIDE, 3)
            assert len(image.objects) >= 3
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["val"])
