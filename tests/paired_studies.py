"""Studies that compare recipes within a seed, as folders on disk, with results that a test chooses.

The recipes differ in the kernel: no training is needed to compare them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from study_files import DATA, SMALL, final_metrics, write_outcome

from mambaout.recipe import tuned
from mambaout.study.pairing import Pair, PairedGroup, Pairing
from mambaout.study.study import Study, StudyFolder

KERNELS = {"identity": 1, "gated_conv": 7, "conv_ssm": 9, "attention": 11}
GATE = Pair("identity", "gated_conv")


def paired_study(
    names: Sequence[str] = tuple(KERNELS),
    sides: Sequence[int] = (28,),
    num_seeds: int = 5,
    name: str = "mixer",
) -> Study:
    """One group for each side. With several sides, their labels end with the side."""
    recipes, groups = {}, []
    for side in sides:
        labels = {each: f"{each}-{side}px" if len(sides) > 1 else each for each in names}
        recipes |= {
            label: tuned(SMALL, kernel_size=KERNELS[each], image_size=side)
            for each, label in labels.items()
        }
        group = PairedGroup(labels=labels)
        if len(sides) > 1:
            group = PairedGroup(labels=labels, where=f"{side} px", tokens=(side // 2) ** 2)
        groups.append(group)
    pairs = tuple(Pair(each, "gated_conv") for each in names if each not in GATE)
    return Study(
        name=name,
        question="Does a kernel help?",
        recipes=recipes,
        seeds=tuple(range(num_seeds)),
        pairing=Pairing(what="mixers", groups=tuple(groups), pairs=pairs, gate=GATE),
    )


def paired_folder(
    storage: Path, study: Study, above: Mapping[str, float], sd: float = 0.4, draw: int = 0
) -> StudyFolder:
    """Its folder with every trial finished. `above` has each label's points above 80 %.

    What a seed gives to all recipes alike differs by 3 points, a recipe's own part by `sd`.
    """
    folder = StudyFolder(storage, study.name)
    trials = study.trials(DATA)
    folder.write(study, trials, data_name="digits")
    random = np.random.default_rng(draw)
    shared = {seed: 3 * random.standard_normal() for seed in sorted({t.seed for t in trials})}
    for trial in trials:
        top1 = 80 + above[trial.label] + shared[trial.seed] + sd * random.standard_normal()
        metrics = final_metrics(trial.recipe, trial.seed) | {"top1": top1, "minival/top1": top1}
        write_outcome(folder.run_directory(trial), "finished", metrics)
    return folder
