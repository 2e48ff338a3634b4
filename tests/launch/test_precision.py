"""The precision follows the device: from the command line to the products in XLA's graph."""

from __future__ import annotations

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, TESTS
from starts import start_of

from mambaout.__main__ import main as command
from mambaout.accounting import cost, mfu
from mambaout.applied_rules import multiplies_bf16, precision_rule
from mambaout.chips import find_chip
from mambaout.launch import cli
from mambaout.launch.precision import gpus_of
from mambaout.launch.request import Request
from mambaout.launch.resources import GPU_TYPE, POD_TYPE, Node
from mambaout.recipe import canonical_json, recipe_from_json
from mambaout.study.study import StudyFolder
from mambaout.train import backend as backends

SWEEPS = {
    name: runpy.run_path(str(ROOT / "sweeps" / f"{name}.py"))[name]
    for name in ("scale", "baseline", "recipe", "mine")
}
TPU, CPU = ["--accelerator", "tpu-v3-8"], ["--accelerator", "cpu"]
ON_TPU = "precision bf16 (default: fp32): TPU v3 multiplies matrices in bf16"


@pytest.fixture
def launched(tmp_path, monkeypatch, digits):
    """Launch a sweep with these words up to the moment at which trials would be placed."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def launch(*words: str, sweep: str = "scale") -> Request:
        seen: list[Request] = []
        monkeypatch.setattr(cli, "run_study", lambda request: seen.append(request) or 0)
        storage = ["--storage", str(tmp_path / "runs")]
        assert cli.main(SWEEPS[sweep], ["--data", "digits", *storage, *words]) == 0
        return seen[0]

    return launch


def begin(request: Request) -> None:
    """What a launch writes before its first trial."""
    folder = StudyFolder(request.storage, request.name)
    folder.write(request.study, request.trials, **request.facts)


def precisions(request: Request) -> set[str]:
    study = request.study
    recipes = [*study.recipes.values(), *(search.base for search in study.searches)]
    return {recipe.precision for recipe in recipes}


# -- a sweep ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("scale", []),
        ("scale", ["--predict"]),
        ("scale", ["--tune-per-size", "3"]),
        ("scale", ["--transfer"]),
        ("baseline", []),
        ("recipe", []),
        ("mine", ["--search", "peak_lr=1e-4..1e-2"]),
    ],
)
def test_every_recipe_of_a_sweep_on_a_tpu_is_bf16_and_on_a_cpu_fp32(sweep, words, launched):
    slow, fast, given = (
        launched(*words, *more, sweep=sweep) for more in (CPU, TPU, [*TPU, "--precision", "fp32"])
    )
    assert precisions(fast) == {"bf16"}
    assert precisions(slow) == precisions(given) == {"fp32"}
    assert ON_TPU in fast.rules
    assert not [rule for rule in (*slow.rules, *given.rules) if "precision" in rule]
    assert slow.name == fast.name
    assert not {trial.key for trial in slow.trials} & {trial.key for trial in fast.trials}
    assert [t.key for t in given.trials] == [t.key for t in slow.trials]


def test_a_study_that_compares_precisions_compares_them_on_every_device(launched):
    grid = ["--grid", "precision=fp32,bf16"]
    keys = [[t.key for t in launched(*grid, *on, sweep="mine").trials] for on in (CPU, TPU)]
    assert keys[0] == keys[1]


def test_the_plan_says_the_precision_and_prices_it(tmp_path, capsys, digits):
    words = ["--data", "digits", "--storage", str(tmp_path / "runs"), *TPU, "--plan"]
    assert cli.main(SWEEPS["scale"], words) == 0
    shown = capsys.readouterr().out
    assert ON_TPU in shown
    assert "25% of the peak of TPU v3 in bf16" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("gpu", "precision"), [("L4", "bf16"), ("T4", "fp32")])
def test_a_plan_for_a_gpu_that_is_not_here_is_in_that_gpus_precision(
    gpu, precision, tmp_path, capsys, digits
):
    words = ["--data", "digits", "--storage", str(tmp_path / "runs"), "--plan", gpu]
    assert cli.main(SWEEPS["scale"], words) == 0
    assert f"25% of the peak of {gpu} in {precision}" in capsys.readouterr().out


def test_a_gpu_without_units_refuses_a_given_bf16_before_anything_starts(tmp_path, capsys, digits):
    words = ["--data", "digits", "--storage", str(tmp_path / "runs"), "--plan", "T4"]
    assert cli.main(SWEEPS["scale"], [*words, "--precision", "bf16"]) == 2
    said = "--precision bf16: T4 has no units for it"
    assert said in capsys.readouterr().err


def test_a_trial_on_a_tpu_has_a_share_of_the_peak(launched):
    recipe = launched(*TPU).trials[0].recipe
    macs = cost(recipe.model, recipe.image_size, 10).macs
    assert mfu(macs, 1000, find_chip("TPU v3"), recipe.precision, 8) is not None


# -- the study keeps it ----------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then", "kept"), [(TPU, CPU, "bf16"), (CPU, TPU, "fp32")])
def test_a_study_keeps_the_precision_it_was_begun_with(first, then, kept, launched):
    begun = launched(*first)
    begin(begun)
    again = launched(*then)
    assert [t.key for t in again.trials] == [t.key for t in begun.trials]
    (said,) = [rule for rule in again.rules if rule.startswith(f"precision {kept}")]
    assert "the study was begun with it" in said
    assert "--rerun" in said
    begin(again)  # and after any number of launches
    assert [t.key for t in launched(*first).trials] == [t.key for t in begun.trials]

    other = {"bf16": "fp32", "fp32": "bf16"}[kept]
    assert precisions(launched(*then, "--rerun")) == {other}
    assert precisions(launched(*then, "--precision", other, "--name", begun.name)) == {other}


def test_a_study_of_an_earlier_version_goes_on_in_fp32(launched):
    begun = launched(*CPU)
    begin(begun)
    path = StudyFolder(begun.storage, begun.name).path / "study.json"
    body = json.loads(path.read_text())
    del body["precision"]
    path.write_text(json.dumps(body))
    assert [t.key for t in launched(*TPU).trials] == [t.key for t in begun.trials]


def test_a_begun_study_is_known_without_its_cluster_and_a_new_one_is_not(
    launched, tmp_path, capsys
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = ["--address", f"127.0.0.1:{free.getsockname()[1]}"]
        begun = launched(*TPU)
        begin(begun)
        again = launched(*away)
        assert [t.key for t in again.trials] == [t.key for t in begun.trials]
        words = ["--data", "digits", "--storage", str(tmp_path / "new"), *away]
        assert cli.main(SWEEPS["scale"], words) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_study_on_a_cluster_follows_the_devices_that_its_machines_have(launched, capsys):
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False)
        away = ["--address", cluster.address]
        assert precisions(launched(*away)) == {"fp32"}

        def add(kind: str) -> Any:
            return cluster.add_node(num_cpus=1, num_gpus=1, labels={GPU_TYPE: kind})

        add("A100")
        found = launched(*away)
        assert precisions(found) == {"bf16"}
        assert "precision bf16 (default: fp32): A100 multiplies matrices in bf16" in found.rules
        assert precisions(launched(*away, *CPU)) == {"fp32"}
        other = add("V100")
        found = launched(*away)
        assert precisions(found) == {"fp32"}
        assert "precision fp32: all trials have one precision, and of A100 and V100" in str(
            found.rules
        )
        cluster.remove_node(other)
        # A kind that no table has is asked on its machine, which has no GPU that it could tell of.
        add("Abacus-9000")
        found = launched(*away)
        assert precisions(found) == {"fp32"}
        assert "whether Abacus-9000 multiplies matrices in bf16 is not known" in str(found.rules)
        labels = {POD_TYPE: "v3-8"}
        cluster.add_node(num_cpus=4, resources={"TPU": 4}, labels=labels)
        found = launched(*away)
        assert ON_TPU in found.rules
    finally:
        cluster.shutdown()


# -- devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "has_units"),
    [
        ("TPU v3", True),
        ("NVIDIA A100-SXM4-40GB", True),
        ("NVIDIA L4", True),
        ("NVIDIA GeForce RTX 3090", True),
        ("Tesla V100-SXM2-16GB", False),
        ("NVIDIA V100-SXM2-16GB", False),
        ("Tesla T4", False),
        ("NVIDIA Abacus 9000", None),
        ("AMD EPYC 9B45 (1 thread)", None),
    ],
)
def test_a_chip_of_the_table_tells_whether_it_has_bf16_units(device, has_units):
    assert multiplies_bf16(device) is has_units


@pytest.mark.parametrize(
    ("label", "has_units"),
    [
        ("A100", True),
        ("A100-80G", True),
        ("H100", True),
        ("L4", True),
        ("GeForce-RTX-4090", True),
        ("V100", False),
        ("T4", False),
        ("RTX-PRO-6000", None),
    ],
)
def test_a_machine_that_is_not_up_yet_tells_it_by_rays_label(label, has_units):
    assert gpus_of(Node({"GPU": 1.0}, {GPU_TYPE: label})) == {label: has_units}


def test_all_trials_of_a_study_have_one_precision_whatever_the_kinds_of_gpu():
    def said(devices: dict[str, bool | None]) -> tuple[str, str] | None:
        rule = precision_rule(devices)
        return None if rule is None else (rule.value, rule.reason)

    assert said({}) is None
    assert said({"T4": False, "V100": False}) is None
    assert said({"A100": True, "L4": True}) == ("bf16", "A100 and L4 multiply matrices in bf16")
    mixed = said({"A100": True, "V100": False})
    assert mixed is not None
    assert mixed[0] == "fp32"
    assert "no bf16 units in V100" in mixed[1]
    unknown = said({"A100": True, "Abacus": None})
    assert unknown is not None
    assert unknown[0] == "fp32"
    assert "--precision bf16" in unknown[1]


def test_a_recipe_without_a_rule_of_the_device_is_what_it_was():
    before, after = (start_of(4000, 28, precision=rule) for rule in (None, precision_rule({})))
    assert canonical_json(before.recipe()) == canonical_json(after.recipe())


# -- one run ---------------------------------------------------------------------------------------


class Accelerator(backends.Cpu):
    """A CPU that calls itself a TPU."""

    @property
    def device_name(self) -> str:
        return "TPU v3"

    @property
    def multiplies_bf16(self) -> bool:
        return True


def test_a_single_run_follows_its_device_and_goes_on_elsewhere_as_it_began(
    tmp_path, monkeypatch, capsys, digits
):
    def train(*words: str) -> tuple[int, str]:
        small = ["--smoke", "--log-every-steps", "1", "--backend", "cpu", "--dims", "8,8,8,8"]
        status = command(["train", "--data", "digits", *small, *words])
        shown = capsys.readouterr()
        return status, shown.out + shown.err

    def kept(out: Path) -> str:
        return recipe_from_json((out / "recipe.json").read_text()).precision

    fast, slow = tmp_path / "fast", tmp_path / "slow"
    assert train("--out", str(slow), "--max-steps", "1")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(backends, "backend", lambda *_, **__: Accelerator())
        status, shown = train("--out", str(fast), "--max-steps", "1")
        assert status == 0
        assert ON_TPU in shown
        status, shown = train("--out", str(slow), "--max-steps", "2")
        assert status == 0
        assert f"precision fp32: the run in {slow} was begun with it" in shown
    status, shown = train("--out", str(fast), "--max-steps", "2")
    assert status == 0
    assert f"precision bf16 (default: fp32): the run in {fast} was begun with it" in shown
    assert (kept(fast), kept(slow)) == ("bf16", "fp32")
    status, shown = train("--out", str(fast), "--precision", "fp32")
    assert status == 2
    assert "give another --out or remove it" in shown


# -- the graph -------------------------------------------------------------------------------------

PRODUCT = re.compile(r" (?:dot|convolution)\((\w+)\[[^]]*\]\S* [^,]+, (\w+)\[")


def test_the_products_read_the_types_of_their_operands():
    line = "%dot.6 = bf16[10,42]{1,0} dot(bf16[10,8]{1,0} %reshape.6, f32[8,42]{0,1} %p.1), lhs={1}"
    assert PRODUCT.findall(line) == [("bf16", "f32")]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("words", "operand"), [(TPU, "bf16"), ([*TPU, "--precision", "fp32"], "f32")]
)
def test_a_trials_matrix_products_on_xla_are_in_the_precision_of_its_command(
    words, operand, launched, tmp_path
):
    (trial,) = [t for t in launched(*words).trials if t.name == "w8-d4-e7-s0"]
    (tmp_path / "recipe.json").write_text(canonical_json(trial.recipe))
    subprocess.run(
        [sys.executable, str(TESTS / "xla_runs.py"), "step_graph", str(tmp_path)],
        env=os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1"},
        check=True,
        capture_output=True,
    )
    text = json.loads((tmp_path / "step_graph.json").read_text())["text"]
    products = PRODUCT.findall(text)
    # Stem 2, downsampling 3, in each of four blocks a depthwise and two linears, head 2; for each
    # the product itself, its input's gradient, its weight's.
    assert len(products) == 3 * (2 + 3 + 4 * 3 + 2)
    assert set(products) == {(operand, operand)}
    # Norms, the loss and the update are fp32 whatever the products are.
    lines = text.splitlines()
    for operation in ("rsqrt", "sqrt", "log", "maximum"):
        found = [line for line in lines if f" {operation}(" in line]
        assert not [line for line in found if "bf16" in line], operation
    assert [line for line in lines if " rsqrt(" in line]
    assert [line for line in lines if " log(" in line]
    (results,) = re.findall(r"ENTRY.*-> \((.*)\) \{", text)
    assert "bf16" not in results
