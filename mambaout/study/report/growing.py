"""Sentences on two questions: deeper or wider, and does the length of training matter?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mambaout.study.law.noise import Interval
from mambaout.study.law.shape import Contrast
from mambaout.study.report.content import Table
from mambaout.study.report.reading import GrowthFinding, Reading


def deeper_or_wider(reading: Reading) -> list[str]:
    """The direct answer, if the study varies both depth and width."""
    told = [one for one in reading.grown if one.growth.contrast is not None]
    if not told or not reading.standing.has_verdict:
        return []
    lengths = [one for one in told if not one.family.title]
    tuned = [one for one in told if one.family.title]
    parts = [f"With a recipe tuned for each size: {_lower(_verdict(tuned))}"] if tuned else []
    if lengths:
        same = "With one recipe for all sizes: " if tuned else ""
        verdict = _verdict(lengths)
        parts.append((f"{same}{_lower(verdict)}" if same else verdict) + _change(lengths))
    contrasts = "; ".join(f"{one.family.where} {_contrast(one)}" for one in told)
    gains = "; ".join(_gains(one) for one in told)
    return [
        " ".join(parts),
        "At equal MACs, a network with twice the width for its depth reaches (points of top-1, "
        f"95 % intervals): {contrasts}.",
        *_rests(told),
        _precision(told, reading.study),
        f"A doubling of MACs bought, with 95 % intervals: {gains}. These gains describe the lines "
        "and are not compared, because the lines begin at different MACs.",
    ]


def one_way(reading: Reading) -> list[str]:
    """The gain from growing, if there is no verdict on deeper or wider."""
    return [] if deeper_or_wider(reading) else _gains_alone(reading)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _verdict(told: Sequence[GrowthFinding]) -> str:
    verdicts = [one.growth.contrast.verdict for one in told if one.growth.contrast]
    found = set(verdicts)
    lengths = _lengths(told)
    if len(told) == 1:
        if found == {"not significant"}:
            return f"Deeper or wider makes no significant difference at {lengths}."
        return f"Grow {verdicts[0]}, at {lengths}."
    if found == {"not significant"}:
        return f"Deeper or wider makes no significant difference at any length: {lengths}."
    if len(found) == 1:
        return f"Grow {found.pop()} at every length of training: {lengths}."
    by_verdict = {
        verdict: [one for one, own in zip(told, verdicts, strict=True) if own == verdict]
        for verdict in ("wider", "deeper", "not significant")
    }
    unclear = by_verdict.pop("not significant")
    parts = [f"{verdict} at {_lengths(which)}" for verdict, which in by_verdict.items() if which]
    if unclear:
        parts.append(f"no significant difference at {_lengths(unclear)}")
    both = {"wider", "deeper"} <= found
    start = "The answer flips with the length of training: " if both else "Grow "
    return f"{start}{', '.join(parts)}."


def _lengths(which: Sequence[GrowthFinding]) -> str:
    """ "4, 12 and 36 epochs"."""
    *most, last = [str(one.family.epochs) for one in which]
    ending = "epoch" if last == "1" and not most else "epochs"
    return f"{', '.join(most)} and {last} {ending}" if most else f"{last} {ending}"


def _contrast(one: GrowthFinding) -> str:
    assert one.growth.contrast is not None
    gain = one.growth.contrast.gain
    return _signed(gain) + ("" if gain.excludes_zero else ", not significant")


def _rests(told: Sequence[GrowthFinding]) -> list[str]:
    """Which shapes carry a significant contrast."""
    found = [
        f"{one.family.where} {_without(one.growth.contrast)}"
        for one in told
        if one.growth.contrast and one.growth.contrast.gain.excludes_zero
    ]
    return [f"Without any one width or depth: {'; '.join(found)}."] if found else []


def _without(contrast: Contrast) -> str:
    values = [gain.value for gain in contrast.without.values() if gain]
    unknown = [name for name, gain in contrast.without.items() if gain is None]
    parts = [f"{min(values):+.2f} to {max(values):+.2f} points"] if values else []
    if contrast.rests_on:
        parts.append(f"not significant without {_any_of(contrast.rests_on)}")
    elif values:
        parts.append("significant each time")
    if unknown:
        parts.append(f"without {_any_of(unknown)} shape and MACs are not told apart")
    return ", ".join(parts)


def _precision(told: Sequence[GrowthFinding], study: Mapping[str, Any]) -> str:
    """Which difference the study could find, beside the one that it was planned for."""
    parts = [
        f"{one.family.where} {one.growth.contrast.detectable:.2f} points"
        for one in told
        if one.growth.contrast is not None
    ]
    text = f"80 % of such studies find a difference of this size: {'; '.join(parts)}."
    if detect := study.get("detect"):
        text += f" It was planned to find {detect['points']:g} points (--detect)"
        if left_out := detect.get("left_out"):
            text += f" within {detect['budget']}, and so without {', '.join(left_out)}"
        text += "."
    if until := study.get("until"):
        text += f" Seeds were added until ± {until:g} points (--until)."
    return text


def _any_of(names: Sequence[str]) -> str:
    """ "width 8, width 16 or depth 4"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def contrast_table(reading: Reading) -> list[Table]:
    """The contrast at equal MACs, with all shapes and without each width and each depth."""
    if not reading.standing.has_verdict:
        return []
    cells = []
    for one in reading.grown:
        found = one.growth.contrast
        if found is None:
            continue
        rows = {"all shapes": found.gain} | {f"without {n}": g for n, g in found.without.items()}
        for name, gain in rows.items():
            if gain is None:
                cells.append([one.family.name, name, "-", "shape and MACs are not told apart"])
            else:
                told = "significant" if gain.excludes_zero else "not significant"
                cells.append([one.family.name, name, _signed(gain), told])
    header = ("ladder", "shapes", "points of top-1 for twice the width / depth", "at equal MACs")
    return [Table(header, cells, (1, 3))] if cells else []


def _gains(one: GrowthFinding, *, sure: bool = True) -> str:
    """The gains by depth and by width; without intervals unless `sure`."""
    growth, signed = one.growth, _signed if sure else _value
    parts = [
        f"{signed(gain)} points by {axis}"
        for axis, gain in (("depth", growth.depth), ("width", growth.width))
        if gain is not None
    ]
    text = f"{one.family.where} {' and '.join(parts)}"
    if sure and not any(gain.excludes_zero for gain in (growth.depth, growth.width) if gain):
        text += ", not significant"
    return text


def _change(told: Sequence[GrowthFinding]) -> str:
    """Whether the contrast differs between the shortest and the longest training."""
    if len(told) < 2:
        return ""
    first, last = told[0].growth.contrast, told[-1].growth.contrast
    if first is None or last is None:
        return ""
    change = last.gain.value - first.gain.value
    # The two lengths share no run, so their errors are independent.
    half = math.hypot(first.gain.high - first.gain.low, last.gain.high - last.gain.low) / 2
    whole = Interval(change, change - half, change + half)
    text = (
        f" From {told[0].family.epochs} to {told[-1].family.name} the gain from twice the width "
        f"for the depth changes by {_signed(whole)} points"
    )
    if not math.isfinite(half):
        return f"{text}; without seeds how sure that is cannot be said."
    if whole.excludes_zero:
        return f"{text}: the length of training matters to it."
    return f"{text}: not significant, so no dependence on the length is shown."


def _gains_alone(reading: Reading) -> list[str]:
    told = [
        one for one in reading.grown if one.growth.depth is not None or one.growth.width is not None
    ]
    if not told:
        return []
    sure = reading.standing.has_verdict
    unsure = "" if sure else ", not told from luck"
    gains = "; ".join(_gains(one, sure=sure) for one in told)
    return [f"A doubling of MACs bought{unsure}: {gains}."]


def _signed(gain: Interval) -> str:
    if not math.isfinite(gain.low):
        return _value(gain)
    return f"{_value(gain)} ({gain.low:+.2f} to {gain.high:+.2f})"


def _value(gain: Interval) -> str:
    return f"{gain.value:+.2f}"


def stopped_paying(reading: Reading) -> list[str]:
    """Steps of a ladder that gained far less than the smaller sizes promise."""
    found = [
        f"{one.family.where[:1].upper()}{one.family.where[1:]}, {plateau.text()}."
        for one in reading.grown
        for plateau in one.plateaus
    ]
    return [" ".join(found)] if found else []


def at_equal_macs(reading: Reading) -> list[str]:
    """Deep compared with wide, in each slice of about equal MACs."""
    return [
        f"{one.family.name}: " + "; ".join(piece.text() for piece in one.slices) + "."
        for one in reading.grown
        if one.slices
    ]


def shape_exponents(reading: Reading) -> list[str]:
    if isinstance(reading.exponents, str):
        return []
    text = f"Shape exponents of compute (SoViT, arXiv 2305.13035): {reading.exponents.text()}."
    notes = "; ".join(reading.exponents.notes)
    return [f"{text} {notes[:1].upper()}{notes[1:]}." if notes else text]
