"""Calibrate a study's recipes, before it starts, on the shares that its trials will have.

A few recipes that differ most, among them the smallest and the largest, train for some seconds
each. As many train at once as trials will, because trials on one machine slow each other down. The
measured times are appended to STORAGE/rates.jsonl, which study/price/rates.py reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from mambaout.errors import WrongRequest
from mambaout.launch.cluster import cluster_address, join, leave, start
from mambaout.launch.failures import one_line
from mambaout.launch.request import check_share
from mambaout.launch.resources import Share, share, this_machine
from mambaout.launch.worker import WorkerSetup
from mambaout.numbers import counted, hours_text, rate_text
from mambaout.recipe import Recipe, canonical_json, recipe_from_json, with_global_batch
from mambaout.recompute import check_recompute
from mambaout.study.price.rates import Rate, add_calibrated, assumed_image_seconds, features
from mambaout.study.price.trial_price import search_recipes
from mambaout.train.cpu import cpu_name

if TYPE_CHECKING:
    from mambaout.launch.request import Request

SECONDS = 10.0  # of training for each recipe
OTHER_SECONDS = 5.0  # for each recipe's first step and evaluation
START_SECONDS = 15.0  # to start Ray, and torch and the data in its workers
MOST_RECIPES = 6
STEP_SHARE = 0.2  # longest step, as a share of SECONDS; 4096 images take an hour on a core


def device_of(part: Share) -> str:
    """The device name that trials report on such a share of this machine."""
    if part.device is not None:
        return part.device
    if part.backend == "cpu":
        return cpu_name(part.cpus)  # without torch, so that a plan is printed at once
    from mambaout.train.backend import backend

    compiles = None if part.backend == "xla" else False  # it would try the compiler now
    return backend(part.backend, compiles=compiles).device_name


def run_calibration(
    request: Request, *, seconds: float = SECONDS, say: Callable[[str], None] = print
) -> list[Rate]:
    """Calibrate a few of the request's recipes on the machines where its trials will run.

    Returns the rates, which are also written to the storage. Starts Ray or joins the cluster, and
    leaves it again.
    """
    address = cluster_address(request.address)
    with ExitStack() as cleanup:
        nodes = [this_machine(request.accelerator)]
        if address:
            nodes = join(address)
            cleanup.callback(leave)
        part = share(request.accelerator, nodes)
        check_share(request, part)
        if part.num_hosts > 1:
            raise WrongRequest(
                f"--calibrate trains on one machine, and {part.accelerator} is {part.num_hosts}: "
                "calibrate with --accelerator tpu-v3-8; the plan of a slice goes by that too"
            )
        check_recompute(request.recompute, part.backend)
        # One machine is loaded fully. The other machines of a cluster do not change its speed.
        slots = max(part.slots([node]) for node in nodes)
        slots = min(slots, request.max_concurrent or slots)
        recipes = most_different(_recipes(request), request.facts["num_classes"], slots)
        waves = -(-len(recipes) // slots)
        expected = waves * (seconds + OTHER_SECONDS) + START_SECONDS
        say(
            f"calibrating {counted(len(recipes), 'recipe')} on {part.accelerator}, {slots} at a "
            f"time as trials will be: about {hours_text(expected / 3600)}"
            + (f" once the shards are in {request.stage}" if request.stage else "")
        )
        if not address:
            cleanup.callback(leave)
            start(nodes[0])
        crew = _Crew(request, part, slots, seconds, width=max(map(len, recipes)))
        rates: list[Rate] = []
        for first in range(0, len(recipes), slots):
            wave = crew.calibrate(dict(list(recipes.items())[first : first + slots]), say)
            add_calibrated(request.storage, wave)
            rates += wave
    return rates


def _recipes(request: Request) -> dict[str, Recipe]:
    """The study's recipes, by label."""
    found = {trial.label: trial.recipe for trial in request.trials}
    for search in request.study.searches:
        for i, recipe in enumerate(search_recipes(search)):
            found[f"{search.label} (search{f', {i}' if i else ''})"] = recipe
    return found


def most_different(
    recipes: Mapping[str, Recipe], num_classes: int, slots: int
) -> dict[str, Recipe]:
    """Choose six of the recipes, or enough to fill the slots.

    The first has the fewest MACs. Each next one is the farthest from those already chosen, in units
    at which times begin to differ.
    """
    points = {label: features(recipe, num_classes) for label, recipe in recipes.items()}
    chosen = [min(points, key=lambda label: points[label][0])]
    most = -(-MOST_RECIPES // slots) * slots

    def distance(label: str) -> float:
        return min(float(np.linalg.norm(points[label] - points[other])) for other in chosen)

    while len(chosen) < most:
        farthest = max(points, key=distance)
        if distance(farthest) == 0:  # the others differ in nothing that takes time
            break
        chosen.append(farthest)
    return {label: recipes[label] for label in chosen}


class _Crew:
    """Ray workers, one for each slot, that calibrate at the same time."""

    def __init__(
        self, request: Request, part: Share, slots: int, seconds: float, width: int
    ) -> None:
        import ray

        self.slots, self.seconds, self.width = slots, seconds, width
        self.made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.num_classes = request.facts["num_classes"]
        self._ray: Any = ray
        self._work: Any = ray.remote(
            num_cpus=part.cpus,
            num_gpus=part.gpus,
            resources={"TPU": part.chips} if part.chips else {},
            label_selector=part.label_selector,
            max_retries=0,
            max_calls=1 if part.chips else 0,  # a process that stays alive would keep its chips
        )(_calibrate)
        self._setup = WorkerSetup.of(request, part)
        self._fingerprint = request.fingerprint

    def calibrate(self, recipes: Mapping[str, Recipe], say: Callable[[str], None]) -> list[Rate]:
        """Calibrate the recipes at the same time.

        If there are fewer recipes than slots, some are calibrated twice. With an empty slot, the
        measured speed would be too high.
        """
        labels = list(recipes)
        labels = [labels[i % len(labels)] for i in range(self.slots)]
        tasks = [self._begin(recipes[label]) for label in labels]
        rates = []
        for label, task in zip(labels, tasks, strict=True):
            try:
                found = self._ray.get(task)
            except Exception as error:  # Ray's copy of any error; it is reported and not raised
                cause = getattr(error, "cause", None) or error
                say(f"    {label:{self.width}}  not calibrated: {one_line(cause)}")
                continue
            rates.append(
                Rate(
                    kind="calibrated",
                    recipe=recipes[label],
                    num_classes=self.num_classes,
                    device=found["device"],
                    num_devices=found["num_devices"],
                    train_image_seconds=1 / found["images_per_second"],
                    eval_image_seconds=1 / found["eval_images_per_second"],
                    slots=self.slots,
                    source=label,
                    made=self.made,
                )
            )
            say(
                f"    {label:{self.width}}  {rate_text(found['images_per_second'])} images/s, "
                f"evaluating {rate_text(found['eval_images_per_second'])}"
            )
        return rates

    def _begin(self, recipe: Recipe) -> Any:
        short = _shortened(recipe, self.num_classes, self._setup.backend, self.seconds)
        return self._work.remote(
            self._setup, canonical_json(short), self._fingerprint, self.seconds
        )


def _shortened(recipe: Recipe, num_classes: int, backend: str, seconds: float) -> Recipe:
    """`recipe` with its batch halved until a few steps fit into `seconds`.

    The estimate uses the assumed speed of a core. Apart from the optimizer, an image takes the same
    time in a smaller batch.
    """
    if backend != "cpu":
        return recipe
    each = assumed_image_seconds(recipe, num_classes, "cpu")
    while recipe.global_batch % 4 == 0 and recipe.global_batch * each > STEP_SHARE * seconds:
        recipe = with_global_batch(recipe, recipe.global_batch // 2)
    return recipe


def _calibrate(setup: WorkerSetup, recipe: str, fingerprint: str, seconds: float) -> dict[str, Any]:
    """The work of one worker."""
    from mambaout.train.calibrate import calibrate

    setup.prepare()
    data, backend = setup.open(fingerprint)
    found = calibrate(
        recipe_from_json(recipe),
        data,
        backend,
        seconds=seconds,
        num_workers=setup.num_workers,
        recompute=setup.recompute,
    )
    backend.free_memory()
    return asdict(found)
