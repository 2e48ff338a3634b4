"""The loaders that benchmarks/loader.py compares, each with the usual settings of its users.

An adapter takes the folder of photographs, the augmentation ("randaugment" or "crop") and the
number of worker processes. It yields batches of 64 images of 224 px for ever. All loaders draw a
random resized crop of 0.08 to 1 of the area and a flip. The differences:

| loader | with "randaugment" | gives | pixels from |
|---|---|---|---|
| exact, fast | rand-m9-mstd0.5-inc1 | uint8; erasing and the rest are the device's | our shards |
| exact-plain, fast-plain | the same | the same | shards that are not re-cut |
| timm | rand-m9-mstd0.5-inc1, erasing 0.25 | floats, normalised and erased, its default | files |
| timm-uint8 | rand-m9-mstd0.5-inc1 | uint8, what its workers hand to its prefetcher | files |
| torchvision | v2.RandAugment(2, 9) on tensors | uint8 | files |
| webdataset | v2.RandAugment(2, 9) on Pillow images | uint8 | 8 tars |
| datasets | v2.RandAugment(2, 9) on Pillow images | uint8 | 8 Parquet files, through Arrow |
| ray | v2.RandAugment(2, 9) on Pillow images | uint8 | 8 Parquet files |

timm and our loaders draw the filter of each crop, bilinear or bicubic. The others use bicubic with
antialiasing. v2's RandAugment has a fixed magnitude without noise. The four other peers do no
normalisation and no erasing, which is an advantage over timm. They stack their images with torch's
or numpy's stack. Ray Data reads in the order of the files; the other peers shuffle.
"""

from __future__ import annotations

import io
import logging
import shutil
import tarfile
from collections.abc import Callable, Generator, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mambaout.data.draws import hash64
from mambaout.data.packing.sources import open_data, pack
from mambaout.launch.cluster import QUIET
from mambaout.recipe import BASELINE, tuned

BATCH, SIZE = 64, 224
NUM_SHARDS = 8  # of tars and of plain Parquet files
# The libraries read these when they are imported.
ENVIRONMENT = QUIET | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
Batches = Generator[Any]  # tensors or arrays of BATCH images


# -- the same photographs in the format of each loader --------------------------------------------


def prepare(folder: Path, count: int) -> str:
    """Make the missing files, tars and shards of the photographs under `folder`. Returns a report.

    Our own shards are always packed anew, because `mambaout pack` may have changed.
    """
    about = folder / "photographs.txt"
    if not about.exists():
        shutil.rmtree(folder, ignore_errors=True)
        words = photographs.make(folder / "tree", count)
        files = sorted((folder / "tree" / "train").glob("*/*.jpg"), key=_shuffled)
        labels = {path.parent.name: 0 for path in sorted(files)}
        labels = {name: label for label, name in enumerate(labels)}
        write_tars(folder / "tar", files, labels)
        write_plain(folder / "plain", "train", files, labels, NUM_SHARDS)
        held = sorted((folder / "tree" / "val").glob("*/*.jpg"), key=_shuffled)
        write_plain(folder / "plain", "validation", held, labels, 1)
        about.write_text(words)
    shutil.rmtree(folder / "packed", ignore_errors=True)
    pack(str(folder / "tree"), folder / "packed")
    return about.read_text()


def _shuffled(path: Path) -> int:
    return hash64(f"{path.parent.name}/{path.name}".encode())


def write_tars(folder: Path, files: list[Path], labels: dict[str, int]) -> None:
    """Write tars for webdataset: the files of a sample follow each other under one key."""
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for index, path in enumerate(files[shard::NUM_SHARDS]):
                label = str(labels[path.parent.name]).encode()
                for suffix, content in (("jpg", path.read_bytes()), ("cls", label)):
                    member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_plain(
    folder: Path, split: str, files: list[Path], labels: dict[str, int], num_shards: int
) -> None:
    """Write shards like Hugging Face's: the bytes of the files, in row groups of 100."""
    (folder / split).mkdir(parents=True)
    feature = '{"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}'
    metadata = {"huggingface": f'{{"info": {{"features": {feature}}}}}'}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
    for shard in range(num_shards):
        part = files[shard::num_shards]
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in part]
        own = [labels[path.parent.name] for path in part]
        table = pa.table({"image": images, "label": own}, schema=schema)
        name = f"{split}-{shard:05d}-of-{num_shards:05d}.parquet"
        pq.write_table(table, folder / split / name, compression="none", row_group_size=100)


# -- ours -----------------------------------------------------------------------------------------


def ours(shards: str, pixels: str) -> Callable[[Path, str, int], Batches]:
    def batches(folder: Path, augment: str, workers: int) -> Batches:
        from mambaout.data.batches.loader import TrainBatches

        recipe = tuned(
            BASELINE, global_batch=BATCH, image_size=SIZE,
            randaugment=9.0 if augment == "randaugment" else 0.0,
            pixels=pixels,
        )  # fmt: skip
        data = open_data(str(folder / shards), folder / "cache")
        for batch in TrainBatches(data, recipe, seed=0, num_workers=workers).starting_at(0):
            yield batch.images

    return batches


# -- timm -----------------------------------------------------------------------------------------


def timm_loader(folder: Path, augment: str, workers: int) -> Any:
    import torch
    from timm.data import auto_augment
    from timm.data.dataset import ImageDataset
    from timm.data.loader import create_loader

    # timm 1.0.31 asks for 0 bits in one of 1,000 images, and Pillow 13 raises an error for it.
    whole = auto_augment.LEVEL_TO_ARG["PosterizeIncreasing"]
    auto_augment.LEVEL_TO_ARG["PosterizeIncreasing"] = lambda level, hparams: (
        max(1, whole(level, hparams)[0]),
    )
    full = augment == "randaugment"
    return create_loader(
        ImageDataset(str(folder / "tree" / "train")),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        scale=(0.08, 1.0),
        interpolation="random",
        auto_augment="rand-m9-mstd0.5-inc1" if full else None,
        color_jitter=0.0,
        re_prob=0.25 if full else 0.0,
        re_mode="pixel",
        num_workers=workers,
        device=torch.device("cpu"),
    )


def timm(folder: Path, augment: str, workers: int) -> Batches:
    return endless(timm_loader(folder, augment, workers))


def timm_uint8(folder: Path, augment: str, workers: int) -> Batches:
    return endless(timm_loader(folder, augment, workers).loader)


# -- torchvision, webdataset, Hugging Face datasets ------------------------------------------------


def transform(augment: str, *, from_pillow: bool) -> Callable[[Any], Any]:
    """The transform of torchvision's v2, to uint8 (3, 224, 224)."""
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=InterpolationMode.BICUBIC)
    steps: list[Any] = [crop, v2.RandomHorizontalFlip()]
    if augment == "randaugment":
        steps.append(v2.RandAugment(2, 9))
    if from_pillow:
        steps.append(v2.PILToTensor())
    return v2.Compose(steps)


def torchvision(folder: Path, augment: str, workers: int) -> Batches:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image

    data = ImageFolder(
        str(folder / "tree" / "train"),
        transform(augment, from_pillow=False),
        loader=lambda path: decode_image(path, ImageReadMode.RGB),
    )
    loader = DataLoader(
        data, BATCH, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return endless(loader)


def webdataset(folder: Path, augment: str, workers: int) -> Batches:
    webdataset: Any = import_module("webdataset")
    shards = [str(path) for path in sorted((folder / "tar").glob("*.tar"))]
    data = webdataset.WebDataset(shards, resampled=True, shardshuffle=False, seed=0).shuffle(1000)
    pictures = data.decode("pilrgb").to_tuple("jpg", "cls")
    change = transform(augment, from_pillow=True)
    pictures = pictures.map_tuple(change, int).batched(BATCH, partial=False)
    return endless(webdataset.WebLoader(pictures, batch_size=None, num_workers=workers))


def datasets(folder: Path, augment: str, workers: int) -> Batches:
    import torch
    from torch.utils.data import DataLoader

    datasets: Any = import_module("datasets")
    datasets.disable_progress_bars()
    files = [str(path) for path in sorted((folder / "plain" / "train").glob("*.parquet"))]
    data: Any = datasets.Dataset.from_parquet(files, cache_dir=str(folder / "cache" / "datasets"))
    change = transform(augment, from_pillow=True)

    def pictures(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return rows | {"image": [change(image.convert("RGB")) for image in rows["image"]]}

    data.set_transform(pictures)
    loader = DataLoader(
        data, BATCH, shuffle=True, num_workers=workers, drop_last=True,
        collate_fn=lambda rows: (torch.stack([row["image"] for row in rows]),),
        persistent_workers=workers > 0,
    )  # fmt: skip
    return endless(loader)


def endless(loader: Iterable[Any]) -> Batches:
    while True:
        for batch in loader:
            yield batch[0]


# -- Ray Data -------------------------------------------------------------------------------------


def ray(folder: Path, augment: str, workers: int) -> Batches:
    import ray

    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False,
        logging_level=40, object_store_memory=2**29,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    change = transform(augment, from_pillow=True)

    def pictures(rows: Any) -> dict[str, Any]:
        opened = (Image.open(io.BytesIO(image["bytes"])) for image in rows["image"])
        images = np.stack([np.asarray(change(image.convert("RGB"))) for image in opened])
        return {"image": images, "label": rows["label"]}

    files = [str(path) for path in sorted((folder / "plain" / "train").glob("*.parquet"))]
    data = ray.data.read_parquet(files)  # a path that is named twice is read once
    data = data.map_batches(pictures, batch_size=BATCH)
    try:
        while True:
            for batch in data.iter_batches(batch_size=BATCH):
                yield batch["image"]
    finally:
        ray.shutdown()


LOADERS: dict[str, Callable[[Path, str, int], Batches]] = {
    "fast": ours("packed", "fast"),
    "exact": ours("packed", "exact"),
    "fast-plain": ours("plain", "fast"),
    "exact-plain": ours("plain", "exact"),
    "timm": timm,
    "timm-uint8": timm_uint8,
    "torchvision": torchvision,
    "webdataset": webdataset,
    "datasets": datasets,
    "ray": ray,
}
