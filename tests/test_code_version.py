"""CODE_VERSION is part of every trial's key; this notices when it has to be raised."""

from __future__ import annotations

import pytest
import torch

from mambaout.recipe import BASELINE, tuned, with_global_batch
from mambaout.study.study import CODE_VERSION
from mambaout.train.backend import backend
from mambaout.train.loop import train
from mambaout.train.metrics import MINIVAL_LOSS, TRAIN_LOSS, read_records

# Everything random is on. Loss of steps 1 to 6, and minival loss after the last, of a CODE_VERSION
# with torch 2.9.0 and OpenCV 5.0.0 on an x86 CPU.
GOLDEN = {4: [2.303664, 2.336262, 2.281275, 2.213558, 2.384811, 2.452867, 2.383318]}


def test_the_same_recipe_seed_and_data_give_the_numbers_of_this_code_version(digits, tmp_path):
    recipe = tuned(
        with_global_batch(BASELINE, 32),
        dims=(8, 16, 24, 32),
        depths=(1, 1, 1, 1),
        stem_stride=2,
        drop_path=0.2,
        color_jitter=0.2,
        image_size=28,
        train_images=192,
        minival_fraction=0.1,
        epochs=1,
        warmup_epochs=0.5,
        peak_lr=2e-3,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(recipe, digits, out=tmp_path, backend=backend("cpu"), seed=3, log_every_steps=1)
    torch.set_num_threads(threads)
    records = list(read_records(tmp_path / "records.jsonl"))
    found = [record.values[TRAIN_LOSS] for record in records]
    found.append(records[-1].values[MINIVAL_LOSS])
    assert found == pytest.approx(GOLDEN[CODE_VERSION], rel=2e-4), (
        "training gives other numbers than it did: raise CODE_VERSION in study/study.py and write "
        f"its row here: {found}"
    )
