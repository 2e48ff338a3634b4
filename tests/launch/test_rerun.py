"""`--rerun`: begun once, safe to be killed in, and gone on with until the study is over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT, TESTS
from study_files import DATA, finish, sized, start, write_study

from mambaout.launch.progress import Job
from mambaout.launch.request import Request
from mambaout.launch.rerun import RERUN_FILE, Rerun
from mambaout.launch.tune import run_study
from mambaout.study.store_uri import TrackingError
from mambaout.study.study import Study, StudyFolder
from mambaout.study.tracking.store import default_tracking_uri

# MLflow 3.17 calls what SQLAlchemy 2.1 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

STUDY = Study(
    name="scale", question="?", recipes={f"w{width}": sized(width, 2) for width in (8, 16, 32)}
)


def request_in(storage: Path, *, rerun: bool = True) -> Request:
    return Request(
        study=STUDY,
        trials=STUDY.trials(DATA),
        job=lambda trial: Job(trial=trial, num_steps=400, train_macs=1),
        num_images=lambda split, recipe: 1000,
        fingerprint=DATA,
        data="digits",
        data_name="digits",
        storage=storage,
        name="scale",
        tracking_uri=default_tracking_uri(storage),
        accelerator="cpu",
        rerun=rerun,
    )


@pytest.fixture
def folder(empty_store, tmp_path) -> StudyFolder:
    """A study whose three trials have finished."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    found = write_study(tmp_path, STUDY)
    for trial in found.trials():
        finish(found, trial)
    return found


def statuses(folder: StudyFolder) -> list[str]:
    return [run.status for run in folder.runs()]


def test_a_rerun_is_begun_once_and_gone_on_with_until_the_study_is_over(folder, tmp_path, capsys):
    again, plain = request_in(tmp_path), request_in(tmp_path, rerun=False)
    assert not Rerun(folder).begin(plain), "no rerun without the word"
    assert Rerun(folder).begin(again)
    Rerun(folder).confirm()
    assert statuses(folder) == ["unfinished"] * 3
    first, *_ = folder.trials()
    finish(folder, first)
    capsys.readouterr()
    for request in (again, plain):
        assert not Rerun(folder).begin(request)
        assert statuses(folder) == ["finished", "unfinished", "unfinished"]
        assert "goes on with" in capsys.readouterr().out
    assert len(list((folder.path / "aside").iterdir())) == 1
    Rerun(folder).end()
    assert Rerun(folder).begin(again), "after the end the word begins another one"
    assert statuses(folder) == ["unfinished"] * 3


def test_the_message_of_a_second_rerun_says_how_to_begin_another(folder, tmp_path, capsys):
    again = request_in(tmp_path)
    Rerun(folder).begin(again)
    Rerun(folder).confirm()
    start(folder, folder.trials()[0])
    capsys.readouterr()
    assert not Rerun(folder).begin(again)
    assert f"remove {folder.path / RERUN_FILE} first" in capsys.readouterr().out
    (folder.path / RERUN_FILE).unlink()
    assert Rerun(folder).begin(again)
    assert not folder.run_directory(folder.trials()[0]).exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_rerun import request_in
from mambaout.launch.rerun import Rerun
from mambaout.study.study import StudyFolder
from mambaout.study.tracking.tracker import Tracker

storage, moment = Path(sys.argv[2]), sys.argv[3]
rename, left = Path.rename, int(sys.argv[4])

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def counted(path, to):
    global left
    left -= 1
    if left < 0:
        kill()
    return rename(path, to)

if moment == "tracking":
    Tracker.set_aside = kill
else:
    Path.rename = counted
Rerun(StudyFolder(storage, "scale")).begin(request_in(storage))
"""


@pytest.mark.parametrize(("moment", "moved"), [("tracking", 0), ("moving", 0), ("moving", 2)])
def test_a_kill_while_a_study_is_set_aside_is_made_good_by_the_next_launch(
    moment, moved, folder, tmp_path
):
    paths = os.pathsep.join(map(str, (TESTS, Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, paths, str(tmp_path), moment, str(moved)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert statuses(folder).count("finished") == 3 - moved
    # Without the word, too: it has been said, and part of the study is set aside already.
    assert Rerun(folder).begin(request_in(tmp_path, rerun=False))
    assert statuses(folder) == ["unfinished"] * 3
    kept = {path.parent.name for path in folder.path.glob("aside/*/*/outcome.json")}
    assert kept == {trial.key for trial in folder.trials()}


def test_a_rerun_that_tracking_refuses_is_not_begun(folder, tmp_path):
    (tmp_path / "mlflow.db").write_text("no database")
    with pytest.raises(TrackingError):
        Rerun(folder).begin(request_in(tmp_path))
    assert not Rerun(folder).is_under_way
    assert statuses(folder) == ["finished"] * 3


def test_a_damaged_note_of_a_rerun_is_named_with_the_remedy(folder, tmp_path):
    (folder.path / RERUN_FILE).write_text("{")
    with pytest.raises(ValueError, match=rf"{RERUN_FILE} cannot be read .* remove it to go on"):
        run_study(request_in(tmp_path, rerun=False))
    assert statuses(folder) == ["finished"] * 3


def test_a_study_that_is_over_ends_its_rerun_and_starts_nothing(folder, tmp_path):
    Rerun(folder).begin(request_in(tmp_path))
    Rerun(folder).confirm()
    for trial in folder.trials():
        finish(folder, trial)
    assert run_study(request_in(tmp_path)) == 0
    assert not Rerun(folder).is_under_way
    assert statuses(folder) == ["finished"] * 3
    assert len(list((folder.path / "aside").iterdir())) == 1


def test_a_rerun_takes_nothing_over_from_other_studies_in_the_launches_that_go_on(
    folder, tmp_path, monkeypatch
):
    from mambaout.launch import tune

    other = write_study(tmp_path, replace(STUDY, name="other"))
    for trial in other.trials():
        finish(other, trial)
    Rerun(folder).begin(request_in(tmp_path))
    Rerun(folder).confirm()

    class Planned(Exception):
        pass

    def planned(self: object, cleanup: object) -> int:
        raise Planned

    monkeypatch.setattr(tune._Launch, "run", planned)  # all but Ray
    for rerun in (True, False):
        with pytest.raises(Planned):
            run_study(request_in(tmp_path, rerun=rerun))
        assert statuses(folder) == ["unfinished"] * 3
    Rerun(folder).end()
    with pytest.raises(Planned):
        run_study(request_in(tmp_path, rerun=False))
    assert statuses(folder) == ["finished"] * 3
