"""A sweep script for the tests of `launch`: a search over tiny networks, a few seconds each."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from tiny_sweep import recipe

from mambaout.launch.cli import main
from mambaout.recipe import tuned
from mambaout.study.axes import Choice, LinearRange, LogRange, Search
from mambaout.study.start import Start
from mambaout.study.study import Study

NUM_TRIALS = int(os.environ.get("TINY_TRIALS", 7))


def searched(start: Start) -> Study:
    """Do searches survive?"""
    base = tuned(recipe("thin"), warmup_epochs=0.5)
    tried = Search(
        label="thin",
        base=base,
        axes=(
            LogRange("peak_lr", 5e-4, 3e-2),
            LinearRange("weight_decay", 0.0, 0.2),
            Choice("kernel_size", (3, 5, 7)),
        ),
        num_trials=NUM_TRIALS,
        early_stop=True,
        seeds=(0, 1),
    )
    return Study(
        name="search",
        question=str(searched.__doc__),
        recipes={"undecayed": replace(base, optim=replace(base.optim, weight_decay=0.0))},
        searches=(tried,),
    )


if __name__ == "__main__":
    sys.exit(main(searched))
