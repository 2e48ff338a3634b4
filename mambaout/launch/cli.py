"""The options every sweep script shares, and the checks that come before anything starts.

    if __name__ == "__main__":
        sys.exit(main(scale))

Exit status: 0 all done, 1 some trials did not finish (the same command goes on), 2 the request
itself was wrong and nothing has been started or written, 130 interrupted.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shlex
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mambaout.accounting import train_macs
from mambaout.command_line import WRONG, Parser, check_working_directory, writable_folder
from mambaout.data.images.decode import Images
from mambaout.data.packing.sizes import facts_of
from mambaout.data.packing.sources import open_data
from mambaout.data.shards.column_options import GivenColumns, add_column_options, given_columns
from mambaout.data.shards.data_set import DataSet
from mambaout.errors import WrongRequest
from mambaout.fields import flat_fields
from mambaout.launch.calibrate import device_of, run_calibration
from mambaout.launch.cluster import JOB_VARIABLE, RayDidNotStart, cluster_address
from mambaout.launch.ending import StudyBroke
from mambaout.launch.precision import precision_of
from mambaout.launch.progress import Job
from mambaout.launch.request import Request, about_others, check_batches, hello
from mambaout.launch.rerun import Rerun
from mambaout.launch.resources import CHOICES, check_accelerator, plan_nodes, share
from mambaout.launch.tune import run_study
from mambaout.options import add_recipe_options, field_text, given_fields
from mambaout.recipe import BASELINE, Recipe, content_key, steps_per_epoch
from mambaout.rules import PRECISION, AppliedRule, rule_lines
from mambaout.study.price.plan import Plan, plan, plan_table
from mambaout.study.price.rates import known_rates
from mambaout.study.search.space import NARROW, check_all, corners
from mambaout.study.start import Start, check_given
from mambaout.study.store_uri import chosen_uri, hidden
from mambaout.study.study import Study, StudyFolder, Trial
from mambaout.study.tracking.store import check_tracking

SMOKE_DATA = "digits"
STORAGE = "runs"
# The working directory of a submitted job is a copy that goes with the cluster; results do not
# belong there.
JOB_STORAGE = "~/mambaout-runs"

# The study, from what the data and the command line say. A keyword that it takes is an option of
# its own: `predict: Annotated[bool, "help"] = False` is --predict. A bool is a switch, an int a
# number of at least 1, a Sequence[str] | None several words.
BuildStudy = Callable[..., Study]

MOST_SUFFIX = 40  # characters of a study's name that say which fields were given


def main(build_study: BuildStudy, argv: Sequence[str] | None = None) -> int:
    """Run, resume or plan the study that `build_study` describes; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _parser(build_study).parse_args(words)
    script = Path(sys.argv[0]).name
    try:
        # The command that goes on. --rerun begins anew, and the study's folder knows of it.
        again = [hidden(word) for word in words if word != "--rerun"]
        command = shlex.join([sys.argv[0], *again])
        request = _request(build_study, options, command)
        if options.calibrate:
            run_calibration(request)
        if options.plan or options.calibrate:
            table = plan_table(_plan(request, options))
            about = [f"{request.name}: {request.study.question}", *hello(request)]
            print("\n".join([*about, "", table]))
            return 0
        return run_study(request)
    except WrongRequest as error:
        print(f"{script}: {error}", file=sys.stderr)
        return WRONG
    except (RayDidNotStart, StudyBroke) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `--plan | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        return 130


def _parser(build_study: BuildStudy) -> argparse.ArgumentParser:
    parser = Parser(
        usage="%(prog)s --data NAME|PATH|URI [options]",
        description=inspect.getdoc(build_study),
        epilog="Exit status: 0 all done, 1 some trials did not finish (the same command goes on), "
        "2 the request was wrong (nothing started), 130 interrupted. Running the same command "
        "again starts nothing that has finished and continues what has not.",
    )
    add = parser.add_argument_group("what to study").add_argument
    add("--data", metavar="NAME|PATH|URI", help="digits, fashion-mnist, or a folder of images")
    add_column_options(add)
    text = "train these shapes of the study's, or published ones, joined by commas"
    add("--variants", type=_names, metavar="A,B", help=text)
    add("--seeds", type=_count, metavar="N", help="run every recipe with the seeds 0 to N-1")
    for name, kind in _own_options(build_study).items():
        add(f"--{name.replace('_', '-')}", **kind)
    add("--smoke", action="store_true", help="the whole path in small, on the digits if no --data")
    add("--name", help="of the study and its folder (default: script, data and given fields)")
    add("--rerun", action="store_true", help="all anew; earlier run directories are moved aside")

    add = parser.add_argument_group("what it costs").add_argument
    add("--plan", action="store_true", help="print the trials and what they cost; start nothing")
    add("--calibrate", action="store_true", help="time some of the trials for seconds, then --plan")
    device = "a core, a GPU, a TPU v3 core (an eighth of a v3-8)"
    add("--price-per-hour", type=_amount, metavar="MONEY", help=f"of a device ({device})")
    add("--grant-hours", type=_amount, metavar="H", help="device-hours to spend, for --plan")
    add("--budget-hours", type=_amount, metavar="H", help="stop after so long; resumable")

    add = parser.add_argument_group("where it runs and what it writes").add_argument
    text = f"of a trial: {CHOICES} (default: what the machines have: a TPU, a GPU, a core)"
    add("--accelerator", metavar="NAME", help=text)
    add("--max-concurrent", type=_count, metavar="N", help="trials at a time (default: what fits)")
    add("--address", metavar="HOST:PORT", help="a Ray cluster's (default: Ray on this machine)")
    add("--storage", metavar="DIR", help=f"where studies lie (default {STORAGE})")
    text = "copy the shards to this folder of each machine first, for example /dev/shm"
    add("--stage", metavar="DIR", help=text)
    where = "of MLflow (default: MLFLOW_TRACKING_URI, else sqlite in the storage folder)"
    add("--tracking-uri", metavar="URI", help=where)
    add_recipe_options(parser)
    return parser


def _own_options(build_study: BuildStudy) -> dict[str, dict[str, Any]]:
    """What argparse is told of each keyword of the study's function."""
    hints = typing.get_type_hints(build_study, include_extras=True)
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in inspect.signature(build_study).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        hint, texts = hints.get(name, str), [""]
        if typing.get_origin(hint) is Annotated:
            hint, *texts = typing.get_args(hint)
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = [each for each in typing.get_args(hint) if each is not types.NoneType]
        kinds = kinds if is_union else [hint]
        kind: dict[str, Any] = {"help": texts[0], "default": parameter.default}
        if kinds == [bool]:
            kind |= {"action": "store_true"}
        elif kinds == [int]:
            kind |= {"type": _count, "metavar": "N"}
        elif kinds in ([float], [str]):
            kind |= {"type": kinds[0], "metavar": "X"}
        else:  # several words
            # An option that is there twice adds its words; argparse would keep the last alone.
            kind |= {"nargs": "+", "action": "extend", "metavar": "X"}
        found[name] = kind
    return found


def _names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} must be different names joined by commas")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    if not 0 < amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return amount


def _request(build_study: BuildStudy, options: argparse.Namespace, command: str) -> Request:
    """The request, everything checked that can be before Ray starts; ValueError says what is
    wrong with it. Nothing is written but the data set's cache."""
    check_working_directory()
    _check_price(options)
    given = given_fields(options)
    storage = _storage(options.storage)
    tracking_uri = chosen_uri(options.tracking_uri, storage)
    cluster_address(options.address)
    check_accelerator(options.accelerator)
    check_tracking(tracking_uri)
    source = options.data or (SMOKE_DATA if options.smoke else None)
    if source is None:
        raise WrongRequest("--data is missing: digits, fashion-mnist, or a folder of images")
    columns = given_columns(options)
    data = open_data(source, **columns)
    # Opening them decodes a small set once for all workers, and finds its damaged images now.
    images, _ = Images(data, "train"), Images(data, data.source("val"))
    start = Start(
        facts=facts_of(data, images),
        given=given,
        variants=options.variants,
        smoke=options.smoke,
    )
    study = _built(build_study, start, options)
    name = options.name or _study_name(study, data, start, columns)
    if name != _plain(name):
        raise WrongRequest(f"--name {name!r}: use letters, digits, dots, dashes and underscores")
    writable_folder(str(storage / name), "--name")
    precision = precision_of(
        StudyFolder(storage, name),
        given.get(PRECISION),
        accelerator=options.accelerator,
        address=options.address,
        rerun=options.rerun,
    )
    if precision.rule is not None:  # known by the study's name; its recipes were made without
        start = replace(start, precision=precision.rule, rules=[], took_variants=False)
        study = _built(build_study, start, options)
    trials = _trials(study, data)
    _check_searches(study, data)
    return Request(
        study=replace(study, name=name),
        trials=_in_order(trials, data),
        job=partial(_job, data),
        num_images=data.num_images,
        fingerprint=data.fingerprint,
        data=str(Path(source).resolve()) if Path(source).exists() else source,
        data_name=source,
        columns=columns,
        stage=str(Path(options.stage).absolute()) if options.stage else None,
        storage=storage,
        name=name,
        tracking_uri=tracking_uri,
        address=options.address,
        accelerator=options.accelerator,
        max_concurrent=options.max_concurrent,
        budget_hours=options.budget_hours,
        rerun=options.rerun,
        command=f"python {command}",
        rules=rule_lines(acting_rules(start.rules, study)),
        about_data=str(start.facts),
        about_others=about_others(StudyFolder(storage, name)),
        facts=_facts(study, data, start) | {PRECISION: precision.to_json()},
    )


def _built(build_study: BuildStudy, start: Start, options: argparse.Namespace) -> Study:
    """The study with the seeds that are asked for; ValueError where it is not as asked for."""
    own = {name: getattr(options, name) for name in _own_options(build_study)}
    study = build_study(start, **own)
    check_given(study, start)
    if options.seeds is not None:
        seeds = tuple(range(options.seeds))
        searches = tuple(replace(search, seeds=seeds) for search in study.searches)
        study = replace(study, seeds=seeds, searches=searches)
    check_all(study.searches, study.recipes)
    return study


def _check_price(options: argparse.Namespace) -> None:
    """ValueError where a price is asked for that nothing would print."""
    if options.plan or options.calibrate:
        return
    for name, value in (
        ("--price-per-hour", options.price_per_hour),
        ("--grant-hours", options.grant_hours),
    ):
        if value is not None:
            raise WrongRequest(
                f"{name} {value:g} is for the plan, and this would start the study; add --plan, or "
                "limit the study itself with --budget-hours"
            )


def _study_name(study: Study, data: DataSet, start: Start, columns: GivenColumns) -> str:
    """Which study, of which data, and with which fields given: each is a study of its own."""
    given = [f"{name}{field_text(value)}" for name, value in sorted(start.given.items())]
    given += [*(start.variants or ()), *columns.values()]
    suffix = _plain("-".join(given)) if given else ""
    if len(suffix) > MOST_SUFFIX:
        suffix = f"{suffix[:MOST_SUFFIX].rstrip('-.')}-{content_key(given)[:6]}"
    return "-".join(filter(None, [_plain(study.name), _plain(data.name), suffix]))


def _facts(study: Study, data: DataSet, start: Start) -> dict[str, Any]:
    """What study.json keeps of the data and of the command line."""
    counts = np.bincount(data.labels["train"])
    recipes = [*study.recipes.values(), *(search.base for search in study.searches)]
    return {
        "num_train": data.num_images("train", BASELINE),
        "num_classes": data.num_classes,
        "num_val": data.num_images("val", BASELINE),
        # percent: what an answer that never looks at the image reaches
        "chance_top1": 100 * float(counts.max() / counts.sum()),
        "num_minival": min(data.num_images("minival", recipe) for recipe in recipes),
        "given": {name: field_text(value) for name, value in start.given.items()},
        "variants": start.variants,
        "rules": rule_lines(acting_rules(start.rules, study)),
    }


def acting_rules(rules: Sequence[AppliedRule], study: Study) -> list[AppliedRule]:
    """Without the rules for a field to which every recipe of the study gives another value."""
    recipes = [*study.recipes.values(), *(search.base for search in study.searches)]
    values = [flat_fields(recipe) for recipe in recipes]
    return [rule for rule in rules if any(rule.value == own[rule.name] for own in values)]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"


def _storage(given: str | None) -> Path:
    """The storage folder, absolute; ValueError where it cannot be written."""
    default = JOB_STORAGE if os.environ.get(JOB_VARIABLE) else STORAGE
    return writable_folder(given or default, "--storage").resolve()


def _trials(study: Study, data: DataSet) -> list[Trial]:
    """The study's trials; ValueError where two of them are the same or one does not fit."""
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
    """ValueError where a search could suggest a recipe that the data cannot train."""
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
    """ValueError where the data have too few images for the recipe."""
    steps_per_epoch(recipe, data.num_images("train", recipe))
    data.num_images("minival", recipe)


def _job(data: DataSet, trial: Trial) -> Job:
    """The trial with its work."""
    num_train = data.num_images("train", trial.recipe)
    num_steps = steps_per_epoch(trial.recipe, num_train) * trial.recipe.schedule.total_epochs
    macs = train_macs(trial.recipe, num_train, data.num_classes)
    return Job(trial=trial, num_steps=num_steps, train_macs=macs)


def _in_order(trials: Sequence[Trial], data: DataSet) -> list[Trial]:
    """The trials in the order to start them.

    A seed of every recipe comes before the next seed, so that a study cut short has them all;
    within that the longest first, so that none of the long ones is left alone at the end.
    """
    seen: Counter[str] = Counter()
    ranks = []
    for trial in trials:
        ranks.append((seen[trial.label], -_job(data, trial).train_macs))
        seen[trial.label] += 1
    return [trial for _, trial in sorted(zip(ranks, trials, strict=True), key=lambda row: row[0])]


def _plan(request: Request, options: argparse.Namespace) -> Plan:
    """What is left of the study, priced for this machine, or for a TPU of the kind named."""
    facts = request.facts
    nodes = plan_nodes(options.accelerator)
    part = share(options.accelerator, nodes)
    check_batches(request, part)
    concurrency = options.max_concurrent or part.slots(nodes)
    folder = StudyFolder(request.storage, request.name, reuse=request.reuse)
    device = device_of(part)
    rerun = Rerun(folder)
    anew = rerun.begins_with(request)
    known = [] if anew else [*request.trials, *folder.trials_to_go_on()]
    reuse = request.reuse and not (anew or rerun.is_under_way)
    return plan(
        request.trials,
        facts["num_train"],
        facts["num_classes"],
        searches=request.study.searches,
        num_images=request.num_images,
        runs=[folder.run(trial) for trial in known],
        finished=folder.finished_elsewhere(request.trials) if reuse else (),
        rates=known_rates(request.storage, device, concurrency),
        device=device,
        num_devices=part.num_devices,
        concurrency=concurrency,
        price_per_hour=options.price_per_hour,
        grant_hours=options.grant_hours,
    )
