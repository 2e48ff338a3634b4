"""What the tests share: real digits, a network small enough to train in seconds."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when torch starts. Two threads on two busy cores wait for each other: 29 s where one takes 2.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from mambaout.recipe import BASELINE, Recipe, tuned, with_global_batch
from mambaout.variants import ModelConfig

if TYPE_CHECKING:
    from mambaout.study.study import StudyFolder

# The same examples at each run: whether a commit passes must not depend on the draw. To look
# further, HYPOTHESIS_PROFILE=default pytest ...
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


# -- two workers: `pytest -n 2 --dist loadfile --no-loadscope-reorder` ---------------------------


@functools.cache
def starts_ray(file: str) -> bool:
    return "mark.ray" in (Path(__file__).parent.parent / file).read_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray is half of all the time: it begins at once, the rest fills the other half."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not starts_ray(item.nodeid.split("::")[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file to a worker, which makes its fixtures once; one worker has all files that start Ray,
    since two Rays would take each other's cores. (pytest-xdist 3.8's own groups are lost on pytest
    9.2, without a word.)"""
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if starts_ray(file) else file

    return OneRay(config, log)


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
    from mambaout.data.packing.sources import open_data

    return open_data("digits")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A store with its tables made, which takes seconds, once."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def quiet_study(digits, tmp_path_factory) -> StudyFolder:
    """What the tiny sweep's trials come to where nothing disturbs them: trained without Ray."""
    import torch
    from drivers import NAME, trial

    from mambaout.study.study import StudyFolder
    from mambaout.train.backend import backend
    from mambaout.train.loop import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = StudyFolder(tmp_path_factory.mktemp("quiet"), NAME)
    for label in ("thin", "wide"):
        mine = trial(label, digits)
        train(mine.recipe, digits, out=folder.run_directory(mine), backend=backend("cpu"))
    torch.set_num_threads(threads)
    return folder


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


@pytest.fixture
def unsynced():
    """No waiting for the disk by searches: it is most of their tests' time, and guards against a
    power cut."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def unsync(connection, _) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", unsync)
    yield
    event.remove(Engine, "connect", unsync)
