"""Promises of the `mambaout` command: what it does, and that bad input is one clear line."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from study_files import finished_study

from mambaout.__main__ import main
from mambaout.model.network import build
from mambaout.recipe import recipe_from_json
from mambaout.train.metrics import read_records

OPTIONS = (
    "--depths 1,1,1,1 --dims 8,16,24,32 --stem-stride 2 --image-size 16 --train-images 256 "
    "--minival-fraction 0.1 --epochs 1 --warmup-epochs 0.5"
)
TINY = OPTIONS.split()


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    assert (
        main(["train", "--data", "digits", "--out", str(out), "--global-batch", "64", *TINY]) == 0
    )
    return out


def test_train_writes_the_run_directory_that_the_readme_names(trained):
    assert {"recipe.json", "records.jsonl", "last.ckpt", "outcome.json"} <= {
        path.name for path in trained.iterdir()
    }
    recipe = recipe_from_json((trained / "recipe.json").read_text())
    assert recipe.global_batch == 64
    assert recipe.optim.peak_lr == pytest.approx(4e-3 * 64 / 4096), "the linear rule"
    assert json.loads((trained / "outcome.json").read_text())["status"] == "finished"


def test_a_stop_says_how_to_go_on_and_the_same_command_does(digits, tmp_path, capsys):
    command = ["train", "--data", "digits", "--out", str(tmp_path), "--global-batch", "64", *TINY]
    assert main([*command, "--max-steps", "2"]) == 1
    assert "stopped at step 2 of 4; the same command continues" in capsys.readouterr().out
    assert main(command) == 0
    assert [record.step for record in read_records(tmp_path / "records.jsonl")] == [4]


def test_evaluate_repeats_the_runs_own_number(trained, capsys):
    final = json.loads((trained / "outcome.json").read_text())["metrics"]
    assert main(["evaluate", str(trained / "last.ckpt"), "--data", "digits"]) == 0
    assert f"top-1 {final['top1']:.3f} %" in capsys.readouterr().out


def test_evaluate_takes_timms_weights(digits, tmp_path, capsys):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = timm.create_model("mambaout_femto", num_classes=10)
    save_file(theirs.state_dict(), tmp_path / "femto.safetensors")
    weights = str(tmp_path / "femto.safetensors")
    options = ["--data", "digits", "--split", "minival", "--image-size", "32"]
    assert main(["evaluate", weights, "--variant", "femto", *options]) == 0
    assert "top-1" in capsys.readouterr().out
    assert main(["evaluate", weights, *options]) == 2
    assert "does not say its shape; add --variant" in capsys.readouterr().err


def test_export_gives_weights_that_evaluate_alike(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained / "last.ckpt"), "--data", "digits"]) == 0
    before = capsys.readouterr().out.split("top-1")[1].split("images/s")[0].rsplit(",", 1)[0]
    out = tmp_path / "weights.safetensors"
    assert main(["export", str(trained / "last.ckpt"), str(out)]) == 0
    assert main(["evaluate", str(out), "--data", "digits"]) == 0
    assert before in capsys.readouterr().out


def test_account_prints_the_published_numbers(capsys):
    assert main(["account"]) == 0
    shown = capsys.readouterr().out
    for number in ("7,304,536", "84,813,092", "1,147,984,992", "15,794,325,760"):
        assert number in shown
    (tiny,) = (
        line for line in shown.splitlines() if line.endswith("128 of 512") and "tiny" in line
    )
    assert "61 % used" in tiny


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --data digits --out {new} --peak-lr fast", "peak_lr='fast' must be float"),
        ("train --data digits --out {new} --peak-lr 50", "peak_lr=50.0 is out of range"),
        ("train --data digits --out {new} --precision fp8", "must be one of fp32, bf16"),
        ("train --data digits --out {new} --dims 8,16", "dims=(8, 16): give 4 whole numbers"),
        ("train --data digits --out {new}", "global_batch=4096 is more than the"),
        ("train --data digits --out {new} --global-batch 63", "global_batch=63 is odd"),
        ("train fempto --data digits --out {new}", "did you mean 'femto'?"),
        ("train --data {new}/missing --out {new}", "is not there"),
        ("train --out {new}", "--data is missing"),
        ("train --data digits", "--out is missing"),
        ("train --data digits --out {new} --recipe {new}.json", "No such file"),
        ("evaluate {new}.ckpt --data digits", "{new}.ckpt"),
        ("report none --storage {new}", "no study 'none'"),
        ("account colossal", "unknown variant 'colossal'"),
    ],
)
def test_bad_input_is_one_clear_line_status_2_and_nothing_written(
    words, said, digits, tmp_path, capsys
):
    new = tmp_path / "new"
    assert main([word.format(new=new) for word in words.split()]) == 2
    shown = capsys.readouterr()
    assert said.format(new=new) in shown.err
    assert shown.err.strip().count("\n") == 0
    assert not new.exists()


def test_a_misspelled_field_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", "digits", "--peak-lrr", "1"])
    assert ended.value.code == 2
    assert "--peak-lrr" in capsys.readouterr().err


def test_the_front_door_builds_what_the_readme_shows():
    from mambaout import BASELINE, VARIANTS
    from mambaout.recipe import tuned
    from mambaout.variants import deepen, widen

    assert tuned(BASELINE, peak_lr=8e-3, epochs=100).optim.peak_lr == 8e-3
    model = build(deepen(widen(VARIANTS["femto"], 0.5), 1), num_classes=3)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_sync_brings_a_study_into_an_mlflow_that_lacks_it_once(tmp_path, capsys):
    finished_study(tmp_path)
    uri = f"sqlite:///{tmp_path}/other.db"
    command = ["sync", "scale", "--storage", str(tmp_path), "--tracking-uri", uri]
    assert main(command) == 0
    assert "14 trials of scale were missing" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 trials of scale were missing" in capsys.readouterr().out


def test_report_prints_the_ranked_table_and_names_its_files(tmp_path, capsys):
    finished_study(tmp_path)
    assert main(["report", "scale", "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "report.html" in shown
    assert "w32-d6" in shown
