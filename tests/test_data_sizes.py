"""What a recipe follows from is told by many images, not by one."""

from __future__ import annotations

import pytest
from image_files import encoded, image_folder, photograph

from mambaout.data.decode import Images
from mambaout.data.files import DataError
from mambaout.data.shards import DataSet
from mambaout.data.sizes import facts_of
from mambaout.data.sources import open_data
from mambaout.rules import DataFacts


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


def test_the_short_side_counts_and_an_undecodable_image_does_not(tmp_path):
    folder = tmp_path / "own"
    for split, count in (("train", 5), ("val", 1)):
        for number in range(count):
            path = folder / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photograph(60 + number, 300)))
    (folder / "val" / "b").mkdir()
    (folder / "val" / "b" / "0.png").write_bytes(encoded(photograph(60, 300)))
    whole = encoded(photograph(200, 200))
    (folder / "train" / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert facts(open_data(str(folder), tmp_path / "cache")).image_side in range(60, 65)


def test_a_set_of_which_nothing_can_be_decoded_is_named(tmp_path, monkeypatch):
    folder = image_folder(tmp_path / "own", "{}/{}", count=30)
    data = open_data(str(folder), tmp_path / "cache")
    images = Images(data, "train")
    images.pixels = None
    monkeypatch.setattr(images, "encoded", [images.encoded[0]._replace(image=b"no image")] * 99)
    with pytest.raises(DataError, match=r"none of .* training images can be decoded"):
        facts_of(data, images)
