"""Promises of one training run: resumed equals uninterrupted, any micro-batch, honest ends."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from places import PATHS
from same_runs import assert_same_checkpoint, measured, run

from mambaout.data.batches.loader import TrainBatches
from mambaout.data.batches.makers import HostShare
from mambaout.memory import micro_batches
from mambaout.model.network import build
from mambaout.recipe import BASELINE, RELEASED_CODE, Recipe, canonical_json, tuned
from mambaout.study.study import StudyFolder, Trial
from mambaout.train import checkpoint, metrics
from mambaout.train.backend import Cpu, backend
from mambaout.train.evaluation import evaluate
from mambaout.train.loop import HostsDisagree
from mambaout.train.meter import Meter
from mambaout.train.metrics import Record, read_records
from mambaout.train.optim import learning_rate, optimizer, take_step
from mambaout.train.outcomes import Diverged, Finished, OutOfMemory, Preempted
from mambaout.train.step import Sums, TrainState, add_gradients, placed


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("stop_at", [3, 4, 5])
def test_eight_steps_equal_some_a_stop_and_the_rest_bit_for_bit(
    digits, tiny_recipe, tmp_path, stop_at
):
    assert isinstance(run(tiny_recipe, digits, tmp_path / "whole"), Finished)
    stopped = run(tiny_recipe, digits, tmp_path / "parts", max_steps=stop_at)
    assert stopped == Preempted(stop_at)
    assert isinstance(run(tiny_recipe, digits, tmp_path / "parts"), Finished)

    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    assert measured(tmp_path / "whole") == measured(tmp_path / "parts")
    assert [step for step, _ in measured(tmp_path / "whole")] == list(range(1, 9))


def test_a_stop_between_records_loses_none_of_the_loss(digits, tiny_recipe, tmp_path):
    run(tiny_recipe, digits, tmp_path / "whole", log_every_steps=3)
    run(tiny_recipe, digits, tmp_path / "parts", log_every_steps=3, max_steps=2)
    run(tiny_recipe, digits, tmp_path / "parts", log_every_steps=3)
    assert measured(tmp_path / "whole") == measured(tmp_path / "parts")


def test_evaluating_and_saving_more_often_changes_no_weight(digits, tiny_recipe, tmp_path):
    run(tiny_recipe, digits, tmp_path / "often", log_every_steps=1, checkpoint_seconds=0)
    run(tiny_recipe, digits, tmp_path / "seldom", log_every_steps=50)
    assert_same_checkpoint(tmp_path / "often", tmp_path / "seldom")


def test_records_after_the_checkpoint_are_made_again_not_doubled(digits, tiny_recipe, tmp_path):
    run(tiny_recipe, digits, tmp_path / "whole")
    run(tiny_recipe, digits, tmp_path / "killed", max_steps=4)
    lost = Record(step=5, epoch=1.25, images_seen=320, seconds=1.0, values={"train/loss": 9.9})
    with (tmp_path / "killed" / "records.jsonl").open("a") as file:
        file.write(lost.to_json() + "\n" + '{"step": 6, "epo')  # as a kill leaves it
    run(tiny_recipe, digits, tmp_path / "killed")
    assert measured(tmp_path / "whole") == measured(tmp_path / "killed")


def one_step_gradients(recipe: Recipe, data, micro_batch: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = build(recipe.model, data.num_classes)
    state = TrainState(model, optimizer(model, recipe, Cpu()))
    batch = next(TrainBatches(data, recipe, seed=0).starting_at(0))
    parts = placed(batch, recipe, backend=Cpu(), step=0, micro_batch=micro_batch, seed=0)
    add_gradients(state, parts, recipe, backend=Cpu())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_one_micro_batch_of_64_gives_the_gradients_of_four_of_16(digits, tiny_recipe):
    whole = one_step_gradients(tiny_recipe, digits, 64)
    for name, gradient in one_step_gradients(tiny_recipe, digits, 16).items():
        torch.testing.assert_close(
            gradient, whole[name], rtol=1e-4, atol=1e-6 * float(whole[name].abs().max()) + 1e-9
        )


def test_two_hosts_have_the_gradients_of_one_between_them(digits, tiny_recipe):
    torch.manual_seed(0)
    model = build(tiny_recipe.model, digits.num_classes)
    state = TrainState(model, optimizer(model, tiny_recipe, Cpu()))
    for rank in range(2):
        host = Cpu()
        host.num_hosts, host.num_devices, host.host = 2, 2, rank
        batches = TrainBatches(digits, tiny_recipe, seed=0, host=HostShare(rank, 2)).starting_at(0)
        parts = placed(next(batches), tiny_recipe, backend=host, step=0, micro_batch=16, seed=0)
        assert [len(part.labels) for part in parts] == [8] * 4  # 16 over both
        add_gradients(state, parts, tiny_recipe, backend=host)
    whole = one_step_gradients(tiny_recipe, digits, 64)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad,
            whole[name],
            rtol=1e-4,
            atol=1e-6 * float(whole[name].abs().max()) + 1e-9,
        )


def test_only_the_first_host_writes_and_all_say_the_same(digits, tiny_recipe, tmp_path):
    recipe = tuned(tiny_recipe, epochs=1)
    seen: list[Record] = []
    second = Cpu()
    second.num_hosts, second.num_devices, second.host = 2, 2, 1
    outcome = run(recipe, digits, tmp_path / "second", backend=second, sinks=[seen.append])
    assert isinstance(outcome, Finished)
    assert metrics.TOP1 in outcome.metrics
    assert seen == []
    assert not (tmp_path / "second").exists()


class OtherHost(Cpu):
    """A host whose neighbour stands at step 3."""

    num_hosts, num_devices = 2, 2

    def highest(self, value: int) -> int:
        return max(value, 3) if value > 0 else max(value, -3)


def test_hosts_that_read_different_checkpoints_do_not_train(digits, tiny_recipe, tmp_path):
    run(tiny_recipe, digits, tmp_path / "run", backend=OtherHost(), max_steps=3)
    run(tiny_recipe, digits, tmp_path / "ahead", max_steps=4)
    with pytest.raises(HostsDisagree, match=r"the step that .* stands at; this one reads 4"):
        run(tiny_recipe, digits, tmp_path / "ahead", backend=OtherHost())


class Eager(Cpu):
    """A CPU that is sent each batch one step early, and says what it did."""

    batches_ahead = 1

    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []

    def place(self, rows):
        if rows.ndim == 4:
            self.did.append("sent")
        return super().place(rows)

    def cut_graph(self) -> None:
        self.did.append("worked")


def test_the_next_batch_is_sent_before_a_step_and_changes_nothing(digits, tiny_recipe, tmp_path):
    where = Eager()
    run(tiny_recipe, digits, tmp_path / "ahead", backend=where, max_steps=3)
    # A step's two cuts: after its micro-batch, and after its sums have been counted.
    assert where.did == ["sent", "sent", *["worked"] * 2, "sent", *["worked"] * 4]
    run(tiny_recipe, digits, tmp_path / "usual", max_steps=3)
    assert_same_checkpoint(tmp_path / "ahead", tmp_path / "usual")


class Compiles(Cpu):
    """A CPU that says it has compiled something in its second, fourth and fifth step."""

    steps = 0

    def cut_graph(self) -> None:
        self.steps += 1

    def compilations(self) -> int:
        return sum(self.steps > step for step in (1, 3, 4))


def test_throughput_leaves_out_every_window_in_which_something_was_compiled():
    where = Compiles()
    meter = Meter(where, lambda rate: None)
    timed = []
    for _ in range(7):
        meter.add(Sums(torch.zeros(1, dtype=torch.float64), 64))
        timed.append(metrics.IMAGES_PER_SECOND in meter.record())
    # The first warms up.
    assert timed == [False, False, True, False, False, True, True]
    assert meter.state()["timed"][0] == 3 * 64


def test_micro_batches_split_the_batch_evenly_and_keep_pairs_whole():
    plain = tuned(BASELINE, global_batch=12, mixup=0.0, cutmix=0.0)
    assert micro_batches(plain) == [12, 6, 4, 3, 2, 1]
    assert micro_batches(plain, num_devices=2) == [12, 6, 4, 2]
    mixed = tuned(BASELINE, global_batch=12)
    assert micro_batches(mixed) == [12, 6, 4, 2]
    assert micro_batches(mixed, num_devices=2) == [12, 4]
    with pytest.raises(ValueError, match=r"12 does not split over 8 devices .*pairs.*try 16$"):
        micro_batches(mixed, num_devices=8)


class SmallMemory(Cpu):
    """A CPU whose memory holds a forward pass of `fits` images, as a GPU's would."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits = fits

    def place(self, rows):
        if rows.ndim == 4 and len(rows) > self.fits:
            raise torch.OutOfMemoryError(f"no room for {len(rows)} images")
        return super().place(rows)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_batch(
    digits, tiny_recipe, tmp_path, caplog
):
    recipe = tuned(tiny_recipe, epochs=1)
    outcome = run(recipe, digits, tmp_path / "small", backend=SmallMemory(20), max_steps=3)
    assert outcome == Preempted(3)
    assert checkpoint.load(tmp_path / "small" / "last.ckpt")["micro_batch"] == 16
    assert "micro-batch 64 is out of memory; going on with 32" in caplog.text
    run(recipe, digits, tmp_path / "large", max_steps=3)
    small, large = measured(tmp_path / "small"), measured(tmp_path / "large")
    assert [record.images_seen for record in read_records(tmp_path / "small/records.jsonl")] == [
        64,
        128,
        192,
    ]
    for (_, got), (_, wanted) in zip(small, large, strict=True):
        assert got[metrics.TRAIN_LOSS] == pytest.approx(wanted[metrics.TRAIN_LOSS], rel=1e-4)


def test_a_run_that_fits_in_no_memory_says_so(digits, tiny_recipe, tmp_path):
    outcome = run(tiny_recipe, digits, tmp_path, backend=SmallMemory(1))
    assert outcome == OutOfMemory(2, "no room for 2 images")


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged_at_its_step(
    digits, tiny_recipe, tmp_path
):
    recipe = tuned(tiny_recipe, warmup_epochs=0, peak_lr=9.0, weight_decay=9.0, beta2=0.0)
    hot = replace(recipe, schedule=replace(recipe.schedule, epochs=60))
    outcome = run(hot, digits, tmp_path, log_every_steps=10, checkpoint_seconds=0)
    if not isinstance(outcome, Diverged):
        pytest.fail(f"expected the run to diverge, not {outcome}")
    assert json.loads((tmp_path / "outcome.json").read_text())["facts"]["step"] == outcome.step
    saved = checkpoint.load_latest(tmp_path)
    assert saved is None or saved["step"] < outcome.step
    assert run(hot, digits, tmp_path) == outcome  # and it is not tried again


def test_a_truncated_checkpoint_is_noticed_and_the_one_before_used(
    digits, tiny_recipe, tmp_path, caplog
):
    run(tiny_recipe, digits, tmp_path / "whole")
    run(tiny_recipe, digits, tmp_path / "cut", max_steps=3)
    run(tiny_recipe, digits, tmp_path / "cut", max_steps=5)
    last = tmp_path / "cut" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert isinstance(run(tiny_recipe, digits, tmp_path / "cut"), Finished)
    assert "damaged" in caplog.text
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "cut")
    assert measured(tmp_path / "whole") == measured(tmp_path / "cut")


def test_an_altered_byte_in_a_checkpoint_is_noticed(tmp_path):
    checkpoint.save(tmp_path, {"weights": torch.arange(10000)})
    path = tmp_path / "last.ckpt"
    assert checkpoint.is_whole(path)
    spoilt = bytearray(path.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    path.write_bytes(spoilt)
    assert not checkpoint.is_whole(path)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoint.load_latest(tmp_path)


def test_a_directory_of_another_run_is_refused(digits, tiny_recipe, tmp_path):
    run(tiny_recipe, digits, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"another recipe \(peak_lr 0.002 not 0.001\)"):
        run(tuned(tiny_recipe, peak_lr=1e-3), digits, tmp_path)
    with pytest.raises(ValueError, match="of seed 0, not 1"):
        run(tiny_recipe, digits, tmp_path, seed=1)


def test_a_recipe_that_changed_with_the_data_is_refused_with_that_reason(
    digits, tiny_recipe, tmp_path
):
    run(tiny_recipe, digits, tmp_path, max_steps=1)
    grown = replace(digits, fingerprint="0123456789ab")
    with pytest.raises(ValueError, match=r"not 0.001\), and of other data: the images"):
        run(tuned(tiny_recipe, peak_lr=1e-3), grown, tmp_path)


def test_a_finished_run_reports_what_the_interface_promises(digits, tiny_recipe, tmp_path):
    seen: list[Record] = []
    outcome = run(tiny_recipe, digits, tmp_path, sinks=[seen.append], log_every_steps=3)
    assert isinstance(outcome, Finished)
    assert seen == list(read_records(tmp_path / "records.jsonl"))
    assert [record.step for record in seen] == [3, 4, 6, 8]
    promised = {"top1", "top5", "macs", "params", "activations", "images_per_second"}
    assert promised | {"train_device_hours", "minival/top1"} <= outcome.metrics.keys()
    assert {"val/top1", "val/top5", "minival/loss"} <= seen[-1].values.keys()
    assert 0 <= outcome.metrics["input_wait_fraction"] <= 1
    assert outcome.metrics["images_per_second"] > 0
    model = build(tiny_recipe.model, digits.num_classes)
    model.load_state_dict(checkpoint.load(tmp_path / "last.ckpt")["model"])
    again = evaluate(model, digits, "val", tiny_recipe, backend=Cpu(), batch_size=100)
    assert again["val/top1"] == outcome.metrics["top1"]


def test_a_finished_run_of_another_seed_is_not_taken_for_this_one(digits, tiny_recipe, tmp_path):
    short = tuned(tiny_recipe, epochs=1)
    assert isinstance(run(short, digits, tmp_path), Finished)
    assert isinstance(run(short, digits, tmp_path), Finished)
    with pytest.raises(ValueError, match="of seed 0, not 1"):
        run(short, digits, tmp_path, seed=1)


def test_a_batch_that_does_not_split_over_the_devices_names_its_neighbours(
    digits, tiny_recipe, tmp_path
):
    three = Cpu()
    three.num_devices = 3
    with pytest.raises(
        ValueError, match="not split over 3 devices in whole pairs of images; try 60 or 66"
    ):
        run(tiny_recipe, digits, tmp_path, backend=three)


def test_evaluation_does_not_depend_on_the_batch_size(digits, tiny_recipe):
    torch.manual_seed(0)
    model = build(tiny_recipe.model, digits.num_classes)
    values = [
        evaluate(model, digits, "minival", tiny_recipe, backend=Cpu(), batch_size=size)
        for size in (7, 64, 1000)
    ]
    for other in values[1:]:
        assert other == pytest.approx(values[0], rel=1e-5)


def test_weight_decay_spares_biases_and_norms(tiny_recipe):
    model = build(tiny_recipe.model, 10)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    take_step(optimizer(model, tiny_recipe, Cpu()), 0.1, 0.05, Cpu())
    for name, parameter in model.named_parameters():
        spared = "bias" in name or "norm" in name
        assert torch.equal(parameter, before[name] * (1 if spared else 1 - 0.1 * 0.05)), name


def test_an_update_is_torchs_adamw(tiny_recipe):
    model, reference = (build(tiny_recipe.model, 10) for _ in range(2))
    reference.load_state_dict(model.state_dict())
    ours = optimizer(model, tiny_recipe, Cpu())
    groups = [[p for p in reference.parameters() if (p.ndim > 1) == big] for big in (True, False)]
    theirs = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.05}, {"params": groups[1], "weight_decay": 0.0}],
        betas=(tiny_recipe.optim.beta1, tiny_recipe.optim.beta2),
        eps=tiny_recipe.optim.adam_eps,
    )
    generator = torch.Generator().manual_seed(0)
    for lr in (1e-3, 0.0, 3e-3):
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for group in theirs.param_groups:
            group["lr"] = lr
        take_step(ours, lr, 0.05, Cpu())
        theirs.step()
        # Ours is fused, which rounds otherwise.
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_the_released_codes_schedule_is_reproduced_epoch_by_epoch():
    rates = [learning_rate(RELEASED_CODE, 312 * epoch + 7, 312) for epoch in range(310)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[19] == pytest.approx(3.80e-3, rel=1e-3)
    assert rates[20] == pytest.approx(3.956e-3, rel=1e-3)
    assert max(rates) < 4e-3
    assert rates[300:] == [1e-5] * 10


def test_the_papers_schedule_moves_every_step_and_ends_near_zero():
    rates = [learning_rate(BASELINE, step, 312) for step in range(312 * 300)]
    assert len(set(rates[: 312 * 20])) == 312 * 20
    assert max(rates) == pytest.approx(4e-3, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)


def test_a_backend_that_is_not_there_is_an_error_that_says_what_is():
    with pytest.raises(ValueError, match="choose from cpu, cuda"):
        backend("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees none"):
            backend("cuda")


def test_a_longer_cool_down_goes_on_from_the_shorter_run_and_ends_as_one_from_scratch(
    digits, tmp_path, tiny_recipe
):
    short = tuned(tiny_recipe, epochs=2, cooldown_epochs=0)
    long = tuned(short, cooldown_epochs=1)
    first, whole = (Trial(label="t", recipe=r, seed=0, data="d") for r in (short, long))
    early, folder = StudyFolder(tmp_path, "early"), StudyFolder(tmp_path, "now")
    run(short, digits, early.run_directory(first))
    run(long, digits, tmp_path / "scratch")

    assert folder.adopt(whole) == "early"
    assert folder.run(whole).status == "unfinished"
    assert folder.run(whole).records[-1].epoch == pytest.approx(2, abs=0.1)
    run(long, digits, folder.run_directory(whole))
    assert measured(folder.run_directory(whole)) == measured(tmp_path / "scratch")
    assert_same_checkpoint(folder.run_directory(whole), tmp_path / "scratch")


COMMAND = """
from mambaout.__main__ import main
main(["train", "--recipe", sys.argv[1], "--data", "digits", "--out", sys.argv[2], "--backend",
      "cpu", "--workers", "0"])
"""
TRIAL = """
from mambaout.launch.task import Task
from mambaout.launch.trial import train_here
from mambaout.recipe import recipe_from_json
from mambaout.study.study import Trial
out = Path(sys.argv[2])
task = Task(storage=str(out), data="digits", backend="cpu", cpus=1, num_workers=0, study="s",
            launch="1", stop_file="no", commit="c", trainer="mambaout.launch.trial:train_trial")
recipe = recipe_from_json(Path(sys.argv[1]).read_text())
trial = Trial(label="t", recipe=recipe, seed=0, data=sys.argv[3])
train_here(task, trial, out, lambda record: None, lambda: False)
"""


@pytest.mark.parametrize("run", [COMMAND, TRIAL], ids=["command", "trial"])
def test_training_imports_nothing_slow_that_it_does_not_need(run, tiny_recipe, digits, tmp_path):
    """torch._dynamo alone takes 0.8 s of every trial; torch's optimizers import it unasked."""
    code = (
        "import gc, sys; from pathlib import Path\n" + run + "slow = ("
        "'torch._dynamo', 'torch._inductor', 'torch_xla', 'sympy', 'timm', 'torchvision', 'scipy',"
        "'sklearn', 'pandas', 'matplotlib', 'optuna', 'sqlalchemy', 'mlflow', 'ray')\n"
        "print([name for name in slow if name in sys.modules])\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    (tmp_path / "recipe.json").write_text(canonical_json(tiny_recipe))
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, str(tmp_path / "recipe.json"), str(tmp_path / "run")),
            digits.fingerprint,
        ],
        env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "run" / "outcome.json").exists()
    assert done.stdout.splitlines()[-2:] == ["[]", "True True"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_a_training_process_keeps_the_memory_that_it_frees():
    code = (
        "import resource, torch; from mambaout.train.backend import Cpu\n"
        "Cpu().move(torch.nn.Linear(1, 1))\n"
        "torch.ones(1 << 24)\n"  # 64 MiB, 16,384 pages
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(40): torch.ones(1 << 24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        check=True,
    )
    # Something small may take a part of a freed block: then there is another one, for good.
    assert int(done.stdout) < 10 * 16384
