"""The benchmarks' own logic: what they make, count and compare. No time is asserted."""

from __future__ import annotations

import json
import os
import runpy
import statistics
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_folder
from needs import needs_c
from PIL import Image
from starts import start_of

from mambaout.data.packing.sources import open_data
from mambaout.recipe import BASELINE, flat_fields
from mambaout.train import compiler

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RECIPE_SWEEP = BENCHMARKS.parent / "sweeps" / "recipe.py"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """As when one of them is run: its folder comes first."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def module(name: str) -> Any:
    return import_module(name)


# -- photographs ----------------------------------------------------------------------------------


def test_photographs_are_an_image_folder_of_imagenets_sizes(tmp_path):
    photographs = module("photographs")
    sources = photographs.photographs(tmp_path / "no Debian packages")
    assert {"china", "flower"} <= sources.keys()
    words = photographs.make(tmp_path / "made", 12, sources=sources)
    assert words.startswith(f"{12 + len(sources)} JPEGs of {len(sources)} photographs")
    files = sorted((tmp_path / "made").rglob("*.jpg"))
    assert {path.parent.name for path in files} == set(sources)
    assert Counter(path.parts[-3] for path in files) == {"train": 12, "val": len(sources)}
    for path in files:
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.size in photographs.SIZES
    with pytest.raises(FileExistsError, match="made is not empty"):
        photographs.make(tmp_path / "made", 12, sources=sources)
    with pytest.raises(ValueError, match="--count 1 is less than one of each"):
        photographs.make(tmp_path / "other", 1, sources=sources)


def test_the_same_seed_makes_the_same_photographs_and_another_does_not(tmp_path):
    photographs = module("photographs")
    source = photographs.photographs(tmp_path)["china"]

    def made(name: str, split: str, seed: int) -> list[bytes]:
        task = photographs.PhotographTask(source, tmp_path / name / "china", split, 3, seed)
        photographs.write(task)
        return [path.read_bytes() for path in sorted(task.folder.iterdir())]

    first = made("first", "train", 0)
    assert made("again", "train", 0) == first
    assert len({*first, *made("val", "val", 0), *made("other", "train", 1)}) == 9


# -- the step -------------------------------------------------------------------------------------


def test_a_compiled_step_is_compared_with_timms_fastest_in_the_same_round():
    step = module("step")
    slow = (1.0, 2.0, 1.0)  # the machine is twice as slow in round 1: no ratio may show it
    seconds = {"timm": 4, "timm, compiled": 2, "ours": 3, "ours, compiled": 1}
    times = {
        (name, part): [each * factor for factor in slow]
        for name, each in seconds.items()
        for part in step.PARTS
    }
    rows = [row | {"variant": "tiny", "batch": 64} for row in step.rows_of(times, 64)]
    assert {row["contender"] for row in rows} == seconds.keys() - {"timm"}
    (ours,) = (r for r in rows if (r["contender"], r["part"]) == ("ours, compiled", "train"))
    assert (ours["lowest"], ours["ratio"], ours["highest"]) == (4, 4, 4)
    assert (ours["fastest_timm"], ours["ratio_to_fastest_timm"]) == ("timm, compiled", 2)
    assert (ours["images_per_second"], ours["timm_images_per_second"]) == (64, 16)
    assert step.ratio_to_timm(rows) == {"tiny": {"train": 2, "infer": 2}}
    eager = [row for row in rows if "compiled" not in row["contender"]]
    assert step.ratio_to_timm(eager)["tiny"]["train"] == pytest.approx(4 / 3)


def test_the_gpus_contenders_are_equal_and_take_steps(monkeypatch):
    """On a CPU, and without compiling, to save time."""
    step = module("step")
    monkeypatch.setattr(step, "compiled", lambda function: function)
    monkeypatch.setattr(compiler, "why_not", lambda device_type: "not in this test")
    cell = replace(step.CELLS["w8-d4"], batch=2)
    found = step.contenders(cell, "fp32", "cpu", has_compiled=True, has_aligned=True)
    usual = [f"{who}{how}" for who in ("timm", "ours") for how in ("", ", compiled")]
    last = [f"{who}, channels last{how}" for who in ("timm", "ours") for how in ("", ", compiled")]
    assert list(found) == [*usual, *last, "ours, aligned, compiled"]
    assert found["ours, channels last"].images.is_contiguous(memory_format=torch.channels_last)
    assert [one.is_compiled for one in found.values()] == [False, True] * 4 + [True]
    step.check_equal(found, cell, "fp32", "cpu")
    for name, one in found.items():
        before = one.model.stem.conv1.weight.detach().clone()
        one.train(), one.infer()
        assert not torch.equal(one.model.stem.conv1.weight, before), name


# -- the loaders ----------------------------------------------------------------------------------


def test_a_pattern_picks_cells_and_a_wrong_one_is_named():
    loader = module("loader")
    every = loader.cells() + loader.others()
    assert len({str(cell) for cell in every}) == len(every)
    assert {cell.loader for cell in every} == module("loader_peers").LOADERS.keys()
    assert [str(cell) for cell in loader.chosen("timm-crop-?,fast-crop-0")] == [
        "timm-crop-2", "timm-crop-1", "fast-crop-0",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="--cells tim names no cell"):
        loader.chosen("timm-crop-2,tim")


BURN = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()\n"


def test_cpu_time_is_of_children_that_run_and_that_have_ended():
    loader = module("loader")
    # A child that starts the one that works, and ends with it.
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])"
    before = loader.tree_cpu_seconds(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        running = loader.tree_cpu_seconds(os.getpid())
        child.stdin.close()
        child.wait()
    ended = loader.tree_cpu_seconds(os.getpid())
    assert running - before >= 0.35
    assert ended >= running


def row(cell: str, index: int, rate: float) -> dict[str, Any]:
    name, augment, workers = cell.rsplit("-", 2)
    return {
        "cell": cell, "loader": name, "augment": augment, "workers": int(workers), "round": index,
        "images_per_cpu_second": rate, "images_per_second": 2 * rate, "first_batch_seconds": 1.5,
    }  # fmt: skip


def test_ratios_are_taken_inside_a_round():
    loader = module("loader")
    # The machine is twice as slow in round 1: no ratio may show it.
    rows = [
        row(cell, index, rate / (1 + index % 2))
        for index in range(3)
        for cell, rate in (
            ("fast-randaugment-2", 500), ("exact-randaugment-1", 240),
            ("timm-randaugment-2", 100), ("timm-randaugment-1", 80), ("ray-crop-2", 70),
        )
    ]  # fmt: skip
    body = loader.ratio_to_timm(rows)
    assert (body["fast"], body["exact"]) == (5.0, 3.0)
    assert body["cells"]["fast-randaugment-2"] == {"median": 5.0, "least": 5.0, "largest": 5.0}
    assert "ray-crop-2" not in body["cells"]
    assert (
        "| fast | randaugment | 2 | 500 (250-500) | 5.00 (5.00-5.00) | 1000 | 1.5 |"
        in loader.table(rows)
    )
    assert "an assumption" in loader.estimate(rows, 0.25)
    assert "12,000 images/s (125 a vCPU)" in loader.estimate(rows, 0.25)
    assert loader.estimate(rows[-1:], 0.25) == ""


def test_a_sample_belongs_to_the_innermost_part():
    part = module("loader_profile").part

    def frame(*places: str) -> Any:
        """Of a stack of functions "FILE" or "FILE:NAME", the outermost first."""
        inner: Any = lambda: sys._getframe(1)  # noqa: E731
        for place in reversed(places):
            file, _, name = place.partition(":")
            names: dict[str, Any] = {"inner": inner}
            exec(compile(f"def {name or 'run'}(): return inner()", file, "exec"), names)
            inner = names[name or "run"]
        return inner()

    ours = "/any/mambaout/data/images/"
    assert part(frame(f"{ours}randaugment.py")) == ("RandAugment", "randaugment.py:run")
    assert part(frame(f"{ours}randaugment.py", f"{ours}resample.py"))[0] == "resample"
    assert part(frame(f"{ours}resample.py:move", f"{ours}resample.py"))[0] == (
        "RandAugment, geometry"
    )
    assert part(frame(f"{ours}decode.py", "/numpy/core.py")) == ("decode", "core.py:run")
    assert part(frame("/torch/data.py"))[0] == "rest"


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("webdataset") is None or find_spec("datasets") is None, reason="needs .[bench]"
)
def test_every_loader_but_rays_is_measured(tmp_path):
    loader = module("loader")
    # A process a cell takes seconds to import what it needs, and Ray's half a minute to start.
    names = [f"{name}-randaugment-2" for name in loader.LOADERS if name != "ray"]
    out = tmp_path / "rows.json"
    command = [
        sys.executable, str(BENCHMARKS / "loader.py"), "--cells", ",".join(names),
        "--rounds", "1", "--count", "80", "--cpu-seconds", "0", "--json", str(out),
        "--folder", str(tmp_path / "photographs"),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    body = json.loads(out.read_text())
    assert {r["cell"] for r in body["rows"]} == set(names)
    assert all(r["images"] > 0 and r["images_per_second"] > 0 for r in body["rows"])
    assert body["ratio_to_timm"].keys() == {"fast", "exact", "cells", "cells_to_timm_uint8"}
    assert str(tmp_path) not in json.dumps(body["machine"])


# -- the modes ------------------------------------------------------------------------------------


def test_the_modes_recipes_differ_in_their_pixels_alone():
    modes = module("augment_modes")
    for data in modes.POINTS:
        exact, fast = (flat_fields(modes.recipe(data, pixels, 4)) for pixels in modes.MODES)
        assert {name for name in exact if exact[name] != fast[name]} == {"pixels"}
        assert exact["randaugment"] == BASELINE.augment.randaugment


def test_the_difference_is_paired_by_seed_with_a_t_interval():
    modes = module("augment_modes")
    tops = {"exact": (80, 90, 70), "fast": (81, 92, 73)}
    rows = [
        {"pixels": pixels, "seed": seed, "top1": top}
        for pixels, values in tops.items()
        for seed, top in enumerate(values)
    ]
    found = modes.difference(rows, "top1")
    # 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of 2 degrees of freedom 4.303
    assert (found["mean"], found["n"]) == (2, 3)
    assert found["low"] == pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3)
    assert found["high"] == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)
    assert "low" not in modes.difference(rows[::3], "top1")


def test_small_pictures_are_enlarged_into_an_image_folder(tmp_path):
    modes = module("augment_modes")
    write_folder(tmp_path / "small")
    small = open_data(str(tmp_path / "small"), tmp_path / "cache")
    modes.enlarge(small, tmp_path / "tree", {"train": 30, "val": 10})
    files = sorted((tmp_path / "tree").rglob("*.jpg"))
    assert Counter(path.parts[-3] for path in files) == {"train": 30, "val": 10}
    labels = [*small.labels["train"][:30], *small.labels["val"]]
    assert Counter(path.parent.name for path in files) == Counter(map(str, labels))
    with Image.open(files[0]) as image:
        assert (image.size, image.mode) == ((112, 112), "RGB")
    with pytest.raises(ValueError, match="has 50 train images, not 51"):
        modes.enlarge(small, tmp_path / "more", {"train": 51})


# -- opening shards -------------------------------------------------------------------------------


def test_a_later_open_opens_no_shard_and_a_set_without_a_description_opens_all(tmp_path, capsys):
    open_shards = module("open_shards")
    assert (
        open_shards.main(["--shards", "4", "--times", "1", "--json", f"{tmp_path}/row.json"]) == 0
    )
    body = json.loads((tmp_path / "row.json").read_text())
    rows = {row["case"]: row for row in body["rows"]}
    assert [rows[case]["opens"] for case in ("without", "first", "later")] == [4, 4, 0]
    assert [rows[case]["row_groups"] for case in rows] == [3 * 4] * 3
    assert rows["later"]["bytes"] == 0
    assert "a later open takes" in capsys.readouterr().out


# -- start-up, and a study's overhead --------------------------------------------------------------


def test_a_phase_inside_another_is_counted_once():
    watch = module("startup").Stopwatch()
    inner = watch.timing(lambda: sum(range(100_000)), "inner")
    watch.timing(lambda: (inner(), inner()), "outer")()
    assert watch.seconds.keys() == {"start of Python", "outer", "inner"}
    spent = sum(cpu for cpu, _ in watch.seconds.values())
    assert spent == pytest.approx(watch._last[0])  # of the whole process, so far


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_time_of_a_childs_child_is_counted():
    times = module("study_overhead").ProcessTimes()
    times.start()
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    busy = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(1)"
    subprocess.run([sys.executable, "-c", code, busy], check=True)
    assert sum(times.stop().values()) >= 0.5


def test_no_two_rounds_of_a_study_share_a_recipe():
    rounds = [module("study_overhead").recipes(8, 2, index) for index in range(4)]
    assert len({recipe for each in rounds for recipe in each.values()}) == 32
    assert len({label for each in rounds for label in each}) == 32


# -- recomputation --------------------------------------------------------------------------------


def test_recomputed_stages_hold_less_and_change_no_bit():
    recompute = module("recompute")
    found = recompute.with_recompute(recompute.CELLS["w8-d4"], "fp32", "cpu")
    assert list(found) == [
        "timm", "timm, checkpointing", "ours", "ours, 1", "ours, 1,2", "ours, all",
    ]  # fmt: skip
    recompute.check_same_bits(found)
    kept = {name: recompute.of_an_image(one, recompute.kept_bytes) for name, one in found.items()}
    assert kept["timm"] > kept["ours"] > kept["ours, 1"] > kept["ours, 1,2"] > kept["ours, all"]
    assert kept["timm"] > 2 * kept["timm, checkpointing"]
    peak = recompute.of_an_image(found["ours"], lambda one: recompute.peak_bytes(one, "cpu"))
    assert peak >= kept["ours"]


# -- the selective scan ---------------------------------------------------------------------------


@needs_c
def test_the_forms_of_the_scan_agree_and_c_holds_least():
    scan = module("scan")
    options = Namespace(threads=[1], rounds=1, loop_length=64)
    before = torch.get_num_threads()
    rows = {row["form"]: row for row in scan.measured(8, 1, options)}
    torch.set_num_threads(before)
    assert list(rows) == ["C", "odd-even", "loop", "associative_scan"]
    assert min(rows, key=lambda name: rows[name]["peak_of_states"]) == "C"
    assert rows["C"]["cpu_time_to_c"]["median"] == 1
    assert scan.forms_for(4, 8, loop_length=64) == ["C", "odd-even"]


# -- searches -------------------------------------------------------------------------------------


def test_the_sampler_of_the_shape_search_finds_a_better_front_than_nsga2_in_as_many_trials():
    samplers, recipe = module("samplers"), runpy.run_path(str(RECIPE_SWEEP))
    _, shape = recipe["recipe"](start_of(60_000, 28)).searches
    assert shape.num_trials == samplers.LENGTHS[0]
    means = {
        name: statistics.fmean(samplers.searched(name, seed, shape.num_trials) for seed in range(8))
        for name in (shape.sampler, "nsga2")
    }
    assert means[shape.sampler] > means["nsga2"] + 1
