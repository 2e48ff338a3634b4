"""The metrics of a run: their names and meanings, and the record that holds their values.

Pure values, so that the study can read records without torch. Each name is written only here; the
code that stores or reads the metric imports it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mambaout.durable import read_lines

# In records.jsonl and as MLflow series:
TRAIN_LOSS = "train/loss"  # mean over the images since the last record, soft labels, nats
TRAIN_LR = "train/lr"  # of the last step of the window
MINIVAL_TOP1 = "minival/top1"  # percent, every image of the split; the number to choose on
MINIVAL_TOP5 = "minival/top5"
MINIVAL_LOSS = "minival/loss"  # hard labels, nats
VAL_TOP1 = "val/top1"  # percent, every image of the split; reported once, at the end
VAL_TOP5 = "val/top5"
VAL_LOSS = "val/loss"
IMAGES_PER_SECOND = "images_per_second"  # training, whole global batch, warm-up step excluded
MFU = "mfu"  # model FLOP/s utilisation, 0 to 1; absent if the chip's peak is unknown
INPUT_WAIT = "input_wait_fraction"  # share of the training time spent waiting for a batch
PEAK_MEMORY = "peak_memory_bytes"  # of a GPU; of the process on a CPU; absent on a TPU
COMPILATIONS = "compilations"  # graphs compiled since the process took the run up; not if eager
UNDECODABLE = "undecodable_images"  # training images that another one has replaced so far; if any
MICRO_BATCH = "micro_batch"  # images in a forward pass; global_batch = micro_batch * accumulation

# As final metrics of a trial (outcome.json, MLflow):
TOP1 = "top1"  # val/top1 after the last step
TOP5 = "top5"
MACS = "macs"  # multiply-adds of one image, one forward
PARAMS = "params"
ACTIVATIONS = "activations"  # output elements of convolutions and linears, one image
TRAIN_DEVICE_HOURS = "train_device_hours"  # training time times devices, including evaluation
# A trial's columns of trials.csv.
FINAL_METRICS = (
    TOP1,
    TOP5,
    MINIVAL_TOP1,
    MACS,
    PARAMS,
    ACTIVATIONS,
    IMAGES_PER_SECOND,
    TRAIN_DEVICE_HOURS,
)

# These metrics depend on the device as well as on the recipe.
SPEEDS = (IMAGES_PER_SECOND, TRAIN_DEVICE_HOURS)
# Facts of outcome.json that name the device:
DEVICE = "device"  # the name that its driver gives
NUM_DEVICES = "num_devices"  # of the whole run; 0.5 for half of a GPU
EARLIER_DEVICES = "earlier_devices"  # other devices before it, if any: texts of `device_text`


def device_text(name: str, count: float) -> str:
    """The devices in words: "NVIDIA H200", "8 x TPU v3", "0.5 x NVIDIA L4"."""
    return name if count == 1 else f"{count:g} x {name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The metrics of a run after `step` optimizer steps; one line of records.jsonl."""

    step: int
    epoch: float  # images_seen / training images
    images_seen: int
    seconds: float  # of training so far, over all resumes
    values: Mapping[str, float]

    def to_json(self) -> str:
        body = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(body | {"values": dict(self.values)})

    @classmethod
    def from_json(cls, line: str) -> Record:
        return cls(**json.loads(line))


def read_records(path: Path) -> Iterator[Record]:
    """The records of a records.jsonl. A last line that a kill has cut off is left out."""
    return read_lines(path, Record.from_json)
