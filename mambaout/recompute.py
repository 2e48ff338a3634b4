"""The option --recompute: stages whose blocks are computed again in the backward pass.

    --recompute 1,2 or --recompute all

Such a block keeps only its input from the forward to the backward pass. That saves memory and costs
time. The results stay the same, so the option belongs to a launch and not to a recipe. Pure values:
no torch, no I/O.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from mambaout.errors import WrongRequest
from mambaout.variants import NUM_STAGES

Stages = tuple[int, ...]  # numbers from 1 to NUM_STAGES, each once, ascending

ALL_STAGES: Stages = tuple(range(1, NUM_STAGES + 1))
ALL = "all"


def add_recompute_option(add: Callable[..., Any]) -> None:
    """Give a command line the option --recompute; `add` is a parser's or a group's add_argument."""
    text = (
        f"stages (1 to {NUM_STAGES}, or {ALL}) whose blocks are computed again in the backward "
        "pass: less memory, more time, the same results (default: none)"
    )
    add("--recompute", type=read_stages, default=(), metavar="A,B", help=text)


def read_stages(text: str) -> Stages:
    """A type for argparse: stages by number, joined by commas, or `all`."""
    if text == ALL:
        return ALL_STAGES
    numbers = {str(stage): stage for stage in ALL_STAGES}
    words = [word.strip() for word in text.split(",")]
    if not numbers.keys() >= set(words):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be stages from 1 to {NUM_STAGES} joined by commas, like 1,2, or {ALL}"
        )
    return tuple(sorted({numbers[word] for word in words}))


def stages_text(stages: Stages) -> str:
    """The text of --recompute for `stages`; "none" for no stage."""
    if stages == ALL_STAGES:
        return ALL
    return ",".join(map(str, stages)) or "none"


def check_recompute(stages: Stages, backend: str | None) -> None:
    """Raise WrongRequest if the backend of that name would save no memory. None: not XLA."""
    if stages and backend == "xla":
        raise WrongRequest(
            f"--recompute {stages_text(stages)}: XLA's compiler decides what it keeps, and would "
            "keep nearly as much; leave --recompute out, and a smaller micro-batch is taken if one "
            "does not fit"
        )


def memory_remedy(stages: Stages, backend: str) -> str:
    """The words for a run that fits in no memory with `stages`; "" if no stage is left to add."""
    if stages == ALL_STAGES or backend == "xla":
        return ""
    return f"--recompute {ALL} needs less"
