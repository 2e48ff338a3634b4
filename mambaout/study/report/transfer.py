"""Compares a recipe that muP's rule carries to another width with one recipe for all widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mambaout.study.report.ranking import Standing
from mambaout.study.report.rows import Row
from mambaout.train.metrics import TOP1


def pairs(table: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The finished recipes with a carried rate, each with the recipe that differs only in the rate.

    The thinnest comes first. At the base's width both rates are equal, so there is no pair.
    """
    ready = [row for row in table if row.mean(TOP1)]
    common = {row.recipe: row for row in ready if row.recipe.optim.mup_base_dim is None}
    found = []
    for row in ready:
        optim = row.recipe.optim
        plain = replace(row.recipe, optim=replace(optim, mup_base_dim=None))
        if optim.mup_base_dim not in (None, row.width) and plain in common:
            found.append((row, common[plain]))
    return sorted(found, key=lambda pair: (pair[0].width, pair[0].label))


def transfer_said(found: Standing) -> list[str]:
    """Which of the two rates is better at each width, and how sure that is."""
    told, noise = pairs(found.rows), found.noise
    if not told:
        return []
    parts, sure = [], []
    for carried_row, common in told:
        gain = found.difference(carried_row, common)
        text, verdict = f"{gain.value:+.2f} points", gain.doubt
        if noise.has_seeds:
            text += f" ({gain.low:+.2f} to {gain.high:+.2f})"
        else:
            verdict = f"one seed each, {verdict}"
        if gain.is_significant:
            verdict = "better" if gain.value > 0 else "worse"
            sure.append(verdict)
        parts.append(f"{text} over {common.label}, {verdict}")
    base = told[0][0].recipe.optim.mup_base_dim
    if not noise.has_seeds:
        answer = "makes a difference that one seed each cannot tell from luck"
    elif not sure:
        answer = "makes no significant difference at any width"
    elif len(set(sure)) > 1:
        answer = "is better at some widths and worse at others"
    else:
        answer = f"is {sure[0]} at {len(sure)} of {len(told)} widths, not shown at the others"
        answer = answer if len(sure) < len(told) else f"is {sure[0]} at each width"
    return [
        f"Carrying the learning rate from width {base} to wider networks by muP's rule (matrices "
        f"learn at the share {base} / width of it, and their first weights are smaller) {answer}: "
        f"{'; '.join(parts)}."
    ]
