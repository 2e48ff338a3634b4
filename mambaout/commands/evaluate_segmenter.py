"""`mambaout evaluate` of a segmentation: mIoU on a set, or the largest classes of photographs."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from mambaout.commands.evaluate_dense import (
    SEGMENTER_IMAGES,
    check_dense_options,
    device_of,
    print_which,
    shown_places,
    write_sheet,
)
from mambaout.commands.options import load_workers
from mambaout.launch.named import NamedWeights
from mambaout.numbers import counted, rate_text

if TYPE_CHECKING:
    from mambaout.model.weights import Weights


def evaluate_segmenter(options: argparse.Namespace, named: NamedWeights, weights: Weights) -> int:
    """Print the figures, or the classes of each photograph; returns the exit status."""
    check_dense_options(options, weights.path, "segmenter")

    from mambaout.dense.confusion import MIOU, MIOU_MULTI_SCALE
    from mambaout.dense.dense_sets import segment_sets
    from mambaout.dense.segment_sheet import map_tile
    from mambaout.dense.trained_segmenter import (
        photograph_data,
        shares_text,
        sheet_of,
        table_text,
        trained_segmenter,
    )

    segmenter = trained_segmenter(weights)
    if options.images is not None:
        data = photograph_data(options.images, segmenter.names_to_show)
    else:
        data = segment_sets(options.data).val
        segmenter.require_classes_of(data)
    device = device_of(options)
    workers = load_workers(options.workers, device.name)
    print_which(named, weights, segmenter.step)
    shown = [] if options.sheet is None else shown_places(len(data), SEGMENTER_IMAGES)
    started = time.monotonic()
    if options.images is None:
        confusion, maps = segmenter.evaluated(data, device, workers, keep=shown)
        rate = rate_text(len(data) / (time.monotonic() - started))
        values = confusion.figures()
        if options.multi_scale:
            several, _ = segmenter.evaluated(data, device, workers, multi_scale=True)
            values[MIOU_MULTI_SCALE] = several.figures()[MIOU]
        sides = f"{segmenter.recipe.shorter_side} x {segmenter.recipe.longer_side} px"
        print(f"{data.folder}: {counted(len(data), 'image')} within {sides}, {rate} images/s")
        print(table_text(values, confusion.class_iou(), data.class_names))
    else:
        maps = {}
        for index, classes in enumerate(segmenter.maps(data, device, workers)):
            print(f"{data.names[index]}: {shares_text(classes, data.class_names)}", flush=True)
            if index in shown:
                maps[index] = map_tile(classes)  # a photograph's own map may be large
        rate = rate_text(len(data) / (time.monotonic() - started))
        print(f"{counted(len(data), 'image')}, {rate} images/s")
    if options.sheet is not None:
        sheet = sheet_of(data, maps, data.class_names)
        write_sheet(options.sheet, sheet, len(shown), len(data))
    return 0
