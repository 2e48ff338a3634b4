"""What `mambaout evaluate` shares for detectors and segmenters: options, checks, the sheet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mambaout.errors import WrongRequest
from mambaout.launch.named import NamedWeights
from mambaout.numbers import counted

if TYPE_CHECKING:
    from mambaout.model.weights import Weights
    from mambaout.train.backend import Backend

DETECTOR_IMAGES, SEGMENTER_IMAGES = 48, 24  # on a sheet at most, spread evenly over the set


def add_dense_evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "detection and segmentation",
        "Only for a run of `mambaout train --task detect` or `--task segment`.",
    )
    text = "in place of --data: show what is found on the images in this folder"
    group.add_argument("--images", metavar="DIR", help=text)
    text = (
        f"draw what is found on a sheet of at most {DETECTOR_IMAGES} images, or "
        f"{SEGMENTER_IMAGES} for a segmenter, and write it here"
    )
    group.add_argument("--sheet", type=Path, metavar="FILE.png", help=text)
    text = "of a segmenter, also mIoU at six scales with mirrors, which takes 17 times as long"
    group.add_argument("--multi-scale", action="store_true", help=text)


def refuse_dense_options(options: argparse.Namespace, path: Path) -> None:
    """Raise WrongRequest if an option of detection or segmentation is given for a classifier."""
    given = [name for name in ("images", "sheet") if getattr(options, name) is not None]
    if given:
        raise WrongRequest(
            f"--{given[0]} is for a detection or segmentation run, and {path} is a classifier; "
            "leave it out"
        )
    if options.multi_scale:
        raise _not_multi_scale(path, "classifier")


def require_no_annotations(source: str, path: Path) -> None:
    """Raise WrongRequest if the data of a classifier are a set in COCO's or ADE20K's format."""
    annotations = Path(source) / "annotations"
    if annotations.is_dir():
        is_maps = (annotations / "training").is_dir()
        purpose, network, task = (
            ("segmentation", "segmenter", "segment")
            if is_maps
            else ("detection", "detector", "detect")
        )
        raise WrongRequest(
            f"{path} is a classifier, and {source} is a set for {purpose}; train a {network} on "
            f"it: mambaout train --task {task} --data {source} --init {path} --out DIR"
        )


def check_dense_options(options: argparse.Namespace, path: Path, network: str) -> None:
    """Raise WrongRequest for what a `network`, "detector" or "segmenter", cannot do with these."""
    given = {
        "--variant": options.variant is not None,
        "--image-size": options.image_size is not None,
        "--batch-size": options.batch_size is not None,
        "--no-ema": options.no_ema,
        "--stage": options.stage is not None,
        "--image-column": options.image_column is not None,
        "--label-column": options.label_column is not None,
        f"--split {options.split}": options.split != "val",
    }
    for name, is_given in given.items():
        if is_given:
            raise WrongRequest(
                f"{name} is for classifiers, and {path} is a {network}; leave it out"
            )
    if options.multi_scale and network != "segmenter":
        raise _not_multi_scale(path, network)
    if (options.data is None) == (options.images is None):
        what = "are two requests" if options.images is not None else "are both missing"
        name = "ADE20K" if network == "segmenter" else "COCO"
        raise WrongRequest(
            f"--data and --images {what}: give --data with a set in {name}'s format, or --images "
            "with a folder of your photographs"
        )
    if options.multi_scale and options.images is not None:
        raise WrongRequest(
            "--multi-scale is for the figures on --data, and --images has no annotations; leave "
            "it out"
        )
    if options.sheet is not None and options.sheet.suffix != ".png":
        raise WrongRequest(f"--sheet {options.sheet} must end in .png")
    if options.sheet is not None and not options.sheet.parent.is_dir():
        raise WrongRequest(f"--sheet {options.sheet}: {options.sheet.parent} is no folder")


def _not_multi_scale(path: Path, network: str) -> WrongRequest:
    return WrongRequest(
        f"--multi-scale is for a segmentation run, and {path} is a {network}; leave it out"
    )


def device_of(options: argparse.Namespace) -> Backend:
    """The devices, as `mambaout train` has them for these tasks: only XLA compiles."""
    from mambaout.cache import default_cache
    from mambaout.train.backend import backend

    compiles = None if options.backend == "xla" else False
    return backend(options.backend, cache=default_cache() / "xla", compiles=compiles)


def print_which(named: NamedWeights, weights: Weights, step: int) -> None:
    """Print which weights are evaluated, and whether they are of other code."""
    unfinished = ", of a run that has not finished" if named.is_unfinished else ""
    print(f"{named.path}: step {step}{unfinished}")
    for line in weights.of_other_numbers:
        print(f"{named.path}: {line}")


def shown_places(num_images: int, most: int) -> list[int]:
    """The places of at most so many images, spread evenly."""
    count = min(most, num_images)
    return [n * num_images // count for n in range(count)]


def write_sheet(path: Path, sheet: bytes, num_shown: int, num_images: int) -> None:
    """Write the sheet and say so. WrongRequest if it cannot be written."""
    from mambaout.durable import write_whole

    try:
        write_whole(path, sheet)
    except OSError as error:
        raise WrongRequest(f"--sheet {path} cannot be written: {error.strerror}") from error
    print(f"{path}: {num_shown} of {counted(num_images, 'image')}")
