"""What a recipe follows from is told by many images, not by one."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import encoded, image_folder, photograph, pictures, write_parquet

from mambaout.data.images.decode import Images
from mambaout.data.packing.sizes import facts_of
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.data_set import DataSet
from mambaout.data.shards.files import DataError
from mambaout.recipe import steps_per_epoch
from mambaout.rules import DataFacts, fitted


def facts(data: DataSet) -> DataFacts:
    return facts_of(data, Images(data, "train"))


def test_odd_images_do_not_decide_the_size_that_most_images_have(tmp_path):
    folder = image_folder(tmp_path / "own", "{}/{}", count=60)
    for number, name in enumerate(("000-first", "zzz-last", "m")):
        (folder / "abc"[number] / f"{name}.png").write_bytes(encoded(photograph(400, 300)))
    found = facts(open_data(str(folder), tmp_path / "cache"))
    assert found.image_side == 12
    assert found.num_classes == 3
    assert 40 <= found.num_train <= 63


def shards(folder: Path, images: list[bytes]) -> DataSet:
    labels = [row % 2 for row in range(len(images))]
    write_parquet(folder / "train-00000-of-00001.parquet", images, labels)
    write_parquet(folder / "validation-00000-of-00001.parquet", pictures(2), [0, 1])
    return open_data(str(folder), folder.with_name("cache"))


def test_the_short_side_counts_and_an_undecodable_image_does_not(tmp_path):
    images = [encoded(photograph(60 + number, 300)) for number in range(6)]
    found = facts(shards(tmp_path / "own", [b"no image", *images, b"no image"]))
    assert found.image_side in range(60, 66)


def test_a_set_of_which_nothing_can_be_decoded_is_named(tmp_path):
    data = shards(tmp_path / "own", [b"no image"] * 8)
    with pytest.raises(DataError, match="none of 8 training images can be decoded, row 0 first"):
        facts(data)


@pytest.mark.parametrize("count", [4, 6, 9, 12, 17, 30])
def test_a_set_of_a_few_images_gets_a_recipe_that_it_can_train(count, tmp_path):
    data = shards(tmp_path / "own", pictures(count))
    recipe = fitted(facts(data)).recipe
    assert steps_per_epoch(recipe, data.num_images("train", recipe)) >= 1
