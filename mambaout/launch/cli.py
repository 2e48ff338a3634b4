"""The entry point of a sweep script: first the checks, then the study.

    if __name__ == "__main__":
        sys.exit(main(scale))

Exit status: 0 all done; 1 some trials did not finish (the same command goes on); 2 the request was
wrong, and nothing was started or written; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mambaout.accounting import train_macs
from mambaout.applied_rules import PRECISION, AppliedRule, rule_lines
from mambaout.command_line import WRONG, check_working_directory, writable_folder
from mambaout.data.images.decode import Images
from mambaout.data.packing.data_option import given_data
from mambaout.data.packing.sizes import facts_of
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.column_options import GivenColumns, given_columns
from mambaout.data.shards.data_set import DataSet
from mambaout.errors import WrongRequest
from mambaout.fields import flat_fields
from mambaout.launch.calibrate import run_calibration
from mambaout.launch.cluster import JOB_VARIABLE, RayDidNotStart, cluster_address
from mambaout.launch.ending import StudyBroke
from mambaout.launch.planned_machine import PlannedMachine, planned_machine
from mambaout.launch.power_wanted import (
    UNTIL,
    about_design,
    budget_of,
    check_given_seeds,
    check_until,
    plan_lines,
    with_design,
)
from mambaout.launch.precision import precision_of
from mambaout.launch.progress import Job
from mambaout.launch.request import Request, about_others, check_share, check_task, hello
from mambaout.launch.rerun import Rerun
from mambaout.launch.resources import check_accelerator
from mambaout.launch.start_weights import INIT, about_weights, facts_of_weights, start_weights
from mambaout.launch.sweep_options import (
    STORAGE,
    BuildStudy,
    own_values,
    planned_chip,
    sweep_parser,
)
from mambaout.launch.tune import run_study
from mambaout.options import field_text, given_fields
from mambaout.recipe import BASELINE, Recipe, content_key, steps_per_epoch
from mambaout.study.branches import longest_start, num_starts
from mambaout.study.dense_start import DenseStart
from mambaout.study.price.plan import Plan, plan_table
from mambaout.study.search.space import NARROW, check_all, corners
from mambaout.study.start import Start, check_given, check_mixer_fields
from mambaout.study.store_uri import chosen_uri, hidden
from mambaout.study.study import Study, StudyFolder, Trial
from mambaout.study.tracking.store import check_tracking
from mambaout.train.tasks import CLASSIFY

# The working directory of a submitted job is a copy that disappears with the cluster. Results do
# not belong there.
JOB_STORAGE = "~/mambaout-runs"

MOST_SUFFIX = 40  # characters of a study's name for the given fields


def main(build_study: BuildStudy, argv: Sequence[str] | None = None) -> int:
    """Run, resume or plan the study that `build_study` describes; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        options = sweep_parser(build_study).parse_args(words)
        # The command that goes on, without --rerun, because the study's folder stores the rerun.
        again = [hidden(word) for word in words if word != "--rerun"]
        command = shlex.join([sys.argv[0], *again])
        request = _request(build_study, options, command)
        rates = run_calibration(request) if options.calibrate else []
        if options.plan or options.calibrate:
            priced = _plan(request, options, rates[0].device if rates else None)
            about = [f"{request.name}: {request.study.question}", *hello(request)]
            power = plan_lines(request, priced.grant_share)
            print("\n".join([*about, "", plan_table(priced), *power]))
            return 0
        return run_study(request)

    return ended(Path(sys.argv[0]).name, work)


def ended(script: str, work: Callable[[], int]) -> int:
    """The exit status of `work`; an error of the user becomes a line on stderr."""
    try:
        return work()
    except WrongRequest as error:
        print(f"{script}: {error}", file=sys.stderr)
        return WRONG
    except (RayDidNotStart, StudyBroke) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `--plan | head` closes the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        return 130


def _request(build_study: BuildStudy, options: argparse.Namespace, command: str) -> Request:
    """The request, with all checks done that are possible before Ray starts.

    ValueError says what is wrong. Only the data set's cache is written.
    """
    check_working_directory()
    checked_price(options.plan or options.calibrate, options)
    check_given_seeds(options.detect, options.seeds)
    given = given_fields(options)
    storage = trial_storage(options.storage)
    tracking_uri = chosen_uri(options.tracking_uri, storage)
    cluster_address(options.address)
    check_accelerator(options.accelerator)
    check_tracking(tracking_uri)
    source = given_data(options)
    columns = given_columns(options)
    data = open_data(source, **columns)
    # Opening the data decodes a small set once for all workers and finds damaged images now.
    images, _ = Images(data, "train"), Images(data, data.source("val"))
    init = None if options.init is None else start_weights(options.init, storage)
    weights = None if init is None else facts_of_weights(init)
    if weights is not None:
        given[INIT] = weights.digest
    start = Start(
        facts=facts_of(data, images),
        given=given,
        weights=weights,
        variants=options.variants,
        smoke=options.smoke,
    )
    study = _built(build_study, start, options)
    name = options.name or _study_name(study, data, start, columns)
    if name != plain_name(name):
        raise WrongRequest(f"--name {name!r}: use letters, digits, dots, dashes and underscores")
    writable_folder(str(storage / name), "--name")
    check_task(StudyFolder(storage, name), CLASSIFY)
    precision = precision_of(
        StudyFolder(storage, name),
        given.get(PRECISION),
        accelerator=options.accelerator,
        address=options.address,
        rerun=options.rerun,
        chip=planned_chip(options),
    )
    if precision.rule is not None:  # only the study's name tells it, after the recipes were made
        start = replace(start, precision=precision.rule, rules=[], took_variants=False)
        study = _built(build_study, start, options)
    about_init = about_weights(study, init, data.num_classes)
    wanted: dict[str, Any] = {}
    if options.detect is not None:
        folder = StudyFolder(storage, name)
        machine = cache(partial(planned_machine, options, storage))  # only a new choice needs it
        price = partial(_price, data=data, machine=machine)
        budget = budget_of(options.budget_hours, options.grant_hours)
        study, wanted = with_design(study, folder, data, options.detect, budget, price)
    if options.until is not None:
        check_until(study, data)
        wanted[UNTIL] = options.until
    trials = _trials(study, data)
    _check_searches(study, data)
    return Request(
        study=replace(study, name=name),
        trials=_in_order(trials, data),
        job=partial(_job, data, others=trials),
        num_images=data.num_images,
        fingerprint=data.fingerprint,
        data=str(Path(source).resolve()) if Path(source).exists() else source,
        data_name=source,
        columns=columns,
        recompute=options.recompute,
        stage=str(Path(options.stage).absolute()) if options.stage else None,
        compiles=options.compile,
        storage=storage,
        name=name,
        tracking_uri=tracking_uri,
        address=options.address,
        accelerator=options.accelerator,
        max_concurrent=options.max_concurrent,
        budget_hours=options.budget_hours,
        until=options.until,
        rerun=options.rerun,
        command=f"python {command}",
        rules=rule_lines(acting_rules(start.rules, study)),
        weights=() if init is None else (init,),
        about_weights=about_init,
        about_data=str(start.facts),
        about_others=about_others(StudyFolder(storage, name)),
        about_design=about_design(wanted, budget_of(options.budget_hours, options.grant_hours)),
        facts=_facts(study, data, start) | wanted | {PRECISION: precision.to_json()},
    )


def _built(build_study: BuildStudy, start: Start, options: argparse.Namespace) -> Study:
    """The study with the requested seeds. ValueError if it ignores an option."""
    study = build_study(start, **own_values(build_study, options))
    check_given(study, start)
    check_mixer_fields(study, start.given)
    if options.seeds is not None:
        seeds = tuple(range(options.seeds))
        searches = tuple(replace(search, seeds=seeds) for search in study.searches)
        study = replace(study, seeds=seeds, searches=searches)
    check_all(study.searches, study.recipes)
    return study


def checked_price(has_plan: bool, options: argparse.Namespace) -> None:
    """Raise WrongRequest if a price is given but no plan would print it."""
    if has_plan:
        return
    chooses = getattr(options, "detect", None) is not None  # shapes and seeds for the grant
    for name, value in (
        ("--price-per-hour", options.price_per_hour),
        ("--grant-hours", None if chooses else options.grant_hours),
    ):
        if value is not None:
            raise WrongRequest(
                f"{name} {value:g} is for the plan, and this would start the study; add --plan, or "
                "limit the study itself with --budget-hours"
            )


def _study_name(study: Study, data: DataSet, start: Start, columns: GivenColumns) -> str:
    """The study's name, which contains the sweep, smoke or not, the data and the given fields.

    Each combination is a study of its own.
    """
    suffix = study_suffix(start, columns.values())
    smoke = "smoke" if start.smoke else ""
    return "-".join(filter(None, [plain_name(study.name), smoke, plain_name(data.name), suffix]))


def study_suffix(start: Start | DenseStart, more: Iterable[Any] = ()) -> str:
    """The given fields, variants and `more` as the end of a study's name; "" if there are none."""
    given = [f"{name}{field_text(value)}" for name, value in sorted(start.given.items())]
    given += [*(start.variants or ()), *more]
    suffix = plain_name("-".join(given)) if given else ""
    if len(suffix) > MOST_SUFFIX:
        suffix = f"{suffix[:MOST_SUFFIX].rstrip('-.')}-{content_key(given)[:6]}"
    return suffix


def _facts(study: Study, data: DataSet, start: Start) -> dict[str, Any]:
    """The facts of the data and the command line that study.json keeps."""
    counts = np.bincount(data.labels["train"])
    recipes = [*study.recipes.values(), *(search.base for search in study.searches)]
    return {
        "num_train": data.num_images("train", BASELINE),
        "num_classes": data.num_classes,
        "num_val": data.num_images("val", BASELINE),
        # percent; an answer without looking at the image reaches it
        "chance_top1": 100 * float(counts.max() / counts.sum()),
        "num_minival": min(data.num_images("minival", recipe) for recipe in recipes),
        "given": {name: field_text(value) for name, value in start.given.items()},
        "variants": start.variants,
        "rules": rule_lines(acting_rules(start.rules, study)),
    }


def acting_rules(rules: Sequence[AppliedRule], study: Study) -> list[AppliedRule]:
    """The rules, except those for a field that every recipe of the study sets to another value."""
    recipes = [*study.recipes.values(), *(search.base for search in study.searches)]
    values = [flat_fields(recipe) for recipe in recipes]
    return [rule for rule in rules if any(rule.value == own[rule.name] for own in values)]


def plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"


def trial_storage(given: str | None) -> Path:
    """The absolute path of the storage folder. ValueError if it is not writable."""
    default = JOB_STORAGE if os.environ.get(JOB_VARIABLE) else STORAGE
    return writable_folder(given or default, "--storage").resolve()


def _trials(study: Study, data: DataSet) -> list[Trial]:
    """The study's trials. ValueError if two are the same or one does not fit the data."""
    trials = study.trials(data.fingerprint)
    if not trials and not study.searches:
        raise WrongRequest(f"study {study.name} has no trials")
    labels: dict[str, str] = {}
    for trial in trials:
        other = labels.setdefault(trial.key, trial.name)
        if other != trial.name:
            raise WrongRequest(f"trials {other} and {trial.name} are the same recipe and seed")
        try:
            _check_fits(trial.recipe, data)
        except WrongRequest as error:
            raise WrongRequest(f"trial {trial.label}: {error}") from error
    return trials


def _check_searches(study: Study, data: DataSet) -> None:
    """Raise ValueError if a search could suggest a recipe that does not fit the data."""
    for search in study.searches:
        recipes = {
            (recipe.global_batch, recipe.train_images, recipe.minival_fraction): recipe
            for recipe in (search.base, *corners(search))
        }
        for recipe in recipes.values():
            try:
                _check_fits(recipe, data)
            except WrongRequest as error:
                raise WrongRequest(f"search {search.label!r}: {error}; {NARROW}") from error


def _check_fits(recipe: Recipe, data: DataSet) -> None:
    """Raise ValueError if the data have too few images for the recipe."""
    steps_per_epoch(recipe, data.num_images("train", recipe))
    data.num_images("minival", recipe)


def _job(data: DataSet, trial: Trial, others: Sequence[Trial] = ()) -> Job:
    """The trial with its amount of work, less what it shares with the `others`."""
    num_train = data.num_images("train", trial.recipe)
    num_steps = steps_per_epoch(trial.recipe, num_train) * trial.recipe.schedule.total_epochs
    macs = train_macs(trial.recipe, num_train, data.num_classes)
    start = longest_start(trial, others)
    per_epoch = num_steps // trial.recipe.schedule.total_epochs
    shared = 0 if start is None else start.recipe.schedule.decay_step(per_epoch) or 0
    macs *= (num_steps - shared) / num_steps
    return Job(trial=trial, num_steps=num_steps, train_macs=macs, shared_steps=shared)


def _in_order(trials: Sequence[Trial], data: DataSet) -> list[Trial]:
    """The trials in the order in which they start.

    One seed of every recipe comes before the next seed, so that an interrupted study has all
    recipes. Within a seed, the longest trials come first, so that no long trial runs alone at the
    end. But a trial comes after the shorter trials that it can go on from.
    """
    seen: Counter[str] = Counter()
    ranks = []
    for trial in trials:
        work = _job(data, trial).train_macs
        ranks.append((seen[trial.label], num_starts(trial, trials), -work))
        seen[trial.label] += 1
    return [trial for _, trial in sorted(zip(ranks, trials, strict=True), key=lambda row: row[0])]


def _plan(request: Request, options: argparse.Namespace, timed: str | None) -> Plan:
    """The price of the remaining trials, where they would run or on the named GPU or TPU.

    `timed` is the device that was just calibrated.
    """
    machine = planned_machine(options, request.storage, timed)
    check_share(request, machine.part)
    folder = StudyFolder(request.storage, request.name, reuse=request.reuse)
    rerun = Rerun(folder)
    anew = rerun.begins_with(request)
    known = [] if anew else [*request.trials, *folder.trials_to_go_on()]
    reuse = request.reuse and not (anew or rerun.is_under_way)
    return machine.plan(
        request.trials,
        request.facts["num_train"],
        request.facts["num_classes"],
        searches=request.study.searches,
        num_images=request.num_images,
        runs=[folder.run(trial) for trial in known],
        finished=folder.finished_elsewhere(request.trials) if reuse else (),
        price_per_hour=options.price_per_hour,
        grant_hours=options.grant_hours,
    )


def _price(study: Study, *, data: DataSet, machine: Callable[[], PlannedMachine]) -> Plan:
    """The price of the whole study, if nothing of it is trained yet."""
    return machine().plan(
        _in_order(study.trials(data.fingerprint), data),
        data.num_images("train", BASELINE),
        data.num_classes,
        searches=study.searches,
        num_images=data.num_images,
    )
