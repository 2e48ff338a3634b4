"""Promises of the `mambaout` command: what it does, and that bad input is one clear line."""

from __future__ import annotations

import json
import subprocess

import pytest
import timm
import torch
from study_files import finished_study

from mambaout.__main__ import main
from mambaout.launch.lock import held
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


def test_sync_of_an_address_with_a_password_does_not_print_it(tmp_path, capsys):
    finished_study(tmp_path)
    command = ["sync", "scale", "--storage", str(tmp_path)]
    assert main([*command, "--tracking-uri", "http://ann:s3cret@127.0.0.1:1"]) == 2
    shown = capsys.readouterr()
    assert "no tracking server answers at http://***@127.0.0.1:1" in shown.err
    assert "s3cret" not in shown.out + shown.err


def test_sync_leaves_a_study_alone_that_is_running(tmp_path, capsys):
    folder = finished_study(tmp_path)
    with held(folder.path, "the study"):
        assert main(["sync", "scale", "--storage", str(tmp_path)]) == 2
    assert "is in use by process" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "sync"])
@pytest.mark.parametrize("name", ["none", "x" * 300, "a/b", "", "50% (copy)?"])
def test_a_study_that_is_not_there_is_one_line_with_those_that_are(name, command, tmp_path, capsys):
    finished_study(tmp_path)
    assert main([command, name, "--storage", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("there are: scale\n")


def test_a_study_whose_folder_was_renamed_is_reported_and_synced(tmp_path, capsys):
    name = "it's 50% #1 (copy)?"
    finished_study(tmp_path).path.rename(tmp_path / name)
    assert main(["report", name, "--storage", str(tmp_path)]) == 0
    assert str(tmp_path / name / "report.html") in capsys.readouterr().out
    assert main(["sync", name, "--storage", str(tmp_path)]) == 0
    assert f"14 trials of {name} were missing" in capsys.readouterr().out


def test_a_study_file_that_is_no_json_is_named(tmp_path, capsys):
    path = finished_study(tmp_path).path / "study.json"
    path.write_text("{")
    assert main(["report", "scale", "--storage", str(tmp_path)]) == 2
    assert f"{path} is no JSON" in capsys.readouterr().err


@pytest.fixture
def read_only(tmp_path):
    """A storage folder that nobody, root neither, can write to; with a study in it."""
    finished_study(tmp_path / "there")
    (tmp_path / "seen").mkdir()
    source, target = str(tmp_path / "there"), str(tmp_path / "seen")
    mounts = [["--bind", source, target], ["-o", "remount,ro,bind", target]]
    for options in mounts:
        done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run(["umount", target], capture_output=True, check=False)
            pytest.skip(f"wants the right to mount: {done.stderr.strip()}")
    yield tmp_path / "seen"
    subprocess.run(["umount", target], check=True)


def test_report_on_read_only_storage_prints_the_table_and_one_line(read_only, capsys):
    assert main(["report", "scale", "--storage", str(read_only)]) == 2
    shown = capsys.readouterr()
    assert "w32-d6" in shown.out
    assert shown.err.count("\n") == 1
    assert f"cannot be written to {read_only / 'scale'} (Read-only file system)" in shown.err


def test_sync_of_read_only_storage_logs_the_trials_elsewhere(read_only, tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/other.db"
    command = ["sync", "scale", "--storage", str(read_only), "--tracking-uri", uri]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "14 trials of scale were missing" in shown.out
    assert shown.err.count("\n") == 1
    assert "Read-only file system" in shown.err


def test_report_where_a_file_cannot_be_replaced_is_one_line(tmp_path, capsys):
    folder = finished_study(tmp_path)
    (folder.path / "report.html" / "in the way").mkdir(parents=True)
    assert main(["report", "scale", "--storage", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "w32-d6" in shown.out
    assert shown.err.count("\n") == 1
    assert not list(folder.path.glob(".report.html.*")), "nothing is left lying about"


def test_report_prints_the_ranked_table_and_names_its_files(tmp_path, capsys):
    finished_study(tmp_path)
    assert main(["report", "scale", "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "report.html" in shown
    assert "w32-d6" in shown
