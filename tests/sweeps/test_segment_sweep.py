"""sweeps/segment.py: a study of segmenters is priced, refused with a remedy, or built."""

from __future__ import annotations

import pytest
from sweep_scripts import DENSE

from mambaout.launch.dense_cli import main
from mambaout.launch.dense_sweeps import SEGMENT_SWEEP
from mambaout.segment_rules import SHAPES_FIELDS, fitted_segment
from mambaout.study.dense_start import DenseStart
from mambaout.study.study import Trial
from mambaout.train.tasks import SEGMENT

segment = DENSE["segment"]


def start_on(*, is_small: bool = False, **more) -> DenseStart:
    small = SHAPES_FIELDS if is_small else None
    return DenseStart(
        kind=SEGMENT,
        fit=lambda shape, fields: fitted_segment(300, shape, fields, small),
        is_small=is_small,
        **more,
    )


def test_on_ade20k_it_trains_the_papers_three_backbones_with_the_authors_drop_path():
    study = segment(start_on())
    rates = {name: recipe.model.drop_path for name, recipe in study.recipes.items()}
    assert rates == {"tiny": 0.3, "small": 0.3, "base": 0.6}
    assert {(r.steps, r.peak_lr, r.crop_size) for r in study.recipes.values()} == {
        (160_000, 1e-4, 512)
    }


def test_the_generated_shapes_train_small_networks_of_two_widths():
    study = segment(start_on(is_small=True))
    assert [recipe.model.dims[0] for recipe in study.recipes.values()] == [24, 12]
    trial = study.trials("d")[0]
    assert Trial.from_json(trial.to_json()).recipe == trial.recipe


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--micro-batch", "3"], "give 8 or 4 or 2"),
        (["--epochs", "3"], "no option --epochs"),
        (["--steps", "0"], "--steps '0' must be"),
        (["--grid", "crop_size=16"], "'16' must be"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(words, said, tmp_path, capsys):
    argv = ["--data", "shapes", "--storage", str(tmp_path / "runs"), *words]
    try:
        status = main(SEGMENT_SWEEP, segment, argv)
    except SystemExit as error:  # argparse's own
        status = error.code
    assert status == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_plan_counts_the_evaluations_and_says_which_image_the_macs_are_of(tmp_path, capsys):
    argv = ["--data", "shapes", "--storage", str(tmp_path / "runs"), "--plan", "--steps", "400"]
    assert main(SEGMENT_SWEEP, segment, argv) == 0
    text = capsys.readouterr().out
    assert "to run       2 trials: 6.4k training images" in text
    assert "an image of 96x96 px" in text
