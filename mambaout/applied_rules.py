"""A field that follows the data, the weights or the device: its value, and the reason to print.

rules.py has the rules for data and weights. The one rule for the device is here: precision is bf16
if all devices of a run or a study have units for bf16, like TPUs and newer GPUs. Otherwise it is
fp32. Pure values: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mambaout.chips import find_chip
from mambaout.fields import flat_fields
from mambaout.options import field_text
from mambaout.recipe import BASELINE, field_knobs

PRECISION = "precision"  # the field that follows the device


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """One field whose value follows the data or the device, with the reason."""

    name: str
    value: Any
    reason: str


def rule_lines(rules: Sequence[AppliedRule]) -> list[str]:
    """The rules as lines of text; fields with the same value and the same reason share a line."""
    groups: dict[tuple[str, str], list[str]] = {}
    paper = flat_fields(BASELINE)
    for rule in rules:
        value = field_text(rule.value)
        groups.setdefault((value, rule.reason), []).append(rule.name)
    lines = []
    for (value, reason), names in groups.items():
        whose = "paper" if field_knobs()[names[0]].source else "default"  # no source: our choice
        usual = field_text(paper[names[0]])
        before = f" ({whose}: {usual})" if len(names) == 1 and usual != value else ""
        lines.append(f"{', '.join(names)} {value}{before}: {reason}")
    return lines


def multiplies_bf16(device: str) -> bool | None:
    """Whether the chip that a driver calls `device` has units for bf16; None if the chip is not in
    the chip table."""
    chip = find_chip(device)
    return None if chip is None else "bf16" in chip.peak_flops


def precision_rule(devices: Mapping[str, bool | None]) -> AppliedRule | None:
    """The rule for the precision on `devices`.

    `devices` maps a device's name to whether it has units for bf16 (None: not known). The result
    is None if no device has such units, as on CPUs: the precision is fp32, and there is nothing to
    print. A device without bf16 units computes bf16 with fp32 products. A TPU computes one fp32
    product with six in bf16.
    """
    names = " and ".join(devices)
    if devices and all(devices.values()):
        verb = "multiplies" if len(devices) == 1 else "multiply"
        return AppliedRule(PRECISION, "bf16", f"{names} {verb} matrices in bf16")
    unknown = [name for name, has_units in devices.items() if has_units is None]
    if unknown:
        return AppliedRule(
            PRECISION,
            "fp32",
            f"whether {' and '.join(unknown)} multiplies matrices in bf16 is not known; where it "
            "does, give --precision bf16",
        )
    if not any(devices.values()):
        return None
    slow = " and ".join(name for name, has_units in devices.items() if not has_units)
    return AppliedRule(
        PRECISION,
        "fp32",
        f"all trials have one precision, and of {names} there are no bf16 units in {slow}",
    )
