"""Promises of the files that are written whole or by lines: no kill and no power loss spoils them.

A kill during a write is a file cut off at some byte; a power loss leaves NULs as well.
"""

from __future__ import annotations

import ast
import json
import os
import threading
from pathlib import Path

import pytest

from mambaout import durable
from mambaout.durable import (
    DamagedLine,
    append_lines,
    leftovers,
    read_lines,
    read_whole,
    replacing,
    sync_lines,
    write_whole,
)

PACKAGE = Path(durable.__file__).parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced and renamed, in order."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        done.append(f"rename to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    return done


def fails_with_a_folder(path: Path) -> None:
    with replacing(path) as aside:
        aside.mkdir()
        (aside / "one").touch()
        raise KeyError


# -- whole ----------------------------------------------------------------------------------------


BODIES = ["grün\n", "grün\n".encode(), lambda file: file.write("grün\n".encode())]


@pytest.mark.parametrize("body", BODIES, ids=["text", "bytes", "writer"])
def test_a_file_is_written_from_text_bytes_or_a_writer(body, tmp_path):
    write_whole(tmp_path / "a", body)
    assert (tmp_path / "a").read_bytes() == "grün\n".encode()
    assert names(tmp_path) == ["a"]


def test_the_bytes_are_synced_before_the_name_and_the_name_after_it(tmp_path, syncs):
    write_whole(tmp_path / "a.json", "{}")
    aside, renamed, folder = syncs
    assert aside.startswith("sync .a.json.")
    assert (renamed, folder) == ("rename to a.json", f"sync {tmp_path.name}")


def test_a_folder_is_synced_with_all_that_is_in_it_before_it_has_its_name(tmp_path, syncs):
    with replacing(tmp_path / "packed") as aside:
        (aside / "deep").mkdir(parents=True)
        (aside / "deep" / "one").write_text("1")
        (aside / "two").write_text("2")
    renamed = syncs.index("rename to packed")
    assert {"sync one", "sync deep", "sync two", f"sync {aside.name}"} == set(syncs[:renamed])
    assert syncs[renamed + 1 :] == [f"sync {tmp_path.name}"]
    assert names(tmp_path) == ["packed"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    write_whole(tmp_path / "a", "old")

    def fails(file) -> None:
        file.write(b"half of the n")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_whole(tmp_path / "a", fails)
    with pytest.raises(KeyError):
        fails_with_a_folder(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_the_file_before_keeps_another_name_once_the_new_one_is_on_the_disk(tmp_path, syncs):
    write_whole(tmp_path / "last", "1")
    syncs.clear()
    with replacing(tmp_path / "last", keep=tmp_path / "previous") as aside:
        aside.write_text("2")
    assert [each for each in syncs if "rename" in each] == ["rename to previous", "rename to last"]
    assert syncs[0] == f"sync {aside.name}"
    assert [(tmp_path / name).read_text() for name in ("previous", "last")] == ["1", "2"]


def test_threads_that_write_one_file_at_once_leave_one_of_their_files(tmp_path):
    bodies = [str(number) * 10_000 for number in range(8)]
    together = threading.Barrier(len(bodies))

    def write(body: str) -> None:
        together.wait()
        for _ in range(5):
            write_whole(tmp_path / "a", body)

    threads = [threading.Thread(target=write, args=[body]) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in bodies
    assert names(tmp_path) == ["a"]


def test_what_a_killed_process_left_is_found_by_the_name_it_was_for(tmp_path):
    path = tmp_path / "a[1]*.ckpt"
    with replacing(path) as aside:
        aside.write_text("half")
        assert leftovers(path) == [aside]
        assert leftovers(tmp_path / "other") == []
        assert leftovers(tmp_path / "a1x.ckpt") == []


def test_a_file_that_a_power_loss_has_emptied_counts_as_not_there(tmp_path):
    path = tmp_path / "outcome.json"
    assert read_whole(path) is None
    for spoilt in (b"", b"\0" * 300, b'{"status": "fini' + b"\0" * 40):
        path.write_bytes(spoilt)
        assert read_whole(path) is None
    write_whole(path, "{}")
    assert read_whole(path) == "{}"


# -- by lines -------------------------------------------------------------------------------------

ROWS = [{"step": step, "text": "x" * step} for step in range(1, 6)]
LINES = [json.dumps(row) for row in ROWS]


def read(path: Path) -> list[dict]:
    return list(read_lines(path, json.loads))


@pytest.mark.parametrize("tail", [b"", b"\0" * 5000], ids=["cut", "NULs"])
def test_cut_at_any_byte_the_whole_lines_are_read_and_the_next_is_not_glued_on(tmp_path, tail):
    path = tmp_path / "lines.jsonl"
    append_lines(path, LINES)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut] + tail)
        kept = ROWS[: whole[:cut].count(b"\n")]
        assert read(path) == kept
        append_lines(path, ['{"step": 9}', '{"step": 10}'])
        assert read(path) == [*kept, {"step": 9}, {"step": 10}]


def test_a_cut_line_longer_than_a_block_is_dropped_too(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_lines(path, LINES)
    with path.open("ab") as file:
        file.write(b"y" * 200_000)
    append_lines(path, ["{}"])
    assert read(path) == [*ROWS, {}]


def test_nuls_before_a_line_that_an_earlier_version_added_are_no_damage(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"{}\n" + b"\0" * 4000 + b'{"step": 2}\n')
    assert read(path) == [{}, {"step": 2}]


def test_a_damaged_line_is_named_and_those_before_it_are_read(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_lines(path, [*LINES[:2], '{"step": 3, {"step": 3}', *LINES[2:]])
    found = read_lines(path, json.loads)
    assert [next(found), next(found)] == ROWS[:2]
    with pytest.raises(DamagedLine, match=rf"{path} cannot be read: line 3 is damaged"):
        next(found)


def test_only_the_files_own_line_ends_end_a_line(tmp_path):
    path = tmp_path / "lines.txt"
    append_lines(path, ["a\u2028b\x85c\x0bd", "e"])
    assert list(read_lines(path, str)) == ["a\u2028b\x85c\x0bd", "e"]


def test_writers_that_append_at_once_lose_and_glue_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"

    def append(first: int) -> None:
        for number in range(first, first + 50):
            append_lines(path, [json.dumps({"step": number, "text": "z" * 5000})])

    threads = [threading.Thread(target=append, args=[100 * number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted(row["step"] for row in read(path))
    assert found == [100 * thread + number for thread in range(4) for number in range(50)]


def test_lines_are_synced_where_that_is_asked_for(tmp_path, syncs):
    path = tmp_path / "lines.jsonl"
    append_lines(path, LINES)
    assert syncs == []
    sync_lines(path)
    assert syncs == ["sync lines.jsonl", f"sync {tmp_path.name}"]
    syncs.clear()
    append_lines(path, LINES, sync=True)
    append_lines(tmp_path / "new.jsonl", LINES, sync=True)
    assert syncs == ["sync lines.jsonl", "sync new.jsonl", f"sync {tmp_path.name}"]


# -- the whole package ----------------------------------------------------------------------------

MAY_OPEN_TO_WRITE = {
    "durable.py",
    "launch/lock.py",  # who holds the lock: of no use to anyone once that process is gone
    "cache.py",  # a lock's file, which holds nothing
    "data/packing/stage.py",  # piece by piece, inside `replacing`
    "train/checkpoint.py",  # torch.save, inside `replacing`
}
FILLS_A_FOLDER = {"dense/shapes.py"}  # inside `replacing`, which syncs all of it


def writes(tree: ast.AST) -> list[str]:
    """The calls that make, fill or rename a file by hand."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        owner = called.value if isinstance(called, ast.Attribute) else None
        of_os = isinstance(owner, ast.Name) and owner.id == "os"
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        mode = [text for text in texts if isinstance(text, str) and set(text) <= set("wabx+rt")]
        if name in ("write_text", "write_bytes", "fsync") or (of_os and name == "replace"):
            found.append(name)
        elif name == "replace" and len(node.args) == 1 and not node.keywords:
            found.append(name)  # of a path; of a text it takes two, dataclasses' has keywords
        elif name == "open" and any(set(text) & set("wax") for text in mode):
            found.append(f"open {mode}")
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_every_writer_of_the_package_is_one_of_these(path):
    if str(path.relative_to(PACKAGE)) in FILLS_A_FOLDER:
        return
    found = writes(ast.parse(path.read_text()))
    if str(path.relative_to(PACKAGE)) in MAY_OPEN_TO_WRITE:
        found = [] if path.name == "durable.py" else [f for f in found if not f.startswith("open")]
    assert found == []
