"""The subcommand `mambaout train`: from its options to a run.

torch is imported only after the request has been checked, so that help and errors appear at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambaout.applied_rules import PRECISION, AppliedRule, precision_rule, rule_lines
from mambaout.command_line import add_compile_option, whole_number, writable_folder
from mambaout.commands.dense import run_dense
from mambaout.commands.dense_options import add_dense_options, refuse_dense_options
from mambaout.commands.detect import DetectCommand
from mambaout.commands.options import (
    DEFAULT_STORAGE,
    MOST_WORKERS,
    STAGE_HELP,
    WORKERS_HELP,
    folder,
    load_workers,
)
from mambaout.commands.segment import SegmentCommand
from mambaout.data.packing.data_option import add_data_option, given_data
from mambaout.data.shards.column_options import add_column_options, given_columns
from mambaout.errors import WrongRequest
from mambaout.fields import WrongValues, all_of
from mambaout.launch.start_weights import INIT, add_init_option, facts_of_weights, start_weights
from mambaout.numbers import clock_text, percent_text, rate_text
from mambaout.options import add_recipe_options, check_used, given_fields, given_recipe
from mambaout.recipe import BASELINE, Recipe, flat_fields, following, recipe_from_json, tuned
from mambaout.recompute import add_recompute_option, check_recompute
from mambaout.rules import FittedRecipe, WeightsFacts, fitted
from mambaout.study.study import CHECKPOINT_FILE
from mambaout.train.imports import import_training
from mambaout.variants import VARIANTS, ModelConfig, variant

if TYPE_CHECKING:
    from mambaout.data.shards.data_set import DataSet
    from mambaout.model.initial import InitialWeights
    from mambaout.model.weights import BackboneLoad
    from mambaout.train.backend import Backend
    from mambaout.train.outcomes import Preempted

MOST_SEED = 2**63 - 1  # the largest whole number of most databases
GO_ON = "the same command continues"
DENSE_TASKS = {"detect": DetectCommand(), "segment": SegmentCommand()}
PAPER = "paper"  # --recipe takes this word or a file


def add_train(commands: argparse._SubParsersAction) -> None:
    """Give the command line the subcommand `train`."""
    parser = commands.add_parser(
        "train",
        help="train one recipe; the same command again continues it",
        usage="mambaout train [VARIANT] --data DATA --out DIR [--FIELD VALUE ...]",
        description="Train one recipe on one data set into a run directory. The same command again "
        "continues a run that was stopped.",
        epilog="Without --recipe, fields that are not given follow the data and the device: few or "
        "small images get another batch, rate, length and augmentation than the paper's, what has "
        "bf16 units multiplies in bf16, and each is printed. "
        "With --recipe the fields are the recipe's; there the learning rates follow --global-batch "
        "linearly, and the warm-up stays the same share of --epochs. Exit status: 0 finished, or "
        "as many steps done as --max-steps says; 1 not finished (the same command goes on), 2 the "
        "request was wrong (nothing started), 130 interrupted.",
    )
    add = parser.add_argument
    text = f"the network's shape: {', '.join(VARIANTS)} (default: that of --init, or one that fits)"
    add("variant", nargs="?", metavar="VARIANT", help=text)
    add_data_option(add)
    add_column_options(add)
    add("--out", metavar="DIR", help="the run directory, new or of this run")
    add_init_option(add)
    text = "a recipe.json to train or to start from, or `paper` for the paper's, whatever the data"
    add("--recipe", metavar="FILE", help=text)
    add("--seed", type=whole_number(0, MOST_SEED), default=0, metavar="N", help="default 0")
    add("--backend", choices=["cpu", "cuda", "xla"], help="default: what is there")
    add_compile_option(add)
    add("--stage", type=folder, metavar="DIR", help=STAGE_HELP)
    add("--workers", type=whole_number(0, MOST_WORKERS), metavar="N", help=WORKERS_HELP)
    add_recompute_option(add)
    text = "end after step N, with status 0; resumable (default: train to the end)"
    add("--max-steps", type=whole_number(1), metavar="N", help=text)
    text = "steps between records and lines of progress (default 50)"
    add("--log-every-steps", type=whole_number(1), default=50, metavar="N", help=text)
    add("--smoke", action="store_true", help="a minute on the digits: does it run?")
    text = "classify images (default), detect objects or segment: see the last group of options"
    add("--task", choices=["classify", *DENSE_TASKS], default="classify", help=text)
    add_recipe_options(parser, skip={INIT})
    add_dense_options(parser)
    parser.set_defaults(run=_run_train)


def _run_train(options: argparse.Namespace) -> int:
    if options.task in DENSE_TASKS:
        command = DENSE_TASKS[options.task]
        return run_dense(command, options, lambda: _out_of(options), _stop_on_signal)
    refuse_dense_options(options)
    choice, data_name, out, (initial, weights), _ = all_of(
        lambda: recipe_choice(options),
        lambda: given_data(options),
        lambda: _out_of(options),
        lambda: _given_weights(options),
        lambda: check_recompute(options.recompute, options.backend),
    )
    if options.workers or options.backend in ("cuda", "xla"):
        from mambaout.data.batches.makers import warm_workers

        warm_workers()  # at the same time as this process's own imports
    import_training()
    from mambaout.cache import default_cache
    from mambaout.data.packing.sources import open_data
    from mambaout.data.packing.stage import stage
    from mambaout.recipe import steps_per_epoch
    from mambaout.train.backend import backend
    from mambaout.train.loop import train
    from mambaout.train.outcomes import Diverged, Finished, OutOfMemory, Preempted

    data = open_data(data_name, **given_columns(options))
    chosen = choice(data, weights)
    recipe = chosen.recipe
    check_used(given_fields(options), [recipe.model])
    begins = not (out / CHECKPOINT_FILE).exists()
    if initial is not None and begins:
        print(initial.about(_plan(initial, recipe, data)))
    per_epoch, _, where = all_of(
        lambda: steps_per_epoch(recipe, data.num_images("train", recipe)),
        lambda: data.num_images("minival", recipe),
        lambda: backend(options.backend, cache=default_cache() / "xla", compiles=options.compile),
    )
    recipe = _on_device(chosen, where, out, options)
    if options.stage is not None:
        data = stage(data, options.stage)
    num_steps = per_epoch * recipe.schedule.total_epochs
    stop = _stop_on_signal()
    drawn = f" drawn by seed {options.seed}" if recipe.subset == "seed" else ""
    print(
        f"{data.name}: {data.num_images('train', recipe)} training images{drawn}, "
        f"{data.num_classes} classes; {num_steps} steps of {recipe.global_batch} into {out}"
    )
    began: list[bool] = []
    try:
        outcome = train(
            recipe,
            data,
            out=out,
            backend=where,
            seed=options.seed,
            init=None if initial is None else initial.weights.path,
            sinks=[_progress_printer(num_steps)],
            max_steps=options.max_steps,
            log_every_steps=options.log_every_steps,
            num_workers=load_workers(options.workers, where.name),
            recompute=options.recompute,
            stop=stop,
            began=lambda: began.append(True),
        )
    except WrongRequest as error:
        if not began:
            raise
        # The request was right, but the data or the machine have changed.
        print(f"mambaout train: {error}; once that is mended, {GO_ON}", file=sys.stderr)
        return 1
    match outcome:
        case Finished(metrics=final):
            print(
                f"finished: top-1 {percent_text(final['top1'])}, "
                f"top-5 {percent_text(final['top5'])}, "
                f"{rate_text(final['images_per_second'])} images/s; {out / 'outcome.json'}"
            )
            return 0
        case Preempted() if options.max_steps is not None and outcome.step >= options.max_steps:
            print(_steps_done(options.max_steps, outcome, num_steps))
            return 0
        case Preempted(step=step):
            print(f"stopped at step {step} of {num_steps}; {GO_ON}")
            return 1
        case Diverged(step=step):
            print(f"diverged: the loss was not finite at step {step}; try a smaller --peak-lr")
            return 1
        case OutOfMemory():
            print(outcome.text)
            return 1


def _steps_done(asked: int, outcome: Preempted, num_steps: int) -> str:
    """The message for a run that has reached --max-steps."""
    if outcome.step > outcome.began:
        return (
            f"stopped at step {outcome.step} of {num_steps}, as --max-steps says; a larger one "
            "continues, as does the command without it"
        )
    return (
        f"nothing to do: the run is at step {outcome.step} of {num_steps} already, and --max-steps "
        f"is {asked}; a larger one continues, as does the command without it"
    )


def _out_of(options: argparse.Namespace) -> Path:
    name = "train-smoke" if options.task == "classify" else f"train-{options.task}-smoke"
    text = str(DEFAULT_STORAGE / name) if options.smoke else None
    text = options.out if options.out is not None else text
    if text is None:
        raise WrongRequest("--out is missing: the folder that the run writes to, like runs/femto")
    return writable_folder(text, "--out")


def _given_weights(
    options: argparse.Namespace,
) -> tuple[InitialWeights | None, WeightsFacts | None]:
    """The weights of --init, and what the rules need of them; None without the option.

    If the file is gone, a run that has begun from it goes on: then there are only the facts.
    """
    if options.init is None:
        return None, None
    try:
        initial = start_weights(options.init, DEFAULT_STORAGE)
    except WrongRequest:
        begun = _begun_from_weights(options.out)
        if begun is None:
            raise
        print(f"--init: {options.init} is not there; the run in {options.out} goes on without it")
        return None, begun
    return initial, facts_of_weights(initial)


def _begun_from_weights(out: str | None) -> WeightsFacts | None:
    """The facts of the weights that the run in `out` has begun from; None if there is none."""
    if out is None or not (Path(out) / CHECKPOINT_FILE).exists():
        return None
    try:
        recipe = recipe_from_json((Path(out) / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, WrongRequest, UnicodeDecodeError):
        return None
    return None if recipe.init is None else WeightsFacts(digest=recipe.init, model=recipe.model)


def _plan(initial: InitialWeights, recipe: Recipe, data: DataSet) -> BackboneLoad:
    """What the network loads of the weights. A WrongRequest names the option."""
    try:
        return initial.plan(recipe.model, data.num_classes)
    except WrongRequest as error:
        raise WrongRequest(
            f"--init: {error}. Without VARIANT and shape options the network is the weights' own"
        ) from error


RecipeChoice = Callable[..., FittedRecipe]


def recipe_choice(options: argparse.Namespace) -> RecipeChoice:
    """A function from the data, and the weights to start from, to the recipe that the options
    describe. It needs no device.

    Errors that do not depend on the data are raised now.
    """
    parts = (
        lambda: None if options.recipe is None else _recipe_in(options.recipe),
        lambda: None if options.variant is None else variant(options.variant),
    )
    try:
        known, shape = all_of(*parts)
    except WrongValues:
        all_of(*parts, lambda: given_fields(options))  # also report errors in the fields
        raise
    if known is None:
        given = given_fields(options)
        return partial(_fitting, shape=shape, given=given, smoke=options.smoke)
    if options.smoke:
        raise WrongRequest("--smoke trains a small recipe of its own; leave --recipe out")
    flat = flat_fields(known) | ({} if shape is None else flat_fields(shape))
    recipe = given_recipe(flat, options)
    if moved := following(flat, given_fields(options)):
        shown = ", ".join(f"{name}={value:.4g}" for name, value in moved.items())
        print(f"following the options that are given: {shown}")
    return partial(_known, recipe=recipe)


def _known(data: DataSet, weights: WeightsFacts | None = None, *, recipe: Recipe) -> FittedRecipe:
    """The recipe of --recipe, for any data."""
    if weights is not None:
        recipe = tuned(recipe, init=weights.digest)
    return FittedRecipe(recipe, ())


def _fitting(
    data: DataSet,
    weights: WeightsFacts | None = None,
    *,
    shape: ModelConfig | None,
    given: Mapping[str, Any],
    smoke: bool,
) -> FittedRecipe:
    """The recipe that the rules choose for the data."""
    from mambaout.data.images.decode import Images
    from mambaout.data.packing.sizes import facts_of

    facts = facts_of(data, Images(data, "train"))
    print(f"{data.name}: {facts}")
    return fitted(facts, shape, given=given, weights=weights, smoke=smoke)


def _on_device(
    chosen: FittedRecipe, where: Backend, out: Path, options: argparse.Namespace
) -> Recipe:
    """The recipe with its precision on these devices. Prints the rules that acted.

    A run that has begun keeps its precision on any machine. With --recipe, the precision is the
    recipe's.
    """
    devices = {where.device_name: True} if where.multiplies_bf16 else {}
    rule = precision_rule(devices)
    recipe, rules = chosen.recipe, list(chosen.rules)
    free = PRECISION not in given_fields(options)
    if free and options.recipe is None:
        begun = _begun_in(out, recipe)
        default = recipe.precision if rule is None else rule.value
        if begun is not None and begun != default:
            reason = f"the run in {out} was begun with it; here it would be {default}"
            rule = AppliedRule(PRECISION, begun, reason)
        if rule is not None:
            recipe = tuned(recipe, precision=rule.value)
            rules.append(rule)
    elif free and rule is not None and recipe.precision != rule.value:
        print(f"precision {recipe.precision} as in the recipe; {rule.reason}: --precision bf16")
    if rules:
        follows = "the data, the weights" if options.init is not None else "the data"
        print(f"what follows {follows} and the device (each is an option):")
    for line in rule_lines(rules):
        print(f"    {line}")
    return recipe


def _begun_in(out: Path, recipe: Recipe) -> str | None:
    """The precision of the run in `out`, if that run otherwise has the same recipe."""
    try:
        kept = recipe_from_json((out / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, WrongRequest, UnicodeDecodeError):
        return None  # the training will report the error
    return kept.precision if replace(kept, precision=recipe.precision) == recipe else None


def _recipe_in(name: str) -> Recipe:
    """The paper's recipe or the recipe in a file. ValueError names a file without a recipe."""
    if name == PAPER:
        return BASELINE
    path, where = Path(name), f"--recipe {name}" if name else "--recipe (empty)"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise WrongRequest(
            f"{where} is no text; give the recipe.json of a run; weights go to --init"
        ) from None
    except IsADirectoryError:
        raise WrongRequest(
            f"{where} is a folder; give a file, like {path / 'recipe.json'}"
        ) from None
    except OSError as error:
        raise WrongRequest(f"{where} cannot be read: {error.strerror}") from None
    return recipe_from_json(text, where)


def _stop_on_signal() -> Callable[[], bool]:
    """A function that returns True after SIGTERM, which a spot machine sends before it stops."""
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
    return lambda: bool(seen)


def _progress_printer(num_steps: int) -> Callable:
    def show(record) -> None:
        left = record.seconds / record.step * (num_steps - record.step)
        names = {
            "train/loss": ("loss", ".3f"),
            "minival/top1": ("minival top-1", ".2f"),
            "val/top1": ("val top-1", ".2f"),
            "images_per_second": ("images/s", ".0f"),
        }
        shown = [
            f"{label} {record.values[name]:{style}}"
            for name, (label, style) in names.items()
            if name in record.values
        ]
        print(
            f"step {record.step}/{num_steps}  epoch {record.epoch:.1f}  {'  '.join(shown)}"
            f"  ETA {clock_text(left)}",
            flush=True,
        )

    return show
