"""The sweeps, found by listing their folder, and data of every size to build them for."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from typing import Any

from places import ROOT
from starts import start_of

from mambaout.study.start import Start, check_given
from mambaout.study.study import Study

_ALL: dict[str, Callable[..., Study]] = {
    path.stem: runpy.run_path(str(path))[path.stem]
    for path in sorted((ROOT / "sweeps").glob("*.py"))
}
DENSE = {name: _ALL[name] for name in ("detect", "segment")}  # they start from a DenseStart
FUNCTIONS = {name: function for name, function in _ALL.items() if name not in DENSE}
# What a sweep must be asked where it has no question of its own.
ASKED: dict[str, dict[str, Any]] = {"mine": {"shapes": ["thin=1,1,1,1/8,16,24,32", "femto"]}}
DATA = {
    "two hundred images": (150, 375),
    "digits of 8 px": (1432, 8),
    "garments": (60_000, 28),
    "photographs": (750, 375),
    "hundred thousand of 96 px": (100_000, 96),
    "ImageNet": (1_281_167, 375),
    "fourteen million": (14_000_000, 4000),
}


def start_on(data: str, **more: Any) -> Start:
    return start_of(*DATA[data], **more)


def built(name: str, start: Start, **own: Any) -> Study:
    """The study of a script, as a launch builds it."""
    study = FUNCTIONS[name](start, **(own or ASKED.get(name, {})))
    check_given(study, start)
    return study
