"""Make JPEGs like ImageNet's from photographs that come with packages.

Run:    python benchmarks/photographs.py OUT --count 2000      (about 40 s on 2 cores, 230 MB)
Writes: OUT/train/CLASS/*.jpg and a tenth as many OUT/val/CLASS/*.jpg; a class is a photograph
Prints: their number, mean size in kB and in pixels

Each image is a random crop of one photograph: from the whole photograph down to a crop that is not
reduced. It is scaled to one of the common sizes of ImageNet (500x375 for 42 %, 500x333 for 16 %,
375x500 for 14 %) and gets mild sensor noise. It is a JPEG of quality 93 to 98; four in five have
4:2:0 chroma. With the same photographs and the same Pillow, the same command gives the same images.

Photographs: 2 of scikit-learn and 5 of scikit-image, which are in their wheels. Also, if these
Debian packages are installed (with apt install), 12 of mate-backgrounds, 34 of opencv-doc and 6 of
labelme-examples. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image

# (width, height) and its share. The last six make the mean 199,000 pixels.
SIZES = {
    (500, 375): 0.42,
    (500, 333): 0.16,
    (375, 500): 0.14,
    (333, 500): 0.08,
    (640, 480): 0.08,
    (500, 500): 0.06,
    (400, 300): 0.04,
    (800, 600): 0.02,
}
QUALITY = (93, 98)  # both included
HALF_CHROMA = 0.8  # share of 4:2:0; the rest is 4:4:4
NOISE = (0.5, 4.5)  # standard deviation in grey levels, drawn for each image
VAL_SHARE = 0.1  # val images for each training image; at least one in a class
LONGEST_SIDE = 2048  # px; larger photographs are reduced to it before they are cut

# First the files of the wheels, then those of Debian's packages under /usr/share.
WHEELS = {
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
    "skimage": ("data", "astronaut.png chelsea.png coffee.png motorcycle_left.png rocket.jpg"),
}
DEBIAN = {
    "backgrounds/mate/nature": (
        "Aqua.jpg Blinds.jpg Dune.jpg FreshFlower.jpg Garden.jpg GreenMeadow.jpg LadyBird.jpg "
        "RainDrops.jpg Storm.jpg TwoWings.jpg Wood.jpg YellowFlower.jpg"
    ),
    "doc/opencv-doc/examples/alphamat/input_images": "plant.jpg",
    "doc/opencv-doc/examples/data": (
        "aero1.jpg aloeL.jpg apple.jpg baboon.jpg board.jpg building.jpg butterfly.jpg "
        "ela_original.jpg fruits.jpg graf1.png home.jpg left.jpg leuvenA.jpg messi5.jpg "
        "orange.jpg rubberwhale1.png squirrel_cls.jpg starry_night.jpg stuff.jpg"
    ),
    "doc/opencv-doc/examples/hfs/data": "000.jpg 001.jpg 002.jpg",
    "doc/opencv-doc/examples/text": (
        "scenetext01.jpg scenetext02.jpg scenetext03.jpg scenetext04.jpg scenetext05.jpg "
        "scenetext06.jpg scenetext_segmented_word01.jpg scenetext_segmented_word02.jpg "
        "scenetext_segmented_word03.jpg scenetext_segmented_word04.jpg "
        "scenetext_segmented_word05.jpg"
    ),
    "doc/labelme-examples/examples/classification/data_annotated": "0001.jpg 0002.jpg",
    "doc/labelme-examples/examples/instance_segmentation/data_annotated": (
        "2011_000003.jpg 2011_000006.jpg 2011_000025.jpg"
    ),
    "doc/labelme-examples/examples/tutorial": "apc2016_obj3.jpg",
}


def photographs(share: Path = Path("/usr/share")) -> dict[str, Path]:
    """The installed photographs, each by the name of its class."""
    folders = [(share / folder, names) for folder, names in DEBIAN.items()]
    for package, (folder, names) in WHEELS.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append((Path(spec.origin).parent / folder, names))
    files = [folder / name for folder, names in folders for name in names.split()]
    return {path.stem.lower(): path for path in sorted(files) if path.is_file()}


class PhotographTask(NamedTuple):
    """The images to make from one photograph for one split."""

    source: Path
    folder: Path
    split: str
    num_images: int
    seed: int


def make(
    out: Path,
    count: int,
    *,
    seed: int = 0,
    val_share: float = VAL_SHARE,
    sources: dict[str, Path] | None = None,
) -> str:
    """Write `count` training images and a share of it for validation. Returns a report.

    Raises FileExistsError if `out` is a folder that is not empty. Raises ValueError if there are no
    photographs, or if `count` is less than one image for each.
    """
    sources = photographs() if sources is None else sources
    if not sources:
        raise ValueError("no photographs are installed: pip install scikit-image scikit-learn")
    if count < len(sources):
        raise ValueError(f"--count {count} is less than one of each of {len(sources)} photographs")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; name a new folder")
    tasks = [
        PhotographTask(
            source, out / split / name, split, len(range(index, total, len(sources))), seed
        )
        for split, total in (("train", count), ("val", max(len(sources), int(count * val_share))))
        for index, (name, source) in enumerate(sources.items())
    ]
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        made = [image for images in pool.imap_unordered(write, tasks) for image in images]
    sizes, pixels = np.array(made).T
    return (
        f"{len(made)} JPEGs of {len(sources)} photographs: mean {sizes.mean() / 1000:.1f} kB, "
        f"{pixels.mean() / 1000:.0f} kpx; kB by tenths of them "
        f"{' '.join(f'{size / 1000:.0f}' for size in np.percentile(sizes, range(10, 100, 20)))}"
    )


def write(task: PhotographTask) -> list[tuple[int, int]]:
    """Write the task's images to files. Returns the bytes and the pixels of each."""
    task.folder.mkdir(parents=True, exist_ok=True)
    photograph, made = _opened(task.source), []
    for index in range(task.num_images):
        # Seeded by the class's name, so that one more photograph does not change the others.
        place = crc32(f"{task.split}/{task.folder.name}".encode())
        random = np.random.default_rng([task.seed, place, index])
        image = picture(photograph, random)
        path = task.folder / f"{index:05d}.jpg"
        half = random.random() < HALF_CHROMA
        quality = int(random.integers(QUALITY[0], QUALITY[1] + 1))
        image.save(path, "JPEG", quality=quality, subsampling=2 if half else 0)
        made.append((path.stat().st_size, image.width * image.height))
    return made


@functools.lru_cache(maxsize=2)
def _opened(path: Path) -> Image.Image:
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return image


def picture(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """A crop of the photograph, scaled to one of the sizes, with noise."""
    width, height = list(SIZES)[random.choice(len(SIZES), p=list(SIZES.values()))]
    largest = min(photograph.width / width, photograph.height / height)
    # Pixels of the photograph for each pixel of the picture: log-uniform between 1 and the whole. A
    # small photograph is enlarged and cut to at least two thirds of its sides.
    least = min(1.0, largest / 1.5)
    zoom = float(np.exp(random.uniform(np.log(least), np.log(largest))))
    box_width, box_height = zoom * width, zoom * height
    left = random.uniform(0, photograph.width - box_width)
    top = random.uniform(0, photograph.height - box_height)
    image = photograph.resize(
        (width, height),
        Image.Resampling.LANCZOS,
        box=(left, top, left + box_width, top + box_height),
    )
    pixels = np.asarray(image).astype(np.float32)
    pixels += random.uniform(*NOISE) * random.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2000, help="training images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        print(make(options.out, options.count, seed=options.seed))
    except (ValueError, FileExistsError) as error:
        print(f"photographs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
