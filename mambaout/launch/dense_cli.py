"""The entry point of a sweep over detectors or segmenters: first the checks, then the study.

    if __name__ == "__main__":
        sys.exit(main(DETECT_SWEEP, detect))

Exit status: as in cli.py.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambaout.accounting import TRAIN_FORWARDS
from mambaout.applied_rules import PRECISION
from mambaout.command_line import check_working_directory, writable_folder
from mambaout.dense_options import given_dense_fields, require_dense_extra
from mambaout.dense_rules import SHAPES, SMOKE_SHAPES
from mambaout.errors import WrongRequest
from mambaout.launch.cli import checked_price, ended, plain_name, study_suffix, trial_storage
from mambaout.launch.cluster import cluster_address
from mambaout.launch.dense_sweeps import TRAINER, DenseSweep
from mambaout.launch.planned_machine import planned_machine
from mambaout.launch.precision import precision_of
from mambaout.launch.progress import Job
from mambaout.launch.request import Request, about_others, check_share, check_task, hello
from mambaout.launch.rerun import Rerun
from mambaout.launch.resources import check_accelerator
from mambaout.launch.start_weights import start_weights
from mambaout.launch.sweep_options import BuildStudy, dense_parser, own_values, planned_chip
from mambaout.launch.tune import run_study
from mambaout.options import field_text
from mambaout.study.dense_start import DenseStart
from mambaout.study.price.dense_price import DenseForecast, DenseWork
from mambaout.study.price.plan import Plan, plan_table
from mambaout.study.start import check_mixer_fields
from mambaout.study.store_uri import chosen_uri, hidden
from mambaout.study.study import CHECKPOINT_FILE, Study, StudyFolder, Trial
from mambaout.study.tracking.store import check_tracking
from mambaout.variants import ModelConfig

if TYPE_CHECKING:
    from mambaout.dense.dense_sets import DenseSets
    from mambaout.model.initial import InitialWeights


def main(sweep: DenseSweep, build_study: BuildStudy, argv: Sequence[str] | None = None) -> int:
    """Run, resume or plan the study that `build_study` describes; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    again = [hidden(word) for word in words if word != "--rerun"]
    command = f"python {shlex.join([sys.argv[0], *again])}"

    def work() -> int:
        options = dense_parser(build_study, sweep.kind.baseline, sweep.data).parse_args(words)
        asked = _asked(sweep, build_study, options, command)
        if options.plan:
            table = plan_table(_plan(asked, options))
            about = [f"{asked.request.name}: {asked.request.study.question}"]
            print("\n".join([*about, *hello(asked.request), "", table]))
            return 0
        return run_study(asked.request)

    return ended(Path(sys.argv[0]).name, work)


@dataclass(frozen=True)
class _DenseRequest:
    """The request, and the work of each trial."""

    request: Request
    work: Callable[[Trial], DenseWork]


def _asked(
    sweep: DenseSweep, build_study: BuildStudy, options: argparse.Namespace, command: str
) -> _DenseRequest:
    """The request, with all checks done that are possible before Ray starts."""
    check_working_directory()
    require_dense_extra(f"a study of --task {sweep.kind.name}")
    checked_price(options.plan, options)
    given = given_dense_fields(options, sweep.kind.recipe_type)
    storage = trial_storage(options.storage)
    tracking_uri = chosen_uri(options.tracking_uri, storage)
    cluster_address(options.address)
    check_accelerator(options.accelerator)
    check_tracking(tracking_uri)
    data = _data(options)
    sets = sweep.open(data)
    weights = [start_weights(text, storage) for text in options.init or ()]
    start = DenseStart(
        kind=sweep.kind,
        fit=lambda shape, fields: sweep.fit(sets.num_train, shape, fields, sweep.small.get(data)),
        given=given,
        variants=options.variants,
        is_small=data in sweep.small,
        smoke=options.smoke,
        has_weights=bool(weights),
        digest_of=lambda shape: _digest(weights, shape, sets.num_classes),
    )
    study = _built(build_study, start, options)
    name = options.name or _study_name(study, data, start)
    if name != plain_name(name):
        raise WrongRequest(f"--name {name!r}: use letters, digits, dots, dashes and underscores")
    folder = StudyFolder(storage, name)
    writable_folder(str(folder.path), "--name")
    check_task(folder, sweep.kind)
    precision = precision_of(
        folder,
        given.get(PRECISION),
        accelerator=options.accelerator,
        address=options.address,
        rerun=options.rerun,
        chip=planned_chip(options),
    )
    if precision.rule is not None:  # only the study's name tells it, after the recipes were made
        start = replace(
            start, given={**given, PRECISION: precision.value}, rules=[], took_variants=False
        )
        study = _built(build_study, start, options)
        start.rules.append(str(precision.rule))
    trials = study.trials(sets.fingerprint)
    _check(sweep, trials, options.micro_batch, sets)

    def work(trial: Trial) -> DenseWork:
        recipe = trial.recipe
        steps, evaluations = sweep.num_steps(recipe, sets.num_train), sweep.num_evaluations(recipe)
        return DenseWork(
            cost=sweep.cost(recipe, sets),
            num_steps=steps,
            images=steps * recipe.global_batch,
            evaluated=evaluations * sets.num_val,
            num_evaluations=evaluations,
        )

    def job(trial: Trial) -> Job:
        own = work(trial)
        macs = TRAIN_FORWARDS * own.images * own.cost.macs
        return Job(trial=trial, num_steps=own.num_steps, train_macs=macs)

    position = {label: place for place, label in enumerate(study.recipes)}
    request = Request(
        study=replace(study, name=name),
        # One seed of every recipe comes before the next seed.
        trials=sorted(trials, key=lambda t: (t.seed, -job(t).train_macs, position[t.label])),
        job=job,
        num_images=lambda split, recipe: sets.num_train if split == "train" else sets.num_val,
        fingerprint=sets.fingerprint,
        data=str(Path(data).resolve()) if Path(data).exists() else data,
        data_name=data,
        micro_batch=options.micro_batch,
        storage=storage,
        name=name,
        tracking_uri=tracking_uri,
        address=options.address,
        accelerator=options.accelerator,
        max_concurrent=options.max_concurrent,
        budget_hours=options.budget_hours,
        rerun=options.rerun,
        command=command,
        trainer=TRAINER,
        not_on_xla=sweep.not_on_xla,
        rules=start.rules,
        weights=weights,
        about_weights=_about_weights(weights, study),
        about_data="; ".join(sets.reports),
        about_others=about_others(folder),
        facts={
            "num_train": sets.num_train,
            "num_val": sets.num_val,
            "num_classes": sets.num_classes,
            "given": {name: field_text(value) for name, value in start.given.items()},
            "variants": options.variants,
            "micro_batch": options.micro_batch,
            "rules": start.rules,
            PRECISION: precision.to_json(),
        },
    )
    return _DenseRequest(request, work)


def _data(options: argparse.Namespace) -> str:
    if options.smoke and options.data:
        raise WrongRequest("--smoke generates its images; leave --data out")
    if not options.smoke and not options.data:
        raise WrongRequest(f"--data is missing: give a folder or a bucket, or {SHAPES}")
    return SMOKE_SHAPES if options.smoke else options.data


def _built(build_study: BuildStudy, start: DenseStart, options: argparse.Namespace) -> Study:
    """The study with the requested seeds. WrongRequest if it ignores an option."""
    study = build_study(start, **own_values(build_study, options))
    if start.variants is not None and not start.took_variants:
        raise WrongRequest(
            f"--variants: study {study.name} has no catalogue of networks; leave it out, or give "
            "the network with --depths and --dims"
        )
    check_mixer_fields(study, start.given)
    if options.seeds is not None:
        study = replace(study, seeds=tuple(range(options.seeds)))
    return study


def _check(
    sweep: DenseSweep, trials: Sequence[Trial], micro_batch: int | None, sets: DenseSets
) -> None:
    """Raise WrongRequest if a trial does not fit the data."""
    for trial in trials:
        try:
            sweep.num_steps(trial.recipe, sets.num_train)
            if micro_batch is not None:
                sweep.check_micro_batch(trial.recipe, micro_batch)
        except WrongRequest as error:
            raise WrongRequest(f"trial {trial.label}: {error}") from error


def _study_name(study: Study, data: str, start: DenseStart) -> str:
    # Made absolute, because "." and ".." have no name; a link keeps its own.
    name = Path(os.path.abspath(data)).name if Path(data).exists() else data.removesuffix("-smoke")
    smoke = "smoke" if start.smoke else ""
    parts = [plain_name(study.name), smoke, plain_name(name), study_suffix(start)]
    return "-".join(filter(None, parts))


# -- the first weights ----------------------------------------------------------------------------


def _digest(weights: Sequence[InitialWeights], shape: ModelConfig, num_classes: int) -> str | None:
    """The digest of the weights that fit the network; None if no weights are given at all."""
    if not weights:
        return None
    faults = []
    for one in weights:
        try:
            one.plan(shape, num_classes)
        except WrongRequest as error:
            faults.append(str(error))
        else:
            return one.digest
    depths, dims = field_text(shape.depths), field_text(shape.dims)
    raise WrongRequest(
        f"--init: no file has the weights of the network {depths}/{dims} ({'; '.join(faults)}); "
        "add its file to --init, or name the networks that have one with --variants"
    )


def _about_weights(weights: Sequence[InitialWeights], study: Study) -> str:
    """A line on the weights. WrongRequest if no trial starts from one of the files."""
    if not weights:
        return ""
    used = {recipe.init for recipe in study.recipes.values()}
    for one in weights:
        if one.digest not in used:
            raise WrongRequest(
                f"--init {one.weights.path}: no network of this study starts from it; leave it "
                "out, or name its network with --variants"
            )
    names = ", ".join(f"{_file_text(one.weights.path)} ({one.digest})" for one in weights)
    return f"the backbones start from {names}; the heads are new"


def _file_text(path: Path) -> str:
    """The name of a file of weights; with its folder for a run's, because all have one name."""
    return str(path) if path.name == CHECKPOINT_FILE else path.name


# -- the plan -------------------------------------------------------------------------------------


def _plan(asked: _DenseRequest, options: argparse.Namespace) -> Plan:
    """The price of the remaining trials."""
    request = asked.request
    planned = planned_machine(options, request.storage)
    check_share(request, planned.part)
    folder = StudyFolder(request.storage, request.name, reuse=request.reuse)
    rerun = Rerun(folder)
    anew = rerun.begins_with(request)
    reuse = request.reuse and not (anew or rerun.is_under_way)
    finished = folder.finished_elsewhere(request.trials) if reuse else set()
    forecast = DenseForecast(
        request.storage, request.study.kind, planned.device, planned.part.devices_held
    )
    rows = [
        forecast.row(trial, asked.work(trial), None if anew else folder.run(trial), finished)
        for trial in request.trials
    ]
    todo = [row for row in rows if not row.finished]
    return Plan(
        rows=rows,
        concurrency=planned.at_a_time,
        basis=[*forecast.basis(todo), _counted(rows[0].recipe)],
        num_devices=planned.part.devices_held,
        price_per_hour=options.price_per_hour,
        grant_hours=options.grant_hours,
    )


def _counted(recipe: Any) -> str:
    height, width = recipe.counted_size
    return (
        f"the MACs of an image of {height}x{width} px; an image of another size takes another time"
    )
