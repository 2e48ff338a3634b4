"""Finds the weights that a user names: a file, a run's folder, or STUDY/TRIAL."""

from __future__ import annotations

import difflib
import glob
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mambaout.data.shards.column_options import GivenColumns
from mambaout.durable import read_whole
from mambaout.errors import WrongRequest
from mambaout.study.study import CHECKPOINT_FILE, OUTCOME_FILE, STUDY_FILE, Run, StudyFolder, Trial

# Files that are looked for in a folder, in this order: a run's checkpoint, then Hugging Face's two
# files.
FILES = (CHECKPOINT_FILE, "model.safetensors", "pytorch_model.bin")
NEEDED = ("name", "question")  # fields of study.json in every version
_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt", ".bin", ".tar")


@dataclass(frozen=True, kw_only=True)
class NamedWeights:
    """A file of weights, and what its folder says about it."""

    path: Path
    data: str | None = None  # the value of --data; None if no file has it
    columns: GivenColumns = field(default_factory=GivenColumns)  # how the data were read
    is_unfinished: bool = False  # the weights are of a run that has not ended


def named_weights(text: str, storage: Path) -> NamedWeights:
    """The file that `text` means. If there is none, a ValueError lists what exists."""
    path = Path(text)
    if os.path.isfile(path):
        return _in_folder(path.parent, path) if path.name in FILES else NamedWeights(path=path)
    if os.path.isdir(path) and not (path / STUDY_FILE).exists():
        return _in_folder(path, _file_in(path))
    folder, name = _study_and_trial(path, storage)
    trial = _trial(folder, name)
    directory = folder.run_directory(trial)
    if not (directory / CHECKPOINT_FILE).exists():
        raise WrongRequest(
            f"{text} is {folder.run(trial).status} and has no checkpoint in {directory}"
        )
    return _in_folder(directory, directory / CHECKPOINT_FILE)


def study_folder(storage: Path, name: str) -> StudyFolder:
    """The folder of the study `name`. If there is none, a ValueError lists all studies."""
    folder = StudyFolder(storage, name)
    if not os.path.isfile(folder.path / STUDY_FILE):
        known = [folder.path.name for folder in studies(storage)]
        there_are = f"there are: {', '.join(known)}" if known else "that folder has no study"
        raise WrongRequest(f"no study {name!r} under {storage}{_near(name, known)}; {there_are}")
    return folder


def studies(storage: Path) -> list[StudyFolder]:
    """Every study under `storage`, by name."""
    # Path.glob raises an error for a name that is too long and for an unreadable folder.
    files = sorted(glob.glob(f"*/{STUDY_FILE}", root_dir=storage))
    return [StudyFolder(storage, os.path.dirname(file)) for file in files]


@contextmanager
def named_errors(folder: StudyFolder) -> Iterator[None]:
    """Turn errors in reading the study's files into a WrongRequest that names the file.

    The file may be damaged, of another version, or another user's. Put only the reading into the
    context, so that a bug is not reported as a faulty file.
    """
    try:
        yield
    except WrongRequest as error:
        if str(error).startswith(str(folder.path)):  # the message already names the file
            raise
        raise WrongRequest(f"{folder.path} cannot be read: {error}") from error
    except OSError as error:
        raise WrongRequest(
            f"{error.filename or folder.path} cannot be read ({error.strerror or error})"
        ) from error


def read_study(folder: StudyFolder) -> tuple[dict[str, Any], list[Run]]:
    """The content of study.json, and every trial's run. A WrongRequest names a damaged file."""
    with named_errors(folder):
        study, runs = folder.read(), folder.runs()
    lacking = [name for name in NEEDED if name not in study] if isinstance(study, dict) else NEEDED
    if lacking:
        raise WrongRequest(
            f"{folder.path / STUDY_FILE} cannot be read: it lacks {', '.join(lacking)}; put it "
            "back from a copy, or run the study's command again"
        )
    return study, runs


def _in_folder(folder: Path, path: Path) -> NamedWeights:
    """The weights at `path`, with the facts in the folders of the run and its study."""
    data, columns, outcome = None, GivenColumns(), folder / OUTCOME_FILE
    study = folder.resolve().parent.parent / STUDY_FILE
    if study.is_file():
        said = _json(study)
        data, columns = said.get("data"), said.get("columns") or columns
    elif outcome.is_file():
        from mambaout.data.packing.named_sets import NAMED

        name = _json(outcome).get("facts", {}).get("data_name")
        data = name if name in NAMED else None  # for a folder, only the name is kept
    is_run = (folder / "recipe.json").exists()
    return NamedWeights(
        path=path, data=data, columns=columns, is_unfinished=is_run and not outcome.exists()
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_whole(path) or "{}")
    except ValueError as error:
        raise WrongRequest(f"{path} is no JSON: {error}") from error
    except OSError as error:
        raise WrongRequest(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(found, dict):
        raise WrongRequest(f"{path} holds no JSON object")
    return found


def _file_in(folder: Path) -> Path:
    for name in FILES:
        if os.path.isfile(folder / name):
            return folder / name
    try:
        others = sorted(name for name in os.listdir(folder) if name.endswith(_SUFFIXES))
    except OSError as error:
        raise WrongRequest(f"{folder} cannot be listed ({error.strerror})") from error
    there = f"; name one of {', '.join(others[:5])}" if others else ""
    raise WrongRequest(f"{folder} holds no {', '.join(FILES[:-1])} or {FILES[-1]}{there}")


def _study_and_trial(path: Path, storage: Path) -> tuple[StudyFolder, str]:
    """The study's folder, under `storage` or as a full path, and the trial's name."""
    for study in (path, Path(storage) / path):
        if os.path.isfile(study / STUDY_FILE):
            raise WrongRequest(
                f"{path} is a study; name one of its trials, like {path}/NAME: "
                f"`mambaout list {study.name} --storage {study.parent}` lists them"
            )
    for study in (Path(storage) / path.parent, path.parent):
        if path.parent.name and os.path.isfile(study / STUDY_FILE):
            return StudyFolder(study.parent, study.name), path.name
    if len(path.parts) == 2:
        try:
            return study_folder(storage, path.parts[0]), path.name
        except WrongRequest as error:
            raise WrongRequest(f"{path} is not there, and there is {error}") from None
    raise WrongRequest(f"{path} is not there; give a file, a run's folder, or STUDY/TRIAL")


def _trial(folder: StudyFolder, name: str) -> Trial:
    with named_errors(folder):
        trials = folder.trials()
    found = {trial.key: trial for trial in trials if name in (trial.name, trial.key)}
    found = found or {trial.key: trial for trial in trials if name == trial.label}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        names = [trial.name for trial in found.values()]
        several = ", ".join(names if len(set(names)) == len(names) else found)
        raise WrongRequest(f"{folder.path.name} has {len(found)} trials {name!r}: {several}")
    known = list(dict.fromkeys(trial.name for trial in trials))
    raise WrongRequest(
        f"{folder.path.name} has no trial {name!r}{_near(name, known)}; "
        f"`mambaout list {folder.path.name} --storage {folder.path.parent}` lists its {len(known)}"
    )


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
