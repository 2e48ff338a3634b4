"""Checks a machine: its parts, what does not fit together, and a few training steps on it.

Run:    mambaout doctor --backend xla
Costs:  a minute or two, most of it compiling; writes nothing
Status: 0 all is well, 1 it trains but something is wrong, 2 it cannot train

It is the first command to run on a new machine, above all on a new TPU: much can be checked only
there. On a slice run it on all hosts at once.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mambaout.accounting import cost, mfu
from mambaout.cache import CACHE_VARIABLE, default_cache
from mambaout.chips import GIB, find_chip
from mambaout.data.batches.loader import Batch
from mambaout.data.images.c_files import C_FILES
from mambaout.errors import WrongRequest
from mambaout.model import scan_passes
from mambaout.model.gated_passes import c_files
from mambaout.model.network import build
from mambaout.native import why_not
from mambaout.numbers import percent_text, rate_text
from mambaout.recipe import BASELINE, Recipe, tuned
from mambaout.train import compiler, tpu_machine, versions
from mambaout.train.backend import Backend, backend
from mambaout.train.cpu import cpu_name
from mambaout.train.facts import git_commit
from mambaout.train.optim import optimizer
from mambaout.train.step import Sums, TrainState, placed, train_step
from mambaout.variants import VARIANTS

PACKAGES = ("torch", "torch_xla", "libtpu", "torchvision", "timm", "ray", "mlflow", "optuna")
LEAST_SHARED = 1 * GIB  # of /dev/shm: Ray's objects and loading processes; Docker gives 64 MiB
LEAST_CACHE = 10 * GIB  # free; packed Fashion-MNIST takes 0.1; ImageNet-1k is not copied
WARM_STEPS = 2  # after these steps nothing may compile

Say = Callable[[str], None]


@dataclass(frozen=True)
class StepsReport:
    """The result of a few training steps."""

    images_per_second: float
    warm_seconds: float
    compilations: int  # of the process, counted after the last step
    late_compilations: int  # those after the warm steps
    loss: float
    peak_memory_bytes: int | None


def doctor(name: str | None = None, say: Say = print) -> int:
    """Print everything with `say`; returns the exit status."""
    _lines(say, "versions", _versions())
    runtime = os.environ.get("PJRT_DEVICE")
    found = versions.installed()
    wrong = versions.misfits(found, runtime) if name == "xla" else []
    if wrong:
        return _verdict(say, wrong, 2)
    _lines(say, "machine", _machine())
    wrong = versions.doubts(found, runtime) if name == "xla" else []
    wrong += short_of_room(_room(Path("/dev/shm"), free=False), _room(default_cache(), free=True))
    try:
        where = backend(name)
        _lines(say, "devices", _devices(where))
        recipe = trial_recipe(where)
        tried = try_steps(where, recipe)
    except WrongRequest:
        raise
    except Exception as error:  # a broken runtime can raise any kind of error
        if name == "xla":
            _lines(say, "libtpu", (("log", line) for line in tpu_machine.log_lines()))
        return _verdict(say, [*wrong, f"no step of training: {type(error).__name__}: {error}"], 2)
    _lines(say, "training", _training(where, recipe, tried))
    wrong += what_is_wrong(where, tried)
    return _verdict(say, wrong, 1 if wrong else 0)


def _lines(say: Say, title: str, rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        say(f"{title:10}{name:16}{value}")
        title = ""


def _verdict(say: Say, wrong: list[str], status: int) -> int:
    for text in wrong:
        say(f"wrong     {text}")
    say(("all well", "it trains, with what is said above", "it cannot train here")[status])
    return status


# -- what there is --------------------------------------------------------------------------------


def _versions() -> list[tuple[str, str]]:
    rows = [("mambaout", git_commit()), ("python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def _machine() -> list[tuple[str, str]]:
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tpu = {name: value for name, value in os.environ.items() if name.startswith(("PJRT_", "TPU_"))}
    cache, kernel_size = default_cache(), VARIANTS["tiny"].kernel_size
    rows = [
        ("processor", cpu_name(torch.get_num_threads())),
        ("cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"),
        ("memory", _gib(pages)),
        ("kernel", tpu_machine.kernel()),
        ("locked memory", f"{tpu_machine.locked_memory()} (ulimit -l)"),
        ("/dev/shm", _gib(_room(Path("/dev/shm"), free=False))),
        (
            "data cache",
            f"{cache} ({_gib(_room(cache, free=True))} free; {CACHE_VARIABLE} moves it)",
        ),
        ("JPEGs", why_not(C_FILES) or "crops decoded by jpeg_crop.c"),
        (
            "blocks on the CPU",
            why_not((*c_files(kernel_size, False), *c_files(kernel_size, True)))
            or "computed by gated_block.c",
        ),
        ("scans on the CPU", why_not(scan_passes.c_files()) or "computed by scan.c"),
        ("chips in /dev", ", ".join(chips()) or "none"),
    ]
    if files := tpu_machine.device_files():
        rows.append(("TPU's files", ", ".join(files)))
        rows.append(("libtpu's log", f"in {tpu_machine.log_folder()}"))
    return rows + sorted(tpu.items())


def chips() -> list[str]:
    """The accelerators for which the kernel has a device file."""
    patterns = ("accel[0-9]*", "nvidia[0-9]*")
    return sorted(str(path) for pattern in patterns for path in Path("/dev").glob(pattern))


def _devices(where: Backend) -> list[tuple[str, str]]:
    chip = find_chip(where.device_name)
    peak = "no peak known: no mfu"
    if chip is not None:
        peak = ", ".join(f"{p} {f / 1e12:g} TFLOP/s" for p, f in chip.peak_flops.items())
        peak += f" and {_gib(chip.memory_bytes)} a chip of {chip.cores}"
    hosts = f", host {where.host} of {where.num_hosts}" if where.num_hosts > 1 else ""
    return [
        ("backend", where.name),
        ("device", f"{where.num_devices} x {where.device_name}{hosts}"),
        ("chip", peak),
        ("step", "compiled" if where.compiles else "eager"),
    ]


def _room(path: Path, *, free: bool) -> int | None:
    """Free or total bytes of the file system of `path`; None if the path has none.

    With `free` the path itself need not exist yet.
    """
    if not path.is_absolute() or (not free and not path.exists()):
        return None
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if free else usage.total


def _gib(size: int | None) -> str:
    return "none" if size is None else f"{size / GIB:,.1f} GiB"


def short_of_room(shared: int | None, cache: int | None) -> list[str]:
    """The warnings about a small /dev/shm and a full disk; both arguments in bytes."""
    said = []
    if shared is not None and shared < LEAST_SHARED:
        said.append(
            f"/dev/shm has {shared / GIB:.2f} GiB: Ray and loading processes share memory there; "
            "give a container --shm-size=8g"
        )
    if cache is not None and cache < LEAST_CACHE:
        said.append(f"the data cache has {_gib(cache)} left: free some, or set {CACHE_VARIABLE}")
    return said


# -- a few steps ----------------------------------------------------------------------------------


def trial_recipe(where: Backend) -> Recipe:
    """Femto's recipe on an accelerator; on a CPU, also on virtual devices, a toy version of it."""
    if find_chip(where.device_name) is None and where.name != "cuda":
        small = tuned(BASELINE, dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), image_size=32)
        return replace(small, global_batch=8 * where.num_devices)
    return tuned(
        replace(BASELINE, model=VARIANTS["femto"]),
        global_batch=64 * where.num_devices,
        precision="bf16" if where.multiplies_bf16 else "fp32",
    )


def try_steps(where: Backend, recipe: Recipe, num_steps: int = 10) -> StepsReport:
    """Train `recipe` on made-up images that are on the device already, so loading is not timed."""
    num_classes, share = 1000, recipe.global_batch // where.num_hosts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(recipe.model, num_classes)
        images = torch.randint(256, (share, recipe.image_size, recipe.image_size, 3))
        labels = torch.randint(num_classes, (share,))
    batch = Batch(images.to(torch.uint8), labels, num_valid=share, first=where.host * share)
    model = where.move(model)
    state = TrainState(model, optimizer(model, recipe, where))

    def step() -> Sums:
        parts = placed(
            batch, recipe, backend=where, step=state.step, seed=0,
            micro_batch=recipe.global_batch,
        )  # fmt: skip
        sums = train_step(state, parts, recipe, backend=where, lr=1e-4)
        where.cut_graph()
        return sums

    def steps(count: int) -> tuple[float, float]:
        began = time.monotonic()
        last = [step() for _ in range(count)][-1]
        where.wait()
        seconds = time.monotonic() - began
        return seconds, float(last.loss.cpu()[0]) / last.num_images

    warm_seconds, _ = steps(WARM_STEPS)
    after_warming = where.compilations()
    seconds, loss = steps(num_steps)
    compilations = where.compilations()
    return StepsReport(
        images_per_second=num_steps * recipe.global_batch / seconds,
        warm_seconds=warm_seconds,
        compilations=compilations,
        late_compilations=compilations - after_warming,
        loss=loss,
        peak_memory_bytes=where.peak_memory_bytes(),
    )


def _training(where: Backend, recipe: Recipe, tried: StepsReport) -> list[tuple[str, str]]:
    model = recipe.model
    macs = cost(model, recipe.image_size).macs
    chip = find_chip(where.device_name)
    share = mfu(macs, tried.images_per_second, chip, recipe.precision, where.num_devices)
    used = "" if share is None else f", {percent_text(100 * share, 1)} of the peak"
    shape = f"{','.join(map(str, model.depths))} x {','.join(map(str, model.dims))}"
    return [
        ("network", f"{shape}, {recipe.image_size} px, {recipe.precision}"),
        ("batch", f"{recipe.global_batch} over {where.num_devices} devices"),
        ("first steps", f"{tried.warm_seconds:.1f} s, {tried.compilations} graphs compiled"),
        ("speed", f"{rate_text(tried.images_per_second)} images/s{used}, nothing loaded"),
        ("peak memory", _gib(tried.peak_memory_bytes).replace("none", "not told")),
    ]


def what_is_wrong(where: Backend, tried: StepsReport) -> list[str]:
    """The faults of a machine that does train."""
    said = []
    if tried.late_compilations:
        said.append(
            f"{tried.late_compilations} graphs were compiled after step {WARM_STEPS}, where none "
            "should be: every step may cost a compilation; report it with these lines"
        )
    if not tried.loss < 20:  # about ln 1000 = 6.9 at the start; NaN is not below anything
        said.append(f"the loss after {WARM_STEPS} steps and more is {tried.loss}: no number to use")
    if where.name == "cuda" and (reason := compiler.why_not("cuda")) is not None:
        said.append(f"the step is not compiled: {reason}")
    if where.name == "cuda" and find_chip(where.device_name) is None:
        said.append(f"{where.device_name} is not in the chip table: plans and mfu do without it")
    if where.name == "cpu" and (unused := chips()):
        remedy = "--backend xla" if "accel" in unused[0] else "torch does not see it: its driver?"
        said.append(f"{unused[0]} is not used: {remedy}")
    return said
