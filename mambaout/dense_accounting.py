"""Closed-form MACs and parameters of Mask R-CNN and UperNet on the backbone.

    DETECTOR.cost(variant("tiny")).macs  # 262,084,272,640 at 800 x 1280
    print(dense_table(SEGMENTER, {"tiny": variant("tiny")}, (512, 2048), 150))

The published tables (paper, Tables 2 and 3) follow from one rule, which is that of mmdetection 2
and mmsegmentation: multiply-adds of convolutions and linear layers, for one image. A detector
never has the same number of boxes twice, so the rule fixes it. Pure values: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mambaout.accounting import Cost, cost_of
from mambaout.dense_layers import (
    ADE20K_CLASSES,
    AUXILIARY,
    COCO_CLASSES,
    COUNTED_MASKS,
    PROPOSALS,
    detector_layers,
    segmenter_layers,
)
from mambaout.layers import ImageSize, NetworkPart, size_text
from mambaout.variants import VARIANTS, ModelConfig


@dataclass(frozen=True)
class DenseTask:
    """A network on the backbone, and how the paper's table counts it."""

    name: str  # of the network
    image_size: ImageSize  # of the published table, (height, width) in pixels
    num_classes: int
    layers: Callable[[ModelConfig, ImageSize, int], list[NetworkPart]]
    groups: Mapping[str, str]  # a column of the table -> how the names of its parts begin
    published: Mapping[str, tuple[int, int]]  # variant -> giga MACs, millions of parameters
    source: str
    counted: str
    not_counted: str

    def parts(
        self, config: ModelConfig, image_size: ImageSize, num_classes: int
    ) -> list[tuple[str, Cost]]:
        """The cost of each part of the network; a part for training alone has parameters alone."""
        found = []
        for part in self.layers(config, image_size, num_classes):
            cost = cost_of(part.layers.values()).times(part.times)
            found.append((part.name, Cost(cost.params) if part.name == AUXILIARY else cost))
        return found

    def cost(
        self,
        config: ModelConfig,
        image_size: ImageSize | None = None,
        num_classes: int | None = None,
    ) -> Cost:
        """The cost of the whole network; by default with the published table's sizes."""
        size = self.image_size if image_size is None else image_size
        classes = self.num_classes if num_classes is None else num_classes
        return sum((cost for _, cost in self.parts(config, size, classes)), Cost())


DETECTOR = DenseTask(
    name="Mask R-CNN",
    image_size=(800, 1280),
    num_classes=COCO_CLASSES,
    layers=detector_layers,
    groups={
        "backbone": "backbone.body.",
        "FPN": "backbone.fpn",
        "RPN": "rpn.",
        "box head": "roi_heads.box_",
        "mask head": "roi_heads.mask_",
    },
    published={"tiny": (262, 43), "small": (354, 65), "base": (495, 100)},
    source="paper, Table 2",
    counted=f"multiply-adds of convolutions and linear layers: the RPN on five maps, the box head "
    f"on {PROPOSALS:,} boxes, the mask head on {COUNTED_MASKS} of them (the rule of mmdetection 2)",
    not_counted="RoIAlign, NMS, norms, activation functions, biases, sums",
)
SEGMENTER = DenseTask(
    name="UperNet",
    image_size=(512, 2048),
    num_classes=ADE20K_CLASSES,
    layers=segmenter_layers,
    groups={"backbone": "backbone.", "decoder": "decoder", "classes": "classifier"},
    published={"tiny": (938, 54), "small": (1032, 76), "base": (1178, 112)},
    source="paper, Table 3",
    counted="multiply-adds of convolutions and linear layers in evaluation; parameters with the "
    "auxiliary head, which only training computes",
    not_counted="the auxiliary head's MACs, pooling, resizing, norms, activation functions, "
    "biases, sums",
)


def dense_rows(
    task: DenseTask,
    shapes: Mapping[str, ModelConfig],
    image_size: ImageSize,
    num_classes: int,
) -> list[dict[str, Any]]:
    """One row for each shape, for JSON: costs as numbers, and what they count."""
    rows = []
    for name, config in shapes.items():
        parts = task.parts(config, image_size, num_classes)
        total = sum((cost for _, cost in parts), Cost())
        rows.append(
            {
                "variant": name,
                "network": task.name,
                "image_size": image_size,
                "num_classes": num_classes,
                "macs": total.macs,
                "params": total.params,
                "macs_by_part": {
                    column: sum(cost.macs for part, cost in parts if part.startswith(begin))
                    for column, begin in task.groups.items()
                },
                "counted": task.counted,
                "not_counted": task.not_counted,
            }
        )
    return rows


def dense_table(
    task: DenseTask,
    shapes: Mapping[str, ModelConfig],
    image_size: ImageSize,
    num_classes: int,
) -> str:
    """A table for a terminal: one line for each shape, beside the published numbers."""
    is_published = (image_size, num_classes) == (task.image_size, task.num_classes)
    rows = [("variant", *task.groups, "MACs", "parameters", "published")]
    for row in dense_rows(task, shapes, image_size, num_classes):
        name = row["variant"]
        known = task.published.get(name) if is_published else None
        if known is not None and shapes[name] == VARIANTS[name]:
            published = f"{known[0]} G, {known[1]} M"
        else:
            published = "-"
        by_part = (_giga(macs) for macs in row["macs_by_part"].values())
        params = f"{row['params'] / 1e6:.2f} M"
        rows.append((name, *by_part, _giga(row["macs"]), params, published))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{task.name}, {size_text(image_size)}, {num_classes:,} classes; MACs of one image, forward"
    ]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    lines += [f"counted: {task.counted}", f"not counted: {task.not_counted}"]
    return "\n".join([*lines, f"published: {task.source}"])


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.2f} G"
