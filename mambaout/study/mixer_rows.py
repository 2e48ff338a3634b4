"""The recipes of a study of token mixers: one for each mixer, equal in MACs or in parameters.

    rows = mixer_rows(start, ["conv_ssm"])       # identity, gated_conv and conv_ssm
    recipes = equal_recipes(start, rows, "macs", image_size=64)
    groups = [PairedGroup(labels={name: name for name in recipes})]
    pairing = mixer_pairing(groups)

The mixers differ in nothing but the mixer and the expansion. On small data the stem and the
downsampling have kernels as large as their strides. So nothing but the mixer mixes tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from mambaout.errors import WrongRequest
from mambaout.layer_kinds import num_positions
from mambaout.layers import layers
from mambaout.mixer_layers import CONV_MIXER, MIXER_LAYERS
from mambaout.recipe import Recipe, tuned
from mambaout.study.matched import Matched, matched_expansion
from mambaout.study.pairing import Pair, PairedGroup, Pairing
from mambaout.study.start import Start

FLOOR, REFERENCE, SSM = "identity", CONV_MIXER, "conv_ssm"
ATTENTION, CAUSAL = "attention", "causal_attention"
LATE_STAGES = (3, 4)  # of attention: its MACs grow with the square of the number of tokens
LATE_SSM = "conv_ssm-stages-3-4"  # beside attention
SMALL_STATE = 8  # of an SSM, on small data; with 16, narrow networks leave no hidden channels
SMOKE_IMAGES = 1_800  # of a smoke run, which has nine trials or more
MIXERS_HELP = (
    f"mixers beside {FLOOR} and {REFERENCE}, which are always there: "
    f"{', '.join(name for name in MIXER_LAYERS if name not in (FLOOR, REFERENCE))} "
    f"(default {SSM})"
)
REMEDY = (
    "What can open it: a task whose label needs distant or ordered tokens (--data distant-pair, "
    "next-patch), larger images (--image-size), more blocks (--depths), more epochs, more seeds."
)

Rows = Mapping[str, Mapping[str, Any]]  # the name of a recipe -> the fields that are its own


def mixer_rows(start: Start, mixers: Sequence[str] | None) -> Rows:
    """The recipes' names and own fields: the floor, the reference, then the named mixers.

    Attention is in stages 3 and 4, and with it comes an SSM in the same stages.
    """
    if start.weights is not None:
        raise WrongRequest(
            "--init: trained weights belong to one mixer, and this study trains several; leave it "
            "out"
        )
    names = list(dict.fromkeys(mixers or [SSM]))
    for name in names:
        if name not in MIXER_LAYERS:
            near = difflib.get_close_matches(name, MIXER_LAYERS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise WrongRequest(
                f"--mixers: {name!r} is no mixer; choose from {', '.join(MIXER_LAYERS)}{hint}"
            )
    found: dict[str, dict[str, Any]] = {name: {"mixer": name} for name in (FLOOR, REFERENCE)}
    for name in names:
        found.setdefault(name, {"mixer": name})
        if name in (ATTENTION, CAUSAL) and "mixer_stages" not in start.given:
            found[name]["mixer_stages"] = LATE_STAGES
            found[LATE_SSM] = {"mixer": SSM, "mixer_stages": LATE_STAGES}
    if start.small:
        for fields in found.values():
            if fields["mixer"].startswith(SSM):
                fields["ssm_state"] = SMALL_STATE
    return found


def equal_recipes(start: Start, rows: Rows, by: Matched, **fields: Any) -> dict[str, Recipe]:
    """The recipe of each row, with the expansion that gives it the reference's cost.

    `fields` are fields that this study wants in all rows.
    """
    if start.small:
        small = {"downsampling": "patchify", "stem_stride": 2, "hidden_multiple": 1}
        fields = small | fields
    if start.smoke and start.facts.num_train > 2 * SMOKE_IMAGES:
        fields = {"train_images": SMOKE_IMAGES} | fields
    first = {name: start.recipe(**fields, **own) for name, own in rows.items()}
    beside = first[REFERENCE].model
    return {
        name: recipe
        if name == REFERENCE
        else tuned(
            recipe,
            expansion=matched_expansion(
                recipe.model,
                beside=beside,
                image_size=recipe.image_size,
                num_classes=start.facts.num_classes,
                by=by,
            ),
        )
        for name, recipe in first.items()
    }


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
