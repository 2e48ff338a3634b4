"""torch.compile of the step: the same results as eager, one graph for each function, one cache.

The graphs are what torch.compile traces, forward and backward, for any device. Tests of a whole
run execute them with `aot_eager`, which compiles no C++. Tests with inductor compile for the CPU.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xla_runs
from needs import needs_cxx
from xla_runs import BF16, OTHER, RECIPE, compilations, first_gradients, losses

from mambaout.__main__ import main
from mambaout.cache import default_cache
from mambaout.model.gated_block import modules_alone
from mambaout.model.network import GatedCNNBlock, Head, Stem, build
from mambaout.recipe import Recipe, tuned
from mambaout.train import checkpoint, compiler
from mambaout.train.backend import Cpu, backend
from mambaout.train.loop import train
from mambaout.train.optim import optimizer, take_step


@pytest.fixture
def aot_eager(monkeypatch) -> None:
    """torch.compile traces as ever, and executes the traced operations one by one."""
    compiler.configure()
    torch._dynamo.reset()
    monkeypatch.setattr(compiler, "why_not", lambda device_type: None)
    compile_ = functools.partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(compiler, "compiled", functools.cache(compile_))


def graphs_of(work: Callable[[], Any]) -> int:
    before = compiler.num_graphs()
    work()
    return compiler.num_graphs() - before


class LittleMemory(Cpu):
    """A CPU with room for the smallest micro-batch only."""

    def usable_bytes(self) -> float:
        return 0


def weights_off(one: Path, other: Path) -> float:
    found, wanted = (checkpoint.load(path / "last.ckpt")["model"] for path in (one, other))
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


@pytest.mark.slow
def test_a_whole_run_compiles_three_graphs_and_equals_eager(aot_eager, digits, tmp_path, caplog):
    """Two epochs with every augmentation, drop path, warm-up from a rate of 0, and evaluations
    whose last batch is not full; then resumes, other rates, micro-batches."""

    def run(name: str, recipe: Recipe = RECIPE, **options: Any) -> None:
        options = {"log_every_steps": 1, "backend": Cpu(compiles=True)} | options
        train(recipe, digits, out=tmp_path / name, **options)

    run("eager", backend=Cpu())
    # Evaluation, a micro-batch, the update.
    assert graphs_of(lambda: run("whole")) == 3
    assert compilations(tmp_path / "whole") == [3] * 8
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    assert weights_off(tmp_path / "whole", tmp_path / "eager") < 1e-5
    topology = checkpoint.load(tmp_path / "whole" / "last.ckpt")["topology"]
    assert topology["compiles"] is True

    def in_two_parts() -> None:
        run("parts", max_steps=3)
        run("parts")

    assert graphs_of(in_two_parts) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert weights_off(tmp_path / "parts", tmp_path / "whole") == 0
    rates = tuned(OTHER, beta2=RECIPE.optim.beta2)
    assert graphs_of(lambda: run("other rates", rates)) == 0
    assert graphs_of(lambda: run("other betas", OTHER)) == 1  # the update's

    # A resume on the other setting is said, and goes on to the same results.
    caplog.set_level(logging.INFO, "mambaout")
    run("mixed", max_steps=3)
    assert "equal to rounding" not in caplog.text
    run("mixed", backend=Cpu())
    assert "equal to rounding, not to the bit" in caplog.text
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)

    many = tuned(RECIPE, global_batch=32, train_images=128, epochs=1)
    run("many, eager", many, backend=LittleMemory())
    # Other sizes of a micro-batch and of an evaluation batch; the update stays.
    assert graphs_of(lambda: run("many", many, backend=LittleMemory(compiles=True))) == 2
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "many, eager"), rel=1e-5)
    assert weights_off(tmp_path / "many", tmp_path / "many, eager") < 1e-5


@pytest.mark.slow
def test_in_bf16_the_losses_are_eager_s_to_its_rounding(aot_eager, digits, tmp_path):
    for name in ("eager", "compiled"):
        where = Cpu(compiles=name == "compiled")
        train(BF16, digits, out=tmp_path / name, backend=where, max_steps=3, log_every_steps=1)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=2**-9)


def test_an_earlier_version_s_checkpoint_is_of_an_eager_run(digits, tiny_recipe, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mambaout")
    train(tiny_recipe, digits, out=tmp_path, backend=Cpu(), max_steps=1)
    saved = checkpoint.load(tmp_path / "last.ckpt")
    assert saved["topology"].pop("compiles") is False
    checkpoint.save(tmp_path, saved)
    train(tiny_recipe, digits, out=tmp_path, backend=Cpu(), max_steps=2)
    assert "continuing" in caplog.text
    assert "equal to rounding" not in caplog.text


# -- with inductor --------------------------------------------------------------------------------


class OneBlockNetwork(torch.nn.Module):
    """Stem, one block and head, as C++ for a whole network would take a minute to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, dim = 10, RECIPE.model.dims[0]
        self.stem, self.head = Stem(dim, RECIPE.model), Head(dim, 10)
        self.block = GatedCNNBlock(dim, RECIPE.model, RECIPE.model.mixer)

    def forward(self, images: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem(images), scales[:, 1]))


@pytest.mark.slow
@needs_cxx
def test_inductors_gradients_are_eager_s_and_its_cache_is_read(monkeypatch):
    from torch._dynamo.utils import counters
    from torch._inductor import config

    # Another test may have compiled something without our cache.
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    compiler.why_not.cache_clear()
    torch._dynamo.reset()
    monkeypatch.setattr(xla_runs, "build", lambda config, num_classes: OneBlockNetwork())
    scalar = config.patch({"cpp.simdlen": 1})  # its C++ compiles in a third of the time
    with scalar, modules_alone():  # the modules, as on a GPU
        wanted = first_gradients(RECIPE, Cpu(), 16)
        assert_equal(first_gradients(RECIPE, Cpu(compiles=True), 16), wanted)
        folder = default_cache() / "inductor" / f"torch-{torch.__version__}"
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
        assert any(folder.rglob("*.so"))

        torch._dynamo.reset()  # as in another process
        counters.clear()
        assert_equal(first_gradients(RECIPE, Cpu(compiles=True), 16), wanted)
        assert counters["aot_autograd"]["autograd_cache_hit"] == 1
        assert counters["inductor"]["fxgraph_cache_miss"] == 0


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        atol = 1e-4 * float(wanted[name].abs().max()) + 1e-9
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=atol)


@pytest.mark.slow
@needs_cxx
def test_inductors_update_is_eager_s_at_any_rate(tiny_recipe):
    # Three groups: decayed, not decayed, and with a share of the rate.
    recipe = tuned(tiny_recipe, mup_base_dim=4)
    models = [build(recipe.model, 10) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    backends = [Cpu(), Cpu(compiles=True)]
    few = [torch.nn.ParameterDict(_first_of_each_kind(model)) for model in models]
    optimizers = [optimizer(m, recipe, b) for m, b in zip(few, backends, strict=True)]
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for lr, weight_decay in ((0.0, 0.05), (1e-3, 0.05), (3e-3, 0.1)):
        before = compiler.num_graphs()
        for one, other in zip(few[0].values(), few[1].values(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer_, where in zip(optimizers, backends, strict=True):
            take_step(optimizer_, lr, weight_decay, where)
        for one, other in zip(few[0].values(), few[1].values(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)
        graphs.append(compiler.num_graphs() - before)
    assert graphs == [1, 0, 0]


def _first_of_each_kind(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    names = ("stem.conv1.weight", "stem.conv1.bias", "stages.0.blocks.0.fc1.weight")
    return {name.replace(".", "_"): model.get_parameter(name) for name in names}


# -- where it cannot be used ----------------------------------------------------------------------


def test_without_a_compiler_training_goes_on_eagerly_and_the_remedy_is_named(monkeypatch, caplog):
    compiler.why_not.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert Cpu(compiles=True).compiles is False
    assert caplog.messages == [
        "training without torch.compile, which is slower: there is no C++ compiler, `g++`; "
        "apt install g++"
    ]
    compiler.why_not.cache_clear()


@pytest.mark.parametrize(
    ("capability", "lacks", "says"),
    [
        ((6, 1), "", "compute capability is 6.1, and Triton needs 7.0; give --no-compile"),
        ((9, 0), "triton", "triton is missing; install torch's wheel for CUDA on Linux"),
        ((9, 0), "gcc", "Triton needs a C compiler; apt install gcc libc6-dev"),
    ],
)
def test_a_gpu_without_what_triton_needs_is_told_the_remedy(monkeypatch, capability, lacks, says):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(compiler, "find_spec", lambda name: None if name == lacks else name)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None if lacks == "gcc" else name)
    assert says in str(compiler.missing("cuda"))


@pytest.mark.parametrize("option", ["--compile", "--no-compile"])
def test_xla_refuses_the_option_in_one_line(option, tmp_path, capsys):
    command = ["train", "--data", "digits", "--out", str(tmp_path / "run"), "--backend", "xla"]
    assert main([*command, option]) == 2
    shown = capsys.readouterr().err
    assert "--compile and --no-compile are for a CPU and a GPU; XLA always compiles" in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("compiles", "is_compiled"), [(None, False), (False, False), (True, True)])
def test_a_cpu_is_eager_unless_compile_is_given(compiles, is_compiled, monkeypatch):
    monkeypatch.setattr(compiler, "why_not", lambda device_type: None)
    assert backend("cpu", compiles=compiles).compiles is is_compiled


def test_train_takes_the_option_and_its_recipe_does_not(digits, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(compiler, "why_not", lambda kind: asked.append(kind) or "not in this test")
    small = "--depths 1,1,1,1 --dims 8,8,8,8 --stem-stride 2 --image-size 16 --global-batch 32"
    command = ["train", "--data", "digits", *small.split(), "--max-steps", "1"]
    for name, options in (("eager", []), ("compiled", ["--compile"])):
        assert main([*command, *options, "--out", str(tmp_path / name)]) == 0
        assert asked == ["cpu"] * len(options)
    eager, compiled = (
        (tmp_path / name / "recipe.json").read_text() for name in ("eager", "compiled")
    )
    assert compiled == eager
