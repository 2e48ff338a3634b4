"""Tokens of each stage against 6D, and the paper's own reading, with numbers computed by hand."""

from __future__ import annotations

import json

import pytest

from mambaout.__main__ import main
from mambaout.sequence import TokenSequence, paper_sequence, stage_sequences
from mambaout.variants import VARIANTS, ModelConfig

TINY = [(3136, 96), (784, 192), (196, 384), (49, 576)]  # 56, 28, 14 and 7 to a side


def test_the_stages_of_tiny_have_the_tokens_of_its_maps():
    assert stage_sequences(VARIANTS["tiny"], 224) == TINY


def test_a_side_that_no_stage_divides_is_rounded_up():
    config = ModelConfig(depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), stem_stride=2)
    tokens = [stage.num_tokens for stage in stage_sequences(config, (28, 64))]
    assert tokens == [14 * 32, 7 * 16, 4 * 8, 2 * 4]


@pytest.mark.parametrize(("num_tokens", "is_long"), [(576, False), (577, True)])
def test_a_sequence_is_long_above_six_times_its_channels(num_tokens, is_long):
    assert TokenSequence(num_tokens, 96).is_long is is_long


@pytest.mark.parametrize(
    ("task", "channels", "num_tokens", "threshold", "ratio", "is_long"),
    [
        ("ImageNet", 384, 196, 2304, 0.085, False),
        ("ImageNet", 768, 196, 4608, 0.043, False),
        ("COCO", 384, 4000, 2304, 1.736, True),
        ("COCO", 768, 4000, 4608, 0.868, False),
        ("ADE20K", 384, 4096, 2304, 1.778, True),
        ("ADE20K", 768, 4096, 4608, 0.889, False),
    ],
)
def test_the_tasks_of_the_paper_have_its_numbers(
    task, channels, num_tokens, threshold, ratio, is_long
):
    found = paper_sequence(task, channels)
    assert (found.num_tokens, found.threshold, found.is_long) == (num_tokens, threshold, is_long)
    assert found.ratio == pytest.approx(ratio, abs=5e-4)


def test_the_first_stage_of_tiny_is_long_where_the_paper_calls_imagenet_short(capsys):
    assert main(["account", "tiny", "--sequence"]) == 0
    said = capsys.readouterr().out
    by_stage, paper = said.split("In the paper")
    assert [line.split()[2:] for line in by_stage.splitlines() if line.startswith("tiny")] == [
        ["3,136", "96", "576", "5.44", "long"],
        ["784", "192", "1,152", "0.68", "short"],
        ["196", "384", "2,304", "0.09", "short"],
        ["49", "576", "3,456", "0.01", "short"],
    ]
    imagenet = [line.split()[-1] for line in paper.splitlines() if line.startswith("ImageNet")]
    assert imagenet == ["short", "short"]
    assert "The two differ" in paper


def test_tokens_as_json_say_which_criterion_each_row_is(capsys):
    shape = ["--depths", "1,1,1,1", "--dims", "16,32,48,64", "--image-size", "64"]
    assert main(["account", "--sequence", "--json", *shape]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["criterion"] for row in rows] == ["stage"] * 4 + ["paper"] * 6
    assert [row["tokens"] for row in rows[:4]] == [256, 64, 16, 4]
    assert rows[0]["is_long"]  # 256 tokens, 6D = 96


@pytest.mark.parametrize("other", ["--detect", "--segment"])
def test_tokens_are_not_counted_together_with_a_dense_network(other, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["account", "tiny", "--sequence", other])
    assert "not allowed with argument" in capsys.readouterr().err


def test_classes_are_refused_where_tokens_are_counted(capsys):
    assert main(["account", "tiny", "--sequence", "--num-classes", "10"]) == 2
    assert "--num-classes 10: --sequence counts tokens" in capsys.readouterr().err
