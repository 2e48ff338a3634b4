"""`mambaout evaluate` of a detection: COCO's figures on a set, or what it finds on photographs."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from mambaout.commands.evaluate_dense import (
    DETECTOR_IMAGES,
    check_dense_options,
    device_of,
    print_which,
    shown_places,
    write_sheet,
)
from mambaout.commands.options import load_workers
from mambaout.detect_recipe import NOT_ON_XLA
from mambaout.errors import WrongRequest
from mambaout.launch.named import NamedWeights
from mambaout.numbers import counted, rate_text

if TYPE_CHECKING:
    from mambaout.dense.coco import CocoData
    from mambaout.dense.evaluate import Detections
    from mambaout.model.weights import Weights


def evaluate_detector(options: argparse.Namespace, named: NamedWeights, weights: Weights) -> int:
    """Print the figures, or what is found on each image; returns the exit status."""
    check_dense_options(options, weights.path, "detector")
    if options.backend == "xla":
        raise WrongRequest(NOT_ON_XLA)

    from mambaout.dense.coco import read_coco
    from mambaout.dense.contact_sheet import contact_sheet
    from mambaout.dense.dense_sets import set_root
    from mambaout.dense.evaluate import figures
    from mambaout.dense.trained_detector import figures_text, photographs, trained_detector

    detector = trained_detector(weights)
    if options.images is not None:
        data = photographs(options.images, detector.names_to_show)
    else:
        data = read_coco(set_root(options.data), "val")
        detector.require_classes_of(data)
    device = device_of(options)
    print_which(named, weights, detector.step)
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
        shown = shown_places(len(found), DETECTOR_IMAGES)
        images = [data.pixels(data.images[n]) for n in shown]
        sheet = contact_sheet(images, [found[n] for n in shown], data.class_names)
        write_sheet(options.sheet, sheet, len(shown), len(found))
    return 0


def _found_text(found: Detections, data: CocoData) -> str:
    """What is found on an image, as the sheet shows it: "circle 98, triangle 71"."""
    from mambaout.dense.contact_sheet import LEAST_SCORE, label_text

    sure = [n for n in range(len(found.scores)) if found.scores[n] >= LEAST_SCORE]
    shown = ", ".join(label_text(found, n, data.class_names) for n in sure)
    return shown or f"nothing with a score of {100 * LEAST_SCORE:.0f} or more"
