"""Reads weights from files of timm, of the authors and of our runs; writes files that timm reads.

    weights = read_weights("model_best.pth.tar")     # the EMA weights if the file holds them
    load_weights(build(weights.recipe.model, weights.num_classes), weights)
    print(load_backbone(build("tiny", num_classes=3), weights).text)   # to start a training from

Read:  .safetensors, and .pth, .pth.tar, .pt, .bin, .ckpt with torch_file.py, which runs no code
       of the file. The tensors may lie at the top of the file or where timm's own loader looks.
       Their names may have the prefixes of torch.compile and DataParallel.
Write: .safetensors with timm's names. The metadata holds the shape, so the file alone tells which
       network to build. timm_call.py writes the timm call for that shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mambaout.code_version import CODE_VERSION, said_version
from mambaout.durable import replacing
from mambaout.errors import WrongRequest
from mambaout.model.dense_checkpoint import (
    NORMS,
    backbone_in,
    require_ours,
    said_by,
    task_of,
)
from mambaout.model.file_shape import shape_in, shape_text
from mambaout.model.network import MambaOut, Trunk
from mambaout.model.tensor_names import from_authors, unwrapped
from mambaout.model.torch_file import printable, read_torch
from mambaout.recipe import BASELINE, Recipe, canonical_json, recipe_from_json
from mambaout.variants import VARIANTS

SAFETENSORS = ".safetensors"
# The places of the tensors in a checkpoint, in the order in which timm's loader looks.
EMA_SETS = ("state_dict_ema", "model_ema")
PLAIN_SETS = ("state_dict", "model")
HEAD = "head."  # of the names of the classifier; all other names are the backbone's
CLASSIFIER = "head.fc"  # the only layer whose shape depends on the number of classes
SHOWN_NAMES = 3  # names of tensors in an error


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One set of tensors from a file, under our names, and what the file says about it."""

    path: Path
    tensors: Mapping[str, Tensor]
    place: str  # where the tensors were: one of EMA_SETS or PLAIN_SETS; "": the top of the file
    is_ema: bool
    other: str | None  # another set in the file that was not chosen
    recipe: Recipe | None  # None: the file does not say the network's shape
    code_version: int | None = None  # of the training; None: not our file, or not stored
    task: str | None = None  # of the run, like "detect"; None: a classifier, or not our run
    checkpoint: Mapping[str, Any] = field(default_factory=dict)  # of such a run: what it holds

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the head; None for a file without a head."""
        weight = self.tensors.get(f"{CLASSIFIER}.weight")
        return None if weight is None or weight.ndim == 0 else len(weight)

    @property
    def text(self) -> str:
        """A text for people about which weights these are: "EMA weights (state_dict_ema; ...)"."""
        if self.task is not None:
            return f"the backbone of a run with --task {self.task}"
        kind = "EMA weights" if self.is_ema else "plain weights"
        if self.other is None:
            return f"{kind}, the only ones in the file"
        way = "--no-ema takes" if self.is_ema else "without --no-ema it is"
        return f"{kind} ({self.place}; {way} {self.other})"

    @property
    def of_other_numbers(self) -> list[str]:
        """One line if code of another version trained the weights; it computes other numbers."""
        if self.code_version in (None, CODE_VERSION):
            return []
        return [
            f"trained by code version {self.code_version}, and this mambaout is of {CODE_VERSION}: "
            "what the run itself measured may not come again"
        ]


@dataclass(frozen=True)
class WeightDifference:
    """The differences between a file's tensors and a model's; false if all tensors fit."""

    missing: tuple[str, ...]  # names that only the model has
    unexpected: tuple[str, ...]  # names that only the file has
    misfits: Mapping[str, str]  # name -> what the file has and what the model needs

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misfits)

    @property
    def in_classifier_alone(self) -> bool:
        """Whether the only difference is the number of classes."""
        names = {f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias"}
        elsewhere = self.missing or self.unexpected or self.misfits.keys() - names
        return bool(self.misfits) and not elsewhere

    @property
    def text(self) -> str:
        """A few names of each kind, and how many there are."""
        found = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": [f"{printable(name)} is {what}" for name, what in self.misfits.items()],
        }
        return "; ".join(_few(kind, names) for kind, names in found.items() if names)


@dataclass(frozen=True, kw_only=True)
class BackboneLoad:
    """What `load_backbone` has loaded from a file, and what it has not."""

    path: Path
    loaded: tuple[str, ...]  # names of tensors
    fresh: tuple[str, ...]  # names that keep the values which the model had
    unused: tuple[str, ...]  # names that only the file has
    classes: tuple[int | None, int | None]  # of the file's head and of the model's; None: no head

    @property
    def text(self) -> str:
        """One line for people: what is loaded, what is new, and what is left out."""
        num, theirs, ours = len(self.loaded), *self.classes
        said = [f"{num} of {num + len(self.fresh)} tensors from {self.path}"]
        if self.fresh:
            layers = ", ".join(dict.fromkeys(map(_layer, self.fresh)))
            has = "no head" if theirs is None else f"{theirs} classes"
            said.append(f"new: {layers} (the file has {has}, and the network {ours} classes)")
        left_out = [name for name in self.unused if name not in self.fresh]
        if left_out:
            said.append(f"not used: {', '.join(dict.fromkeys(map(_layer, left_out)))}")
        return "; ".join(said)


def _layer(name: str) -> str:
    return printable(name.rpartition(".")[0] or name)


def _few(kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:SHOWN_NAMES])
    more = len(names) - SHOWN_NAMES
    return f"{len(names)} {kind}: {shown}" + (f" and {more} more" if more > 0 else "")


def read_weights(path: Path | str, *, ema: bool = True) -> Weights:
    """The weights in the file at `path`, on the CPU.

    With `ema` these are the EMA weights if the file holds them, like in timm, else the plain
    weights. Without `ema` they are the plain weights. Raises ValueError, with one line that names
    the file, if the file is damaged, could run code, or has no weights.
    """
    path = Path(path)
    saved = _read_safetensors(path) if path.suffix == SAFETENSORS else read_torch(path)
    if not isinstance(saved, Mapping):
        raise _no_weights(path)
    present = [name for name in (*EMA_SETS, *PLAIN_SETS) if isinstance(saved.get(name), Mapping)]
    averaged = [name for name in present if name in EMA_SETS]
    plain = [name for name in present if name in PLAIN_SETS]
    if averaged and not plain and not ema:
        raise WrongRequest(f"{path} holds EMA weights alone ({averaged[0]}); leave --no-ema out")
    place = next(iter((averaged if ema else []) + plain), "")
    passed_over = (plain if place in averaged else averaged)[:1]
    state = saved[place] if place else saved.get(_TENSORS, saved)
    if not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()) or not state:
        raise _no_weights(path)
    task = task_of(saved)
    try:
        if task is None:
            require_ours(unwrapped(state))
        return Weights(
            path=path,
            tensors=from_authors(unwrapped(state)) if task is None else backbone_in(state),
            place=place,
            is_ema=place in EMA_SETS or saved.get(_IS_EMA) == "true",
            other=passed_over[0] if passed_over else None,
            recipe=_recipe_in(saved),
            code_version=_code_version_in(saved),
            task=task,
            checkpoint={} if task is None else said_by(saved),
        )
    except WrongRequest as error:
        raise WrongRequest(f"{path}: {error}") from error


_TENSORS = "tensors"  # the key of _read_safetensors for the tensors, beside the metadata's keys
_CODE_VERSION = "code_version"  # metadata, if the version is known
_IS_EMA = "ema"  # metadata: "true" in a file that was exported from EMA weights


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return metadata | {_TENSORS: load_file(path)}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        reason = printable(str(error))
        raise WrongRequest(f"{path} is no whole safetensors file: {reason}") from error


def _no_weights(path: Path) -> WrongRequest:
    places = ", ".join((*EMA_SETS, *PLAIN_SETS))
    return WrongRequest(
        f"{path} holds no weights: expected tensors by name, at the top or under one of {places}"
    )


def _recipe_in(saved: Mapping[str, Any]) -> Recipe | None:
    """The recipe in a file; None if the file does not tell the network's shape.

    A file that tells only the shape gives BASELINE with that shape. That is one of our own files,
    like a detection's checkpoint, or a file of timm's that names a published variant.
    """
    if isinstance(text := saved.get("recipe"), str):
        return recipe_from_json(text) if task_of(saved) is None else _shaped(json.loads(text))
    if isinstance(text := saved.get("model"), str) and text.startswith("{"):
        return _shaped({"model": json.loads(text)})
    named = str(saved.get("arch")).partition(".")[0].removeprefix("mambaout_")
    # With this option timm's train.py can change a published shape without changing its name.
    if named in VARIANTS and not getattr(saved.get("args"), "model_kwargs", None):
        return replace(BASELINE, model=VARIANTS[named])
    return None


def _shaped(said: Mapping[str, Any]) -> Recipe:
    body = json.loads(canonical_json(BASELINE)) | {"model": said.get("model")}
    return recipe_from_json(json.dumps(body))


def _code_version_in(saved: Mapping[str, Any]) -> int | None:
    """The code version of a run's checkpoint, or of a file that was exported from one."""
    identity = saved.get("identity")
    if isinstance(identity, Mapping):
        version = said_version(identity)
        return version if isinstance(version, int) else None
    text = str(saved.get(_CODE_VERSION))
    return int(text) if text.isdecimal() else None


def difference(model: nn.Module, weights: Weights) -> WeightDifference:
    """The differences between `weights` and the parameters of `model`."""
    wanted, found = model.state_dict(), weights.tensors
    misfits = {}
    for name, tensor in wanted.items():
        if name not in found:
            continue
        given = found[name]
        if given.shape != tensor.shape:
            misfits[name] = f"{tuple(given.shape)}, the model's {tuple(tensor.shape)}"
        elif not given.is_floating_point() or given.layout != torch.strided or given.is_meta:
            misfits[name] = f"{given.dtype} {given.layout}, not dense numbers"
    return WeightDifference(
        missing=tuple(name for name in wanted if name not in found),
        unexpected=tuple(name for name in found if name not in wanted),
        misfits=misfits,
    )


def load_weights(model: MambaOut, weights: Weights) -> None:
    """Load `weights` into `model`, in place: all or none. A ValueError says what does not fit."""
    differing = difference(model, weights)
    if differing.in_classifier_alone and weights.num_classes != model.num_classes:
        raise WrongRequest(
            f"{weights.path} has a head of {weights.num_classes} classes, and the data has "
            f"{model.num_classes}"
        )
    if differing:
        raise WrongRequest(
            f"{weights.path} does not fit the network (dims {model.config.dims}, depths "
            f"{model.config.depths}, {model.num_classes} classes): {differing.text}"
        )
    model.load_state_dict(dict(weights.tensors))


def load_trunk(trunk: Trunk, weights: Weights) -> int:
    """Load `weights` without a classifier's head into `trunk`, in place: all or none.

    Returns the number of tensors that were left out. A ValueError says what does not fit.
    """
    kept = {name: t for name, t in weights.tensors.items() if not name.startswith(HEAD)}
    if differing := difference(trunk, replace(weights, tensors=kept)):
        raise WrongRequest(
            f"{weights.path} does not fit the backbone (dims {trunk.config.dims}, depths "
            f"{trunk.config.depths}): {differing.text}"
        )
    trunk.load_state_dict(kept)
    return len(weights.tensors) - len(kept)


def load_backbone(model: nn.Module, weights: Weights) -> BackboneLoad:
    """Load `weights` into the backbone of `model`, in place, and into the head what fits there.

    `model` is a MambaOut, or a module with the names of its stem and stages and without a head.
    Stem and stages are loaded as a whole. A layer of the head that the file lacks, or that has
    another shape there, keeps the values of `model`: for another number of classes that is the last
    linear layer alone. Raises WrongRequest, and loads nothing, if the backbone does not fit; it
    names the network that the file seems to hold and the first tensor that differs.
    """
    found = backbone_load(model, weights)
    model.load_state_dict({name: weights.tensors[name] for name in found.loaded}, strict=False)
    return found


def backbone_load(model: nn.Module, weights: Weights) -> BackboneLoad:
    """What `load_backbone` would load. It loads nothing, so `model` may be on the meta device."""
    differing, wanted = difference(model, weights), model.state_dict()
    wrong = [*differing.missing, *differing.misfits, *differing.unexpected]
    if any(map(_is_body, wrong)):
        raise _other_network(model, weights, differing)
    lost = {_layer(name) for name in (*differing.missing, *differing.misfits)}
    loaded = tuple(name for name in wanted if _layer(name) not in lost)
    return BackboneLoad(
        path=weights.path,
        loaded=loaded,
        fresh=tuple(name for name in wanted if _layer(name) in lost),
        unused=tuple(name for name in weights.tensors if name not in loaded),
        classes=(weights.num_classes, getattr(model, "num_classes", None)),
    )


def _other_network(model: nn.Module, weights: Weights, differing: WeightDifference) -> WrongRequest:
    found, shape = weights.tensors, shape_in(weights.tensors)
    if shape is None and weights.recipe is not None:  # of another mixer, which tensors do not show
        shape = weights.recipe.model
    seems = "no MambaOut" if shape is None else shape_text(shape)
    ours = getattr(model, "config", None)
    network = "the network" if ours is None else f"the network, which is {shape_text(ours)}"
    differs = [*differing.misfits, *differing.missing]
    first = next((name for name in model.state_dict() if name in differs and _is_body(name)), None)
    if first is not None and first in differing.misfits:
        said = f"{first} is {differing.misfits[first]}"
    elif first is not None:
        said = f"it has no {first}"
    else:
        extra = next(name for name in found if name in differing.unexpected and _is_body(name))
        said = f"the network has no {printable(extra)}"
    return WrongRequest(
        f"{weights.path} does not fit {network}: it seems to be {seems}; the first difference: "
        f"{said}"
    )


def _is_body(name: str) -> bool:
    return not name.startswith((HEAD, NORMS))


def save_weights(
    model: Trunk,
    path: Path | str,
    recipe: Recipe | None = None,
    *,
    is_ema: bool = False,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write `model` as safetensors, whole or not at all.

    The metadata holds the network's shape, the recipe that trained it if it is given, whether the
    weights are an EMA, and `facts`. Raises ValueError if `path` cannot be written.
    """
    path = Path(path)
    if path.suffix != SAFETENSORS:
        raise WrongRequest(f"{path} must end in {SAFETENSORS}, by which timm tells the format")
    metadata = {
        "format": "pt",
        "model": canonical_json(model.config),
        **({"num_classes": str(model.num_classes)} if isinstance(model, MambaOut) else {}),
        _IS_EMA: "true" if is_ema else "false",
        **(facts or {}),
    }
    if recipe is not None:
        metadata["recipe"] = canonical_json(recipe)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    try:
        with replacing(path) as aside:
            save_file(state, aside, metadata)
    except (SafetensorError, OSError) as error:
        raise WrongRequest(f"{path} cannot be written: {printable(str(error))}") from error
