"""Promises of the `mambaout` command: what it does, and that bad input is one clear line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from study_files import finished_study

import mambaout
from mambaout.__main__ import main
from mambaout.commands.dense_options import BASELINES
from mambaout.fields import knobs
from mambaout.launch.lock import held
from mambaout.model.network import build
from mambaout.recipe import field_types, recipe_from_json
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
    assert recipe.optim.peak_lr == pytest.approx(1e-3), "the rule for small data"
    assert json.loads((trained / "outcome.json").read_text())["status"] == "finished"


def test_as_many_steps_as_max_steps_asks_for_are_all_that_was_asked(digits, tmp_path, capsys):
    command = ["train", "--data", "digits", "--out", str(tmp_path), "--global-batch", "64", *TINY]

    def ended(*words: str) -> tuple[int, str]:
        status = main([*command, *words])
        return status, capsys.readouterr().out.splitlines()[-1]

    goes_on = "; a larger one continues, as does the command without it"
    assert ended("--max-steps", "2") == (
        0,
        f"stopped at step 2 of 4, as --max-steps says{goes_on}",
    )
    saved = (tmp_path / "last.ckpt").read_bytes()
    for steps in ("2", "1"):
        said = "nothing to do: the run is at step 2 of 4 already, and --max-steps is"
        assert ended("--max-steps", steps) == (0, f"{said} {steps}{goes_on}")
        assert (tmp_path / "last.ckpt").read_bytes() == saved
    assert ended("--max-steps", "3")[0] == 0
    assert ended()[0] == 0
    assert [record.step for record in read_records(tmp_path / "records.jsonl")] == [4]
    for steps in ("2", "4", "9"):
        status, said = ended("--max-steps", steps)
        assert status == 0
        assert said.startswith("finished: ")


def test_a_stop_before_max_steps_is_not_finished_and_says_how_to_go_on(digits, tmp_path):
    long = ["--epochs", "5000", "--global-batch", "64", "--log-every-steps", "1"]
    command = ["train", "--data", "digits", "--out", str(tmp_path), *TINY, *long]
    with subprocess.Popen(
        [sys.executable, "-m", "mambaout", *command, "--max-steps", "19999"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(mambaout.__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 1/"):
                process.send_signal(signal.SIGTERM)
                break
        *_, said = process.stdout
    assert process.returncode == 1
    assert re.fullmatch(r"stopped at step \d+ of 20000; the same command continues\n", said)


def test_a_run_whose_loss_is_not_finite_within_max_steps_has_not_done_them(
    digits, tmp_path, capsys
):
    command = ["train", "--data", "digits", "--out", str(tmp_path), "--global-batch", "64", *TINY]
    hot = ["--warmup-epochs", "0", "--peak-lr", "9", "--weight-decay", "9", "--beta2", "0"]
    seldom = ["--epochs", "60", "--eval-every-epochs", "60", "--log-every-steps", "1000"]
    assert main([*command, *hot, *seldom, "--max-steps", "201"]) == 1
    assert "diverged: the loss was not finite at step " in capsys.readouterr().out


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
    before = capsys.readouterr().out.split("top-1")[1].split("images/s")[0].rsplit(", ", 1)[0]
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


ON_DIGITS = "train --data digits --out {new}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{ON_DIGITS} --peak-lr fast", "--peak-lr 'fast' must be a finite number, above 0"),
        (f"{ON_DIGITS} --peak-lr 50", "--peak-lr '50' must be a finite number, above 0 and below"),
        (f"{ON_DIGITS} --precision fp8", "must be one of fp32, tf32, bf16"),
        (f"{ON_DIGITS} --dims 8,16", "dims=(8, 16): give 4 whole numbers"),
        (f"{ON_DIGITS} --recipe paper", "global_batch=4096 is more than the"),
        (f"{ON_DIGITS} --mixup 0.8 --global-batch 63", "global_batch=63 is odd"),
        (
            f"{ON_DIGITS} --recipe paper --train-images 1000",
            "give more images, or a global_batch like 512",
        ),
        ("train fempto --data digits --out {new}", "did you mean 'femto'?"),
        ("train --data {new}/missing --out {new}", "is not there"),
        ("train --out {new}", "--data is missing"),
        ("train --data digits", "--out is missing"),
        ("train --data digits --out=", "--out is empty"),
        ("train --data digits --out {file}", "--out {file}: {file} is a file; give a folder"),
        ("train --data digits --out {file}/in/it", "{file} is a file; give a folder"),
        ("train --data digits --out {link}", "{link} is a link to nothing; give a folder"),
        (
            "train --data digits --out gs://bucket/run",
            "plain files with locks; give a folder, on NFS 4 where several machines share it",
        ),
        ("train --data digits --out /proc/run", "/proc/run cannot be written"),
        (f"train --data digits --out {300 * 'x'}", "a name of 300 bytes, where . allows 255"),
        (f"train --data digits --out {60 * ('x' * 99 + '/')}", "allows 4096; give a shorter one"),
        (f"{ON_DIGITS} --global-batch 64 --stage {{file}}", "cannot be staged in {file}"),
        (f"{ON_DIGITS} --recipe {{new}}.json", "{new}.json cannot be read: No such file"),
        (f"{ON_DIGITS} --recipe {{file}}", "--recipe {file} is no JSON"),
        (
            f"{ON_DIGITS} --recipe {{binary}}",
            "--recipe {binary} is no text; give the recipe.json of a run; weights go to --init",
        ),
        (
            f"{ON_DIGITS} --recipe {{folder}}",
            "{folder} is a folder; give a file, like {folder}/rec",
        ),
        (f"{ON_DIGITS} --recipe {{file}}/x", "{file}/x cannot be read: Not a directory"),
        (f"{ON_DIGITS} --recipe {{list}}", "--recipe {list} must be a JSON object, not list"),
        (
            f"{ON_DIGITS} --recipe {{other}}",
            "{other} does not fit this version of mambaout: unknown",
        ),
        (f"{ON_DIGITS} --recipe=", "--recipe (empty) is a folder; give a file, like recipe.json"),
        ("evaluate {new}.ckpt --data digits", "{new}.ckpt"),
        ("report none --storage {new}", "no study 'none'"),
        ("account colossal", "unknown variant 'colossal'"),
        ("account tiny --ssm-state 8", "--ssm-state: no network here has an SSM; leave it out"),
        (f"{ON_DIGITS} --ssm-state 8", "or give a mixer that has one, like --mixer conv_ssm"),
        (f"{ON_DIGITS} --mixer-stages 3,4", "--mixer-stages: every stage has gated_conv anyway"),
    ],
)
def test_bad_input_is_one_clear_line_status_2_and_nothing_written(
    words, said, digits, tmp_path, capsys
):
    places = {
        name: tmp_path / name for name in ("new", "file", "folder", "binary", "list", "other")
    }
    places["file"].write_text("plain text")
    places["folder"].mkdir()
    places["binary"].write_bytes(bytes(range(255, 0, -1)))
    places["list"].write_text("[1, 2]")
    places["other"].write_text('{"momentum": 0.9}')
    places["link"] = tmp_path / "link"
    places["link"].symlink_to(tmp_path / "nothing")
    before = sorted(tmp_path.rglob("*"))
    assert main([word.format(**places) for word in words.split()]) == 2
    shown = capsys.readouterr()
    assert said.format(**places) in shown.err
    assert shown.err.strip().count("\n") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_everything_that_is_wrong_with_a_request_is_said_at_once(digits, tmp_path, capsys):
    command = "train --recipe paper --peak-lr fast --global-batch 63 --kernel-size 4"
    assert main(command.split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("mambaout train: 5 things are wrong:\n")
    for said in ("--peak-lr 'fast'", "=63 is odd", "=4 must be odd", "--data is", "--out is"):
        assert shown.count(said) == 1
    out = ["--data", "digits", "--out", str(tmp_path / "new")]
    assert main(["train", "fempto", *out, "--peak-lr", "fast"]) == 2
    assert "2 things are wrong" in capsys.readouterr().err
    # What only the data can tell is said at once too.
    paper = ["--recipe", "paper", "--minival-fraction", "1e-5", "--backend", "cpu"]
    assert main(["train", *out, *paper]) == 2
    shown = capsys.readouterr().err
    assert "global_batch=4096 is more than the" in shown
    assert "leaves no image to choose on" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--peak-lrr 1", "mambaout train: there is no option --peak-lrr (did you mean --peak-lr?)"),
        ("--seed -1", "--seed: '-1' must be a whole number, at least 0"),
        (f"--seed {2**63}", "must be a whole number, 0 to 9223372036854775807"),
        (f"--seed {2**64}", "must be a whole number, 0 to 9223372036854775807"),
        ("--seed x", "--seed: 'x' must be a whole number"),
        ("--seed=", "--seed: '' must be a whole number"),
        (
            "--log-every-steps 0",
            "--log-every-steps: '0' must be a whole number, at least 1",
        ),
        (
            "--log-every-steps -3",
            "--log-every-steps: '-3' must be a whole number, at least 1",
        ),
        ("--max-steps 0", "--max-steps: '0' must be a whole number, at least 1"),
        ("--max-steps -5", "--max-steps: '-5' must be a whole number, at least 1"),
        ("--max-steps 1e3", "--max-steps: '1e3' must be a whole number, at least 1"),
        ("--workers x", "--workers: 'x' must be a whole number, 0 to 1024"),
        ("--workers -1", "--workers: '-1' must be a whole number, 0 to 1024"),
        ("--stage=", "argument --stage: the name is empty; give a folder"),
        ("--backend tpu", "invalid choice: 'tpu'"),
        ("--recompute 5", "--recompute: '5' must be stages from 1 to 4 joined by commas"),
        ("--recompute=", "--recompute: '' must be stages from 1 to 4 joined by commas"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", "digits", "--out", "new", *words.split()])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_that_is_another_users_is_refused_by_name(tmp_path):
    tmp_path.chmod(0o700)
    code = (
        "import os, sys\nfrom mambaout.command_line import writable_folder\n"
        "os.setgid(65534)\nos.setuid(65534)\n"
        "for name in sys.argv[1:]:\n"
        "    try: writable_folder(name, '--out')\n"
        "    except ValueError as error: print(error)\n"
    )
    places = [str(tmp_path / "run"), "/run-of-nobody"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *places], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == [
        f"--out {place} cannot be written (Permission denied); give another folder"
        for place in places
    ]


def test_the_largest_seed_trains(digits, tmp_path):
    command = ["train", "--data", "digits", "--out", str(tmp_path), "--global-batch", "64", *TINY]
    assert main([*command, "--seed", str(2**63 - 1), "--max-steps", "1"]) == 0


def test_a_batch_of_one_is_fine_where_nothing_is_mixed(digits, tmp_path):
    plain = "--global-batch 1 --mixup 0 --cutmix 0 --max-steps 1"
    command = ["train", "--data", "digits", "--out", str(tmp_path), *plain.split(), *TINY]
    assert main(command) == 0
    recipe = recipe_from_json((tmp_path / "recipe.json").read_text())
    assert (recipe.global_batch, recipe.augment.mixes) == (1, False)


def test_warm_up_follows_the_epochs_and_the_rate_the_batch_and_both_are_printed(
    digits, tmp_path, capsys
):
    options = TINY[: TINY.index("--epochs")]
    short = ["--recipe", "paper", "--global-batch", "64", "--epochs", "3", "--max-steps", "1"]
    command = ["train", "--data", "digits", "--out", str(tmp_path), *options, *short]
    assert main(command) == 0
    recipe = recipe_from_json((tmp_path / "recipe.json").read_text())
    assert recipe.schedule.warmup_epochs == pytest.approx(0.2)
    shown = capsys.readouterr().out
    assert "peak_lr=6.25e-05" in shown
    assert "warmup_epochs=0.2" in shown


def test_the_recipe_of_a_run_trains_the_same_again(trained, tmp_path):
    again = ["train", "--data", "digits", "--out", str(tmp_path), "--max-steps", "1"]
    assert main([*again, "--recipe", str(trained / "recipe.json")]) == 0
    assert (tmp_path / "recipe.json").read_text() == (trained / "recipe.json").read_text()


def test_a_folder_with_another_run_is_refused_by_what_differs(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    command = ["train", "--data", "digits", "--out", str(run), "--global-batch", "64", *TINY]

    def refusal(*words: str) -> str:
        assert main([*command, *words]) == 2
        return capsys.readouterr().err

    assert f"{run} holds another run, of seed 0, not 3; give another --out" in refusal(
        "--seed", "3"
    )
    assert f"{run} holds a run of another recipe (epochs 1 not 2)" in refusal("--epochs", "2")
    for text in ("{", "[]", '{"status": "finished"}'):
        (run / "outcome.json").write_text(text)
        assert f"{run / 'outcome.json'} is not what a run writes" in refusal()
    (run / "recipe.json").write_bytes(bytes(range(128, 256)))
    assert f"{run / 'recipe.json'} is no JSON" in refusal()


def test_a_removed_working_directory_is_one_line(tmp_path):
    script = "mkdir gone; cd gone; rmdir ../gone; exec {} -m mambaout account femto"
    ended = subprocess.run(
        ["sh", "-c", script.format(sys.executable)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(mambaout.__file__).parents[1])},
        check=False,
    )
    assert ended.returncode == 2
    assert "the folder that you are in is no longer there" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(digits, tmp_path):
    command = ["train", "--data", "digits", "--out", str(tmp_path), "--global-batch", "64", *TINY]
    endless = ["--epochs", "100000", "--log-every-steps", "1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "mambaout", *command, *endless],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(mambaout.__file__).parents[1])},
    )
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("step"):
            break
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "mambaout train: interrupted; the same command continues it" in said
    assert "Traceback" not in said


def test_the_help_needs_no_torch_and_shows_every_default(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    dense = {name for baseline in BASELINES.values() for name in knobs(type(baseline))}
    assert shown.count("Default: ") == len(field_types()) + len(dense - field_types().keys())
    code = (
        "import sys\nfrom mambaout.__main__ import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'ray') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("columns", ["80", "100"])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_keeps_to_the_terminals_width(words, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        main(words)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= int(columns)


def test_the_version_names_what_a_report_of_a_fault_needs(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert f"torch {torch.__version__.split('+')[0]}" in capsys.readouterr().out


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
    with sqlite3.connect(tmp_path / "other.db") as store:
        one = "(SELECT run_uuid FROM metrics LIMIT 1)"
        store.execute(f"DELETE FROM metrics WHERE run_uuid = {one} AND key = 'top1'")
        store.execute(f"DELETE FROM latest_metrics WHERE run_uuid = {one} AND key = 'top1'")
    store.close()
    assert main(command) == 0
    assert "1 trial of scale was missing" in capsys.readouterr().out


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
    for command in ("report", "sync"):
        assert main([command, "scale", "--storage", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert str(path.parent) in said
        assert said.count("\n") == 1


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
