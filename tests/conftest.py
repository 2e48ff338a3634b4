"""What the tests share: real digits, a network small enough to train in seconds."""

from __future__ import annotations

import os
from dataclasses import replace

# Read when torch starts. Two threads on two busy cores wait for each other: 29 s where one takes 2.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.variants import ModelConfig

# The same examples at each run: whether a commit passes must not depend on the draw. To look
# further, HYPOTHESIS_PROFILE=default pytest ...
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory):
    """Named sets are packed once a session, away from the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("MAMBAOUT_CACHE")
    os.environ["MAMBAOUT_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["MAMBAOUT_CACHE"]
    else:
        os.environ["MAMBAOUT_CACHE"] = before


@pytest.fixture(scope="session")
def digits(data_cache):
    from mambaout.data.sources import open_data

    return open_data("digits")


@pytest.fixture
def tiny_recipe() -> Recipe:
    """The whole recipe, all augmentations on, in a second: 4 steps an epoch, 2 epochs."""
    model = ModelConfig(
        depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), stem_stride=2, kernel_size=3, drop_path=0.3
    )
    recipe = replace(with_global_batch(BASELINE, 64), model=model)
    return tuned(
        recipe,
        epochs=2,
        warmup_epochs=0.5,
        peak_lr=2e-3,
        image_size=16,
        train_images=256,
        minival_fraction=0.1,
    )
