"""Whether a sequence of tokens is long for its channels, by stage and as the paper reads it.

    print(sequence_table({"tiny": variant("tiny")}, 224))

A Transformer block with an MLP of ratio 4 takes 24 D^2 L + 4 D L^2 FLOPs for L tokens of D
channels. The second term is the larger one if L > 6D; the paper calls such a sequence long
(section 3). The paper applies this once to a whole task: one map at a stride of 16 px, and the
widths of ViT-S and ViT-B, 384 and 768. For one stage of a network the answer may differ, because
the first stage has many tokens of few channels. Pure values: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mambaout.layers import ImageSize, layers, size_text
from mambaout.variants import ModelConfig

CHANNELS_FACTOR = 6  # a sequence is long if it has more tokens than 6 times its channels
PAPER_STRIDE = 16  # px, of the one map of ViT
PAPER_CHANNELS = {"ViT-S": 384, "ViT-B": 768}
PAPER_TASKS: dict[str, tuple[int, int]] = {  # (height, width) in px, as the paper's tables count
    "ImageNet": (224, 224),
    "COCO": (800, 1280),
    "ADE20K": (512, 2048),
}


class TokenSequence(NamedTuple):
    """The tokens of one map."""

    num_tokens: int
    channels: int

    @property
    def threshold(self) -> int:
        """The most tokens that are not long."""
        return CHANNELS_FACTOR * self.channels

    @property
    def ratio(self) -> float:
        """FLOPs that grow with the square of the tokens / FLOPs that grow with the tokens."""
        return self.num_tokens / self.threshold

    @property
    def is_long(self) -> bool:
        return self.num_tokens > self.threshold


def stage_sequences(config: ModelConfig, image_size: ImageSize) -> list[TokenSequence]:
    """The tokens of each of the four stages, for one image."""
    found = []
    for part in layers(config, image_size):
        if part.stage is not None:
            height, width, channels = part.layers["norm"].shape_out
            found.append(TokenSequence(height * width, channels))
    return found


def paper_sequence(task: str, channels: int) -> TokenSequence:
    """The tokens of a task of PAPER_TASKS on one map at a stride of 16 px."""
    height, width = PAPER_TASKS[task]
    return TokenSequence((height // PAPER_STRIDE) * (width // PAPER_STRIDE), channels)


def sequence_rows(shapes: Mapping[str, ModelConfig], image_size: ImageSize) -> list[dict[str, Any]]:
    """For JSON: a row for each stage of each shape, then one for each task and width of the paper.

    The key `criterion` says which of the two a row is: "stage" or "paper".
    """
    rows = []
    for name, config in shapes.items():
        for stage, sequence in enumerate(stage_sequences(config, image_size), 1):
            what = {"criterion": "stage", "variant": name, "stage": stage, "image_size": image_size}
            rows.append(what | _numbers(sequence))
    for task, size in PAPER_TASKS.items():
        for width, channels in PAPER_CHANNELS.items():
            what = {"criterion": "paper", "task": task, "width": width, "image_size": size}
            rows.append(what | _numbers(paper_sequence(task, channels)))
    return rows


def _numbers(sequence: TokenSequence) -> dict[str, Any]:
    return {
        "tokens": sequence.num_tokens,
        "channels": sequence.channels,
        "threshold": sequence.threshold,
        "ratio": sequence.ratio,
        "is_long": sequence.is_long,
    }


def sequence_table(shapes: Mapping[str, ModelConfig], image_size: ImageSize) -> str:
    """Two tables for a terminal: each stage of each shape, and the paper's tasks."""
    rows = sequence_rows(shapes, image_size)
    stages = [
        (row["variant"], str(row["stage"]), *_cells(row))
        for row in rows
        if row["criterion"] == "stage"
    ]
    tasks = [
        (row["task"], size_text(row["image_size"]), row["width"], *_cells(row))
        for row in rows
        if row["criterion"] == "paper"
    ]
    numbers = ("tokens L", "channels D", "6D", "L / 6D", "L > 6D")
    return "\n".join(
        [
            f"By stage, {size_text(image_size)}: a sequence is long if L > 6D",
            *_aligned([("variant", "stage", *numbers), *stages], num_texts=1),
            "",
            f"In the paper: one map at a stride of {PAPER_STRIDE} px, with the widths of ViT",
            *_aligned([("task", "image", "width", *numbers), *tasks], num_texts=3),
            "",
            "The two differ. A first stage has many tokens of few channels: that of Tiny at 224 px",
            "has 3,136, more than 6D = 576. The paper still calls ImageNet short, by its one map.",
            "It calls COCO and ADE20K long: about 4,000 tokens are above 2,304 and near 4,608.",
            "source: paper, section 3; the tokens are computed from the image sizes of its tables",
        ]
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{row[name]:,}" for name in ("tokens", "channels", "threshold"))
    return (*counts, f"{row['ratio']:.2f}", "long" if row["is_long"] else "short")


def _aligned(rows: list[tuple[str, ...]], num_texts: int) -> list[str]:
    """The rows as lines; the first columns are texts and stand to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < num_texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return lines
