"""`mambaout evaluate` of a detection: COCO's figures on a set, or what it finds on photographs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mambaout.commands.options import load_workers
from mambaout.detect_recipe import NOT_ON_XLA
from mambaout.errors import WrongRequest
from mambaout.launch.named import NamedWeights
from mambaout.numbers import counted, rate_text

if TYPE_CHECKING:
    from mambaout.dense.coco import CocoData
    from mambaout.dense.evaluate import Detections
    from mambaout.model.weights import Weights

SHEET_IMAGES = 48  # at most, spread evenly over the set


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "detection", "Only for a run of `mambaout train --task detect`."
    )
    text = "in place of --data: show what the detector finds on the images in this folder"
    group.add_argument("--images", metavar="DIR", help=text)
    text = f"draw what it finds on a sheet of at most {SHEET_IMAGES} images, and write it here"
    group.add_argument("--sheet", type=Path, metavar="FILE.png", help=text)


def refuse_detector_options(options: argparse.Namespace, path: Path) -> None:
    """Raise WrongRequest if an option of detection is given for a classifier."""
    given = [name for name in ("images", "sheet") if getattr(options, name) is not None]
    if given:
        raise WrongRequest(
            f"--{given[0]} is for a detection run, and {path} is a classifier; leave it out"
        )


def require_no_annotations(source: str, path: Path) -> None:
    """Raise WrongRequest if the data of a classifier are a set in COCO's format."""
    if (Path(source) / "annotations").is_dir():
        raise WrongRequest(
            f"{path} is a classifier, and {source} is a set for detection; train a detector on it: "
            f"mambaout train --task detect --data {source} --init {path} --out DIR"
        )


def evaluate_detector(options: argparse.Namespace, named: NamedWeights, weights: Weights) -> int:
    """Print the figures, or what is found on each image; returns the exit status."""
    _check(options, weights)

    from mambaout.dense.coco import read_coco
    from mambaout.dense.dense_sets import set_root
    from mambaout.dense.evaluate import figures
    from mambaout.dense.trained_detector import figures_text, photographs, trained_detector
    from mambaout.train.backend import backend

    detector = trained_detector(weights)
    if options.images is not None:
        data = photographs(options.images, detector.names_to_show)
    else:
        data = read_coco(set_root(options.data), "val")
        detector.require_classes_of(data)
    device = backend(options.backend)
    unfinished = ", of a run that has not finished" if named.is_unfinished else ""
    print(f"{named.path}: step {detector.step}{unfinished}")
    for line in weights.of_other_numbers:
        print(f"{named.path}: {line}")
    started = time.monotonic()
    found = detector.found(data, device, load_workers(options.workers, device.name))
    rate = rate_text(len(found) / (time.monotonic() - started))
    if options.images is None:
        sides = f"{detector.recipe.shorter_side} x {detector.recipe.longer_side} px"
        print(f"{data.file}: {counted(len(found), 'image')} within {sides}, {rate} images/s")
        print(figures_text(figures(data, found)))
    else:
        for image, one in zip(data.images, found, strict=True):
            print(f"{image.file_name}: {_found_text(one, data)}")
        print(f"{counted(len(found), 'image')}, {rate} images/s")
    if options.sheet is not None:
        _write_sheet(options.sheet, data, found)
    return 0


def _check(options: argparse.Namespace, weights: Weights) -> None:
    """Raise WrongRequest for what a detector cannot do with these options."""
    path = weights.path
    if weights.task != "detect":
        raise WrongRequest(
            f"{path} is of a run with --task {weights.task}; evaluate takes classifiers and "
            "detectors; the figures of a segmenter are in outcome.json of its run"
        )
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
            raise WrongRequest(f"{name} is for classifiers, and {path} is a detector; leave it out")
    if options.backend == "xla":
        raise WrongRequest(NOT_ON_XLA)
    if (options.data is None) == (options.images is None):
        what = "are two requests" if options.images is not None else "are both missing"
        raise WrongRequest(
            f"--data and --images {what}: give --data with a set in COCO's format, or --images "
            "with a folder of your photographs"
        )
    if options.sheet is not None and options.sheet.suffix != ".png":
        raise WrongRequest(f"--sheet {options.sheet} must end in .png")
    if options.sheet is not None and not options.sheet.parent.is_dir():
        raise WrongRequest(f"--sheet {options.sheet}: {options.sheet.parent} is no folder")


def _found_text(found: Detections, data: CocoData) -> str:
    """What is found on an image, as the sheet shows it: "circle 98, triangle 71"."""
    from mambaout.dense.contact_sheet import LEAST_SCORE, label_text

    sure = [n for n in range(len(found.scores)) if found.scores[n] >= LEAST_SCORE]
    shown = ", ".join(label_text(found, n, data.class_names) for n in sure)
    return shown or f"nothing with a score of {100 * LEAST_SCORE:.0f} or more"


def _write_sheet(path: Path, data: CocoData, found: list[Detections]) -> None:
    from mambaout.dense.contact_sheet import contact_sheet
    from mambaout.durable import write_whole

    count = min(SHEET_IMAGES, len(found))
    shown = [n * len(found) // count for n in range(count)]
    images = [data.pixels(data.images[n]) for n in shown]
    try:
        write_whole(path, contact_sheet(images, [found[n] for n in shown], data.class_names))
    except OSError as error:
        raise WrongRequest(f"--sheet {path} cannot be written: {error.strerror}") from error
    print(f"{path}: {count} of {counted(len(found), 'image')}")
