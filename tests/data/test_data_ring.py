"""The ring of batches: same ones from any workers, no copy, and nothing left however it ends."""

from __future__ import annotations

import contextlib
import gc
import itertools
import mmap
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from places import TESTS
from ring_makers import Begun, Counting, Failing, Naming, NotOpening, WithTable

from mambaout.data.batches.ring import SPARE_SLOTS, FilledBatch, made_in_order
from mambaout.data.shards.files import DataError


@pytest.fixture(scope="module", autouse=True)
def own_server():
    """The server forks from what it was told to import first: other tests want other modules."""
    yield
    gc.collect()
    # The types leave out what begins with an underscore, and nothing public stops the server.
    multiprocessing.forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]


def same(a: FilledBatch, b: FilledBatch) -> bool:
    arrays = np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
    return arrays and a.num_valid == b.num_valid and sorted(a.notes) == sorted(b.notes)


def become_true(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ")[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def gone(processes: set[int]) -> bool:
    """Whether they have ended. A zombie has: its parent, the server, ended before it asked."""
    return all(state(process) in ("gone", "Z") for process in processes)


def address(made: FilledBatch) -> int:
    return made.images.ctypes.data


# -- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_any_number_of_workers_gives_the_batches_of_none(num_workers):
    keys = [5, 3, 8, 8, 0, *range(100, 115)]
    alone = list(made_in_order(Counting(), keys, 0))
    helped = list(made_in_order(Counting(), keys, num_workers))
    assert len(alone) == len(helped) == len(keys)
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert any(made.notes for made in alone)


def test_memory_comes_from_an_unlinked_file_where_the_system_has_no_nameless_one(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    alone = made_in_order(Counting(), range(8), 0)
    assert all(same(next(alone), made) for made in made_in_order(Counting(), range(8), 2))


def test_endless_keys_are_taken_only_as_batches_are_asked_for(tmp_path):
    taken = []
    keys = (taken.append(key) or key for key in itertools.count())
    maker = Begun(file=tmp_path / "begun")
    with contextlib.closing(made_in_order(maker, keys, 2, look_ahead=3)) as batches:
        for asked in range(4):
            assert become_true(lambda: maker.file.exists())
            assert become_true(lambda now=asked: maker.file.stat().st_size == now + 3)
            assert len(taken) == asked + 3
            next(batches)


def test_without_workers_a_batch_is_made_when_it_is_asked_for(tmp_path):
    maker = Begun(file=tmp_path / "begun")
    batches = made_in_order(maker, itertools.count(), 0)
    assert not maker.file.exists()
    next(batches)
    assert maker.file.stat().st_size == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_finite_keys_end(num_workers):
    assert list(made_in_order(Counting(), [], num_workers)) == []
    batches = made_in_order(Counting(), [7], num_workers)
    assert next(batches).labels[1] == 7001
    with pytest.raises(StopIteration):
        next(batches)


def test_nothing_to_make_ahead_is_refused():
    with pytest.raises(ValueError, match="look_ahead=0"):
        made_in_order(Counting(), range(3), 2, look_ahead=0)


def test_workers_share_the_arrays_of_their_maker_but_not_what_they_write_to_them():
    labels = [made.labels for made in made_in_order(WithTable(), range(4), 3)]
    for key, label in enumerate(labels):
        assert label[:3].tolist() == [1000 * (key + 1)] * 3


# -- memory --------------------------------------------------------------------------------------


def test_batches_are_the_workers_own_memory_and_few_slots_serve_many():
    seen = set()
    for made in made_in_order(Counting(), range(40), 2):
        assert isinstance(made.images.base, mmap.mmap)
        assert made.images.flags.c_contiguous
        assert made.images.flags.writeable
        seen.add(address(made))
    assert len(seen) <= 4  # two ahead, one here, and the one before it until its name is taken over


def test_a_slot_is_filled_again_only_when_no_view_of_it_is_left():
    with contextlib.closing(made_in_order(Counting(), itertools.count(), 2)) as batches:
        first = next(batches)
        home, row = address(first), torch.from_numpy(first.images)[3, 1:].transpose(0, 1)
        del first
        gc.collect()
        assert home not in {address(made) for made in itertools.islice(batches, 20)}
        assert torch.all(row == 3)
        del row
        assert home in {address(made) for made in itertools.islice(batches, 20)}


def test_batches_that_are_all_kept_are_all_different():
    kept = list(itertools.islice(made_in_order(Counting(), itertools.count(), 2), 50))
    alone = made_in_order(Counting(), range(50), 0)
    assert all(same(a, b) for a, b in zip(kept, alone, strict=True))
    own = sum(isinstance(made.images.base, mmap.mmap) for made in kept)
    assert own == SPARE_SLOTS  # the others are copies


def test_batches_outlive_their_ring():
    batches = made_in_order(Counting(), itertools.count(), 2)
    kept = list(itertools.islice(batches, 3))
    batches.close()
    del batches
    gc.collect()
    alone = made_in_order(Counting(), range(3), 0)
    assert all(same(a, b) for a, b in zip(kept, alone, strict=True))
    kept[0].images[:] = 1


def test_rings_that_come_and_go_leave_no_file_open():
    next(made_in_order(Counting(), range(3), 2))  # starts the server, which stays
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        next(made_in_order(Counting(), range(3), 2))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# -- what goes wrong -----------------------------------------------------------------------------


def ends_with(
    how: str, error: type[Exception], match: str, num_workers: int = 2
) -> pytest.ExceptionInfo:
    batches = made_in_order(Failing(how=how), itertools.count(), num_workers)
    for key in range(3):
        assert next(batches).labels[1] == 1000 * key + 1
    with pytest.raises(error, match=match) as caught:
        next(batches)
    assert next(batches, None) is None  # it is over
    return caught


def test_what_a_worker_raises_comes_at_its_batch_with_its_type_and_its_place():
    caught = ends_with("DataError", DataError, "shard-3.parquet is damaged")
    assert str(caught.value) == "shard-3.parquet is damaged"
    [note] = caught.value.__notes__
    assert note.startswith("in data worker 1 of 2, batch 3:")
    assert "ring_makers.py" in note


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("two arguments", "^TwoArguments: shard-3: gone"),
        ("local", "^LocalError: shard-3 is far"),
        ("stop", "raised StopIteration"),  # which would end the consumer's loop in silence
    ],
)
def test_what_cannot_be_raised_here_comes_as_its_text(how, text):
    ends_with(how, RuntimeError, text)


def test_an_error_while_opening_comes_with_the_first_batch():
    for num_workers in (0, 2):
        batches = made_in_order(NotOpening(), range(3), num_workers)
        with pytest.raises(DataError, match="no shards here"):
            next(batches)


@pytest.mark.parametrize(
    ("how", "told"), [("kill", r"was killed by signal 9 \(Killed\)"), ("exit", "exit code 3")]
)
def test_a_worker_that_dies_is_named_at_the_batch_it_owes(how, told):
    ends_with(how, RuntimeError, rf"data worker 1 of 2 \(process \d+\) .*{told}.* batch 3;.*memory")


def test_a_worker_killed_while_it_waits_is_named():
    batches = made_in_order(Naming(), itertools.count(), 2)
    worker = int(next(batches).labels[0])
    assert become_true(lambda: state(worker) == "S")
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=rf"data worker 0 of 2 \(process {worker}\) was killed"):
        for _ in batches:
            pass


def test_a_maker_that_cannot_be_pickled_or_imported_is_refused_at_once(monkeypatch):
    maker = Counting()
    maker.open = lambda: None
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        made_in_order(maker, range(3), 2)
    monkeypatch.setattr(Counting, "__module__", "__main__")
    with pytest.raises(ValueError, match="Counting is defined in a script"):
        made_in_order(Counting(), range(3), 2)


# -- the end -------------------------------------------------------------------------------------


def exhausted(batches: Generator[FilledBatch, None, None]) -> None:
    for _ in batches:
        pass


def closed(batches: Generator[FilledBatch, None, None]) -> None:
    batches.close()


def interrupted(batches: Generator[FilledBatch, None, None]) -> None:
    with contextlib.suppress(ZeroDivisionError):
        for _ in batches:
            raise ZeroDivisionError


@pytest.mark.parametrize("end", [exhausted, closed, interrupted])
def test_workers_end_with_their_consumer(end):
    batches = made_in_order(Naming(), range(6), 2)
    workers = {int(label) for label in next(batches).labels}
    assert len(workers) == 2
    assert not gone(workers)
    end(batches)
    del batches
    gc.collect()
    assert become_true(lambda: gone(workers))


def test_closing_waits_for_no_fill():
    batches = made_in_order(Naming(slow_from=1), itertools.count(), 2)
    workers = {int(label) for label in next(batches).labels}
    batches.close()  # the fills would take ten minutes
    assert become_true(lambda: gone(workers))


def test_a_ring_that_nobody_asked_for_a_batch_ends():
    before = set(multiprocessing.active_children())
    batches = made_in_order(Counting(), itertools.count(), 2)
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    workers = {process.pid for process in started}
    del started, batches
    gc.collect()
    assert become_true(lambda: gone({pid for pid in workers if pid is not None}))


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from mambaout.data.batches.ring import made_in_order
from ring_makers import Naming

print("begun", flush=True)
maker = Naming(slow_from={slow_from}, begun=Path("begun"))
batches = made_in_order(maker, range(100), 2)
workers = {{int(label) for label in next(batches).labels}}
print(*workers, flush=True)
{then}
"""


def run(then: str, folder: Path, *, how: str = "file", slow_from: int = 1000):
    """The run of a script without an `if __name__ == "__main__"`, and the workers it had.

    It returns only when nobody is left that holds the script's output: no worker and no server.
    """
    text = SCRIPT.format(then=then, slow_from=slow_from)
    script = folder / "script.py"
    script.write_text(text)
    command = {"file": [str(script)], "-c": ["-c", text], "-m": ["-m", "script"], "stdin": ["-"]}
    paths = [str(TESTS), str(folder), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *command[how]],
        input=text if how == "stdin" else "",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=120,
        start_new_session=True,
    )
    begun, workers, *rest = done.stdout.splitlines()
    assert begun == "begun", done.stderr
    processes = {int(worker) for worker in workers.split()}
    assert len(processes) == 2
    assert gone(processes)
    return done, rest


@pytest.mark.parametrize("how", ["file", "-c", "-m", "stdin"])
def test_a_script_is_run_once_and_its_workers_import_no_torch(tmp_path, how):
    then = "print(len([1 for made in batches]), 'torch' in sys.modules)"
    done, rest = run(then, tmp_path, how=how)
    assert (done.returncode, done.stderr) == (0, "")
    assert rest == ["99 False"]


def test_a_script_that_just_ends_leaves_nothing(tmp_path):
    done, _ = run("", tmp_path, slow_from=1)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("slow_from", "num_begun"), [(1, 2), (1000, 3)], ids=["filling", "waiting"]
)
def test_a_killed_consumer_leaves_nothing(tmp_path, slow_from, num_begun):
    # Two workers have filled batch 0. They stay in batch 1, or make the two batches ahead and wait.
    then = (
        f"while os.path.getsize('begun') < 2 * {num_begun}:\n"
        "    time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done, _ = run(then, tmp_path, slow_from=slow_from)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")


@pytest.mark.parametrize("slow_from", [1, 1000], ids=["waiting for a batch", "between batches"])
def test_ctrl_c_ends_all_with_one_traceback(tmp_path, slow_from):
    # The terminal sends it to everyone. A shell's background job would ignore it: not this one.
    then = (
        "import threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "between = threading.Event()\n"
        "def interrupt():\n"
        "    while not (between.is_set() or waits_for_a_batch()):\n"
        "        time.sleep(0.01)\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "def waits_for_a_batch():\n"
        "    frame = sys._current_frames()[threading.main_thread().ident]\n"
        "    while frame is not None and frame.f_code.co_name != '_reply':\n"
        "        frame = frame.f_back\n"
        "    return frame is not None\n"
        "threading.Thread(target=interrupt).start()\n"
        "next(batches)\n"
        "between.set()\n"
        "time.sleep(60)"
    )
    done, _ = run(then, tmp_path, slow_from=slow_from)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("KeyboardInterrupt\n")
