"""`mambaout doctor`: versions that do not fit, what the machine lacks, and that it trains."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import requires

import pytest
from places import ROOT

from mambaout.__main__ import main
from mambaout.errors import WrongRequest
from mambaout.train import doctor, versions
from mambaout.train.backend import Cpu
from mambaout.train.doctor import StepsReport, short_of_room, what_is_wrong
from mambaout.train.tpu_machine import device_files
from mambaout.train.versions import TOGETHER, doubts, misfits

FINE = StepsReport(
    images_per_second=100.0,
    warm_seconds=1.0,
    compilations=2,
    late_compilations=0,
    loss=6.9,
    peak_memory_bytes=None,
)


@pytest.fixture(autouse=True)
def enough_room(monkeypatch):
    """Whatever the machine of the tests has."""
    monkeypatch.setattr(doctor, "LEAST_SHARED", 0)
    monkeypatch.setattr(doctor, "LEAST_CACHE", 0)
    monkeypatch.setattr(doctor, "chips", list)


# -- versions -------------------------------------------------------------------------------------


def test_the_versions_that_go_together_are_those_that_the_extra_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {line.replace("[tpu]", "") for line in project["optional-dependencies"]["tpu"]}
    assert extra == {f"{name}=={version}" for name, version in TOGETHER.items()}
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert {f"{n.replace('_', '-')}=={v}" for n, v in TOGETHER.items()} <= set(pins)


def test_libtpu_is_the_one_that_torch_xla_itself_asks_for():
    asked = [line for line in requires("torch_xla") or [] if line.startswith("libtpu")]
    assert asked == [f'libtpu=={TOGETHER["libtpu"]}; extra == "tpu"']


@pytest.mark.parametrize(
    ("changed", "runtime", "said"),
    [
        ({}, "TPU", []),
        ({"torch": "2.9.0+cpu", "libtpu": None}, "CPU", []),
        ({"torch": "2.9.0+cpu"}, "TPU", []),
        ({"libtpu": None}, None, ["libtpu 0.0.21 is missing", "set PJRT_DEVICE=CPU"]),
        ({"torch": "2.11.0"}, "CPU", ["torch 2.11.0 does not go with torch_xla 2.9.0, 2.9.0 does"]),
        ({"torch_xla": None}, "TPU", ["torch_xla 2.9.0 is missing: pip install"]),
    ],
)
def test_what_does_not_go_together_is_named_with_what_to_install(changed, runtime, said):
    found = misfits({**TOGETHER, **changed}, runtime)
    assert len(found) == min(1, len(said))
    assert all(text in found[0] for text in said)
    assert all("pip install -c constraints.txt '.[tpu]'" in text for text in found)


def test_a_python_that_libtpu_has_no_package_for_is_named(monkeypatch):
    lacking = {**TOGETHER, "libtpu": None}
    monkeypatch.setattr(versions, "LIBTPU_PYTHON", (3, 10))
    assert "libtpu 0.0.21 needs Python 3.10 or older" in misfits(lacking, "TPU")[0]
    assert misfits(lacking, "CPU") == []


def test_versions_that_do_not_fit_are_refused_before_torch_xla_starts(monkeypatch, capsys):
    monkeypatch.setattr(versions, "installed", lambda: TOGETHER | {"torch": "2.11.0"})
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    with pytest.raises(WrongRequest, match=r"torch 2\.11\.0 does not go with"):
        versions.require(None)
    assert main(["doctor", "--backend", "xla"]) == 2
    assert "wrong     torch 2.11.0" in capsys.readouterr().out
    assert "torch_xla" not in sys.modules


def test_another_libtpu_is_warned_of_and_not_refused(monkeypatch, caplog):
    monkeypatch.setattr(versions, "installed", lambda: TOGETHER | {"libtpu": "0.0.36"})
    versions.require("TPU")
    (record,) = caplog.records
    assert "libtpu 0.0.36 is not the 0.0.21" in record.getMessage()
    assert "set MAMBAOUT_LIBTPU=0.0.36" in record.getMessage()
    caplog.clear()
    versions.require("CPU")
    assert not caplog.records


def test_another_libtpu_that_is_meant_is_not_warned_of(monkeypatch):
    other = TOGETHER | {"libtpu": "0.0.36"}
    monkeypatch.setenv("MAMBAOUT_LIBTPU", "0.0.36")
    assert doubts(other, "TPU") == misfits(other, "TPU") == []
    monkeypatch.setenv("MAMBAOUT_LIBTPU", "0.0.35")
    assert len(doubts(other, "TPU")) == 1


# -- the machine ----------------------------------------------------------------------------------


def test_a_cpu_is_described_and_trains(capsys):
    assert main(["doctor", "--backend", "cpu"]) == 0
    shown = capsys.readouterr().out
    for words in ("versions", "torch ", "cores", "/dev/shm", "data cache", "1 x ", "images/s"):
        assert words in shown
    for words in ("kernel", "locked memory", "ulimit -l"):
        assert words in shown
    assert shown.endswith("all well\n")


def test_a_tpu_that_does_not_start_is_shown_with_the_end_of_libtpu_s_log(
    monkeypatch, capsys, tmp_path
):
    def broken(*_) -> Cpu:
        raise RuntimeError("TPU initialization failed")

    (tmp_path / "tpu_driver.t1v.ubuntu.log.INFO.1").write_text("an older file\n")
    os.utime(tmp_path / "tpu_driver.t1v.ubuntu.log.INFO.1", (0, 0))
    lines = [f"line {number}" for number in range(100)]
    newest = tmp_path / "tpu_driver.t1v.ubuntu.log.INFO.2"
    newest.write_text("\n".join([*lines, "E0808 Couldn't mmap"]))
    monkeypatch.setenv("TPU_LOG_DIR", str(tmp_path))
    monkeypatch.setattr(versions, "installed", lambda: TOGETHER)
    monkeypatch.setattr(doctor, "backend", broken)
    assert main(["doctor", "--backend", "xla"]) == 2
    shown = capsys.readouterr().out
    assert str(newest) in shown
    assert "Couldn't mmap" in shown
    assert "line 99" in shown
    assert "line 9\n" not in shown
    assert "an older file" not in shown


def test_device_files_that_this_user_may_not_open_are_said(tmp_path, monkeypatch):
    for number in range(2):
        (tmp_path / f"accel{number}").touch()
    assert device_files(tmp_path) == [f"{tmp_path}/accel0", f"{tmp_path}/accel1"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert device_files(tmp_path)[0] == f"{tmp_path}/accel0 (may not be opened)"


def test_little_room_is_said_with_the_remedy(monkeypatch):
    monkeypatch.undo()
    shared, cache = short_of_room(64 * 2**20, 2**30)
    assert "0.06 GiB" in shared
    assert "--shm-size" in shared
    assert "MAMBAOUT_CACHE" in cache
    assert short_of_room(None, None) == short_of_room(2**33, 2**35) == []


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        (FINE, []),
        (replace(FINE, late_compilations=3), ["3 graphs were compiled after step 2"]),
        (replace(FINE, loss=math.nan), ["is nan"]),
    ],
)
def test_training_that_compiles_on_or_comes_to_nothing_is_wrong(tried, said):
    found = what_is_wrong(Cpu(), tried)
    assert len(found) == len(said)
    assert all(text in line for text, line in zip(said, found, strict=True))


def test_chips_that_nobody_uses_are_pointed_at(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "chips", lambda: ["/dev/accel0"])
    assert main(["doctor", "--backend", "cpu"]) == 1
    assert "/dev/accel0 is not used: --backend xla" in capsys.readouterr().out


def test_a_step_that_fails_is_said_and_not_a_traceback(monkeypatch, capsys):
    def broken(*_) -> StepsReport:
        raise RuntimeError("no such TPU")

    monkeypatch.setattr(doctor, "try_steps", broken)
    assert main(["doctor", "--backend", "cpu"]) == 2
    assert "no step of training: RuntimeError: no such TPU" in capsys.readouterr().out


@pytest.mark.slow
def test_four_virtual_devices_compile_two_graphs_and_no_more():
    environment = os.environ | {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "4",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "mambaout", "doctor", "--backend", "xla"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: /dev/shm of a container
    assert "4 x XLA on" in done.stdout
    assert "2 graphs compiled" in done.stdout
    assert "after step" not in done.stdout


# -- cluster files --------------------------------------------------------------------------------


def test_a_cluster_file_is_checked_alone_and_its_faults_are_the_status(tmp_path, capsys):
    right = ROOT / "cluster" / "gcp-tpu-v3-8.yaml"
    assert main(["doctor", "--cluster", str(right)]) == 0
    assert "no fault found" in capsys.readouterr().out
    wrong = tmp_path / "cluster.yaml"
    wrong.write_text(right.read_text().replace("acceleratorType: v3-8", "acceleratorType: v33-8"))
    assert main(["doctor", "--cluster", str(wrong)]) == 2
    assert "v33-8" in capsys.readouterr().out
    assert main(["doctor", "--cluster", str(tmp_path / "none.yaml")]) == 2


def test_a_cluster_file_is_held_against_the_quota(capsys):
    file = str(ROOT / "cluster" / "gcp-tpu-v3-8.yaml")
    assert main(["doctor", "--cluster", file, "--tpu-quota", "32"]) == 0
    assert main(["doctor", "--cluster", file, "--tpu-quota", "16"]) == 2
    assert "max_workers: 4 of 8 cores are 32, and the quota is 16; set at most 2" in (
        capsys.readouterr().out
    )
    slice_file = str(ROOT / "cluster" / "gcp-tpu-v3-32.yaml")
    assert main(["doctor", "--cluster", slice_file, "--tpu-quota", "31"]) == 2
    assert main(["doctor", "--tpu-quota", "16"]) == 2
    assert "give --cluster FILE too" in capsys.readouterr().err
