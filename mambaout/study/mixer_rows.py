"""The recipes of a study of token mixers: one for each mixer, equal in MACs or in parameters.

    rows = mixer_rows(["conv_ssm"], start.given, is_small=start.small)
    recipes = equal_recipes(start, rows, "macs", image_size=64)  # of identity, gated_conv, conv_ssm
    pairing = mixer_pairing([PairedGroup(labels={name: name for name in recipes})])

The mixers differ in nothing but the mixer and the expansion. On small data the stem and the
downsampling have kernels as large as their strides. So nothing but the mixer mixes tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mambaout.errors import WrongRequest
from mambaout.layer_kinds import num_positions
from mambaout.layers import ImageSize, layers
from mambaout.mixer_layers import CONV_MIXER, MIXER_LAYERS
from mambaout.recipe import Recipe
from mambaout.study.matched import Matched, matched_expansion
from mambaout.study.pairing import Pair, PairedGroup, Pairing
from mambaout.study.start import Start

FLOOR, REFERENCE, SSM = "identity", CONV_MIXER, "conv_ssm"
ATTENTION, CAUSAL = "attention", "causal_attention"
LATE_STAGES = (3, 4)  # of attention: its MACs grow with the square of the number of tokens
LATE_SSM = "conv_ssm-stages-3-4"  # beside attention
PATCHIFY = "patchify"
SMALL_STATE = 8  # of an SSM, on small data; with 16, narrow networks leave no hidden channels
SMOKE_IMAGES = 1_800  # of a smoke run, which has nine trials or more
MIXERS_HELP = (
    f"mixers to compare with {FLOOR} and {REFERENCE}, which are always there; with spaces between "
    "several: "
    f"{', '.join(name for name in MIXER_LAYERS if name not in (FLOOR, REFERENCE))} "
    f"(default {SSM})"
)
REMEDY = (
    "What can open it: a task whose label needs distant or ordered tokens (--data distant-pair, "
    "next-patch), larger images (--image-size), more blocks (--depths), more epochs, more seeds."
)

Rows = Mapping[str, Mapping[str, Any]]  # the name of a recipe -> the fields that are its own


def mixer_rows(names: Sequence[str] | None, given: Collection[str], *, is_small: bool) -> Rows:
    """The recipes' names and own fields: the floor, the reference, then the mixers of `names`.

    Attention is in stages 3 and 4, and with it comes an SSM in the same stages. `given` are the
    fields that the user gave. Raises WrongRequest for an unknown mixer, for one mixer of all
    recipes, and for trained weights.
    """
    if "init" in given:
        raise WrongRequest(
            "--init: trained weights belong to one mixer, and this study trains several; leave it "
            "out"
        )
    if "mixer" in given:
        raise WrongRequest("--mixer: this study compares mixers; name them with --mixers")
    if "expansion" in given:
        raise WrongRequest(
            "--expansion: this study gives each mixer the expansion with which all cost the same; "
            "leave it out"
        )
    chosen = list(dict.fromkeys(names or [SSM]))
    for name in chosen:
        if name not in MIXER_LAYERS:
            raise WrongRequest(
                f"--mixers: {name!r} is no mixer; choose from {', '.join(MIXER_LAYERS)}"
                f"{_hint(name)}"
            )
    found: dict[str, dict[str, Any]] = {name: {"mixer": name} for name in (FLOOR, REFERENCE)}
    for name in chosen:
        found.setdefault(name, {"mixer": name})
        if name in (ATTENTION, CAUSAL) and "mixer_stages" not in given:
            found[name]["mixer_stages"] = LATE_STAGES
            found[LATE_SSM] = {"mixer": SSM, "mixer_stages": LATE_STAGES}
    if is_small:
        for fields in found.values():
            if fields["mixer"].startswith(SSM):
                fields["ssm_state"] = SMALL_STATE
    return found


def _hint(name: str) -> str:
    if "," in name:
        return "; put spaces between several"
    near = difflib.get_close_matches(name.lower(), MIXER_LAYERS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def equal_recipes(start: Start, rows: Rows, by: Matched, **fields: Any) -> dict[str, Recipe]:
    """The recipe of each row, with the expansion that gives it the reference's cost.

    `fields` are fields that this study wants in all rows.
    """
    if start.small:
        small = {"downsampling": PATCHIFY, "stem_stride": 2, "hidden_multiple": 1}
        fields = small | fields
    if start.smoke and start.facts.num_train > 2 * SMOKE_IMAGES:
        fields = {"train_images": SMOKE_IMAGES} | fields
    first = {name: start.recipe(**fields, **own) for name, own in rows.items()}
    image_size, classes = first[REFERENCE].image_size, start.facts.num_classes
    return equal_in(by, first, image_size=image_size, num_classes=classes)


def equal_in(
    by: Matched, recipes: Mapping[str, Any], *, image_size: ImageSize, num_classes: int
) -> dict[str, Any]:
    """Recipes of any task, each with the expansion that gives its network the reference's cost."""
    beside = recipes[REFERENCE].model

    def equal(name: str, recipe: Any) -> Any:
        if name == REFERENCE:
            return recipe
        expansion = matched_expansion(
            recipe.model, beside=beside, image_size=image_size, num_classes=num_classes, by=by
        )
        return replace(recipe, model=replace(recipe.model, expansion=expansion))

    return {name: equal(name, recipe) for name, recipe in recipes.items()}


def mixer_pairing(groups: Sequence[PairedGroup]) -> Pairing:
    """Every mixer beside the convolution, and causal attention beside attention."""
    names = dict.fromkeys(name for group in groups for name in group.labels)
    pairs = [Pair(name, REFERENCE) for name in names if name not in (FLOOR, REFERENCE)]
    if {ATTENTION, CAUSAL} <= names.keys():
        pairs.append(Pair(CAUSAL, ATTENTION))
    return Pairing(
        what="mixers",
        groups=tuple(groups),
        pairs=tuple(pairs),
        gate=Pair(FLOOR, REFERENCE),
        remedy=REMEDY,
    )


def num_tokens(recipe: Recipe) -> int:
    """The places of the map in the first stage that has the mixer."""
    stage = recipe.model.mixer_stages[0]
    (part,) = [one for one in layers(recipe.model, recipe.image_size) if one.stage == stage]
    return num_positions(part.layers["norm"].size_out)
