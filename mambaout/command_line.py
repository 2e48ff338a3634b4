"""The command-line parts that `mambaout` and the sweeps share: one-line errors, a folder check."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mambaout.errors import WrongRequest
from mambaout.fields import MOST_COUNT, Bound

WRONG = 2  # exit status of a wrong request: nothing has been started

TIMM_NAMES = {  # options of timm's train.py that have a quite different name here
    "--aa": "--randaugment",
    "--batch-size": "--global-batch",
    "--data-dir": "--data",
    "--finetune": "--init",
    "--img-size": "--image-size",
    "--initial-checkpoint": "--init",
    "--lr": "--peak-lr",
    "--min-lr": "--final-lr",
    "--output": "--out",
    "--pretrained": "--init",
    "--pretrained-path": "--init",
    "--reprob": "--erasing",
    "--smoothing": "--label-smoothing",
    "--wd": "--weight-decay",
}
COMPILE_HELP = "compile the step with torch.compile, or not (default: on a GPU); not for XLA"
NOT_ON_XLA = (
    "--compile and --no-compile are for a CPU and a GPU; XLA always compiles, with a compiler of "
    "its own, so leave the option out"
)
TF32_ELSEWHERE = (
    "precision=tf32 is for NVIDIA GPUs from compute capability 8.0 on; give --precision fp32, or "
    "bf16"
)


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage text before it.

    Options cannot be shortened. Every field of a recipe is an option, so a short form that is
    clear today could mean two options after a new field is added.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message}; --help lists the options\n")

    # argparse's own method takes a namespace of any class; no caller here passes one.
    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else args
        found, left = super().parse_known_args(self._with_negative_values(words), namespace)
        if left and left[0].startswith("-"):
            self.error(f"there is no option {left[0]}{self._hint(left[0].partition('=')[0])}")
        return found, left

    def _with_negative_values(self, words: Sequence[str]) -> list[str]:
        """The words, with `--option -1e-3` rewritten as `--option=-1e-3`.

        argparse accepts only plain negative numbers as values. For any other it would give an
        unclear error. An option that takes several words stays as it is: after `=` it takes one.
        """
        several = {name for one in self._actions if one.nargs == "+" for name in one.option_strings}
        joined: list[str] = []
        for word in words:
            before = joined[-1] if joined else ""
            is_option = re.fullmatch(r"--[a-z-]+", before) and before not in several
            if is_option and re.match(r"-[.\din]", word):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return joined

    def _hint(self, name: str) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        near = [TIMM_NAMES[name]] if TIMM_NAMES.get(name) in known else []
        near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        return f" (did you mean {near[0]}?)" if near else ""


def whole_number(least: int, most: int = MOST_COUNT) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` to `most`."""
    bound = Bound(least=least, most=most)

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]+", text):
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {bound}")
        number = int(text) if len(text) < 20 else math.inf
        if number not in bound:
            said = bound.text_for(number)
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {said}")
        return int(number)

    return read


def add_compile_option(add: Callable[..., Any]) -> None:
    """Add --compile and --no-compile with `add`, a parser's or a group's `add_argument`."""
    add("--compile", action=argparse.BooleanOptionalAction, help=COMPILE_HELP)


def check_working_directory() -> None:
    """Raise ValueError if the current working directory has been removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise WrongRequest(
            "the folder that you are in is no longer there; change to one that is, for example "
            "with: cd ~"
        ) from None


def writable_folder(text: str, option: str) -> Path:
    """The folder `text`, the value of `option`. It may not exist yet.

    Raises ValueError if it cannot be written to. The check leaves no file behind.
    """
    if not text:
        raise WrongRequest(f"{option} is empty; give a folder, like runs/femto")
    if "://" in text:
        raise WrongRequest(
            f"{option} {text}: run directories are plain files with locks; give a folder, on NFS 4 "
            "where several machines share it (a bucket mounted as a folder has no locks)"
        )
    path = Path(os.path.expanduser(text))  # "~name" stays as it is if that home is unknown
    whole = str(path.absolute() / "previous.ckpt")  # the longest name that is written inside
    try:
        holder = path
        while not os.path.lexists(holder):
            holder = holder.parent
        if not holder.is_dir():
            what = "a file" if holder.exists() else "a link to nothing"
            raise WrongRequest(f"{option} {text}: {holder} is {what}; give a folder")
        parts = [(part, "PC_NAME_MAX") for part in path.parts]
        for name, limit in (*parts, (whole, "PC_PATH_MAX")):
            length, most = len(os.fsencode(name)), os.pathconf(holder, limit)
            if length > most:
                raise WrongRequest(
                    f"{option} {name[:40]}...: a name of {length} bytes, where {holder} allows "
                    f"{most}; give a shorter one"
                )
        tempfile.TemporaryFile(dir=holder).close()  # a real write: permissions alone do not tell
    except OSError as error:
        raise WrongRequest(
            f"{option} {text} cannot be written ({error.strerror}); give another folder"
        ) from error
    return path
