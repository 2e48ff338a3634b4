"""Networks with different token mixers, made equal in MACs or in parameters by their expansion.

    expansion = matched_expansion(ssm, beside=convolution, image_size=64, num_classes=10)
    tuned(recipe, mixer="conv_ssm", expansion=expansion)

A mixer that costs more leaves less for the hidden channels of its block. Both costs grow with the
expansion in steps, because a block has a whole number of hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from mambaout.accounting import Cost, cost
from mambaout.errors import WrongRequest
from mambaout.numbers import count_text
from mambaout.variants import ModelConfig

Matched = Literal["macs", "params"]
TOLERANCE = 0.005  # of the wanted cost; the hidden sizes may allow no better match
MOST_EXPANSION = 32.0
_WORDS = {"macs": "MACs", "params": "parameters"}


@dataclass(frozen=True)
class _Plateau:
    """The expansions `low` to `high`, which give the same hidden sizes."""

    low: float
    high: float

    @property
    def expansion(self) -> float:
        """The shortest decimal number inside."""
        middle = (self.low + self.high) / 2
        for digits in range(1, 12):
            rounded = round(middle, digits)
            if self.low < rounded < self.high:
                return rounded
        return middle


def matched_expansion(
    shape: ModelConfig,
    *,
    beside: ModelConfig,
    image_size: int,
    num_classes: int,
    by: Matched = "macs",
) -> float:
    """The expansion with which `shape` has the MACs (or parameters) of `beside`, or the nearest.

    It is at least the conv_ratio, because a mixer gets its channels from the hidden ones. Raises
    WrongRequest if the shape is too expensive even then, or too cheap at any expansion.
    """

    def costs(expansion: float) -> int:
        return getattr(_cost(replace(shape, expansion=expansion), image_size, num_classes), by)

    wanted = getattr(_cost(beside, image_size, num_classes), by)
    steps = _plateaus(shape)
    place = _first(lambda i: costs(steps[i].expansion) >= wanted, len(steps))
    near = [steps[i] for i in (place - 1, place) if 0 <= i < len(steps)]
    found = min(near, key=lambda step: abs(costs(step.expansion) - wanted)).expansion
    got = costs(found)
    if place in (0, len(steps)) and abs(got - wanted) > TOLERANCE * wanted:
        raise WrongRequest(_cannot(shape, beside, found, got, wanted, by))
    return found


def _cost(shape: ModelConfig, image_size: int, num_classes: int) -> Cost:
    return cost(shape, image_size, num_classes)


def _plateaus(shape: ModelConfig) -> list[_Plateau]:
    """The ranges of equal hidden sizes, lowest first, from conv_ratio on."""
    multiple = shape.hidden_multiple
    starts = {
        (multiple * count + 1) / dim
        for dim in set(shape.dims)
        for count in range(int(MOST_EXPANSION * dim / multiple))
    }
    least = shape.conv_ratio
    inside = sorted(start for start in starts if least < start < MOST_EXPANSION)
    edges = [least, *inside, MOST_EXPANSION]
    return [_Plateau(low, high) for low, high in pairwise(edges) if high - low > 1e-9]


def _first(is_true: Callable[[int], bool], count: int) -> int:
    """The first place for which it is true, and `count` if there is none; it must stay true."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_true(middle) else (middle + 1, high)
    return low


def _cannot(
    shape: ModelConfig,
    beside: ModelConfig,
    expansion: float,
    got: int,
    wanted: int,
    by: Matched,
) -> str:
    what = _WORDS[by]
    sides = f"{count_text(got)} {what}, and mixer={beside.mixer} has {count_text(wanted)}"
    if got < wanted:
        return f"mixer={shape.mixer}: even with expansion={MOST_EXPANSION:g} it has only {sides}"
    text = (
        f"mixer={shape.mixer}: even with expansion={expansion:g} it has {sides}; the expansion "
        f"cannot be below conv_ratio={shape.conv_ratio:g}"
    )
    return f"{text}. Give wider networks ({_wider(shape)}){_cheaper(shape)}"


def _wider(shape: ModelConfig) -> str:
    return "--dims " + ",".join(str(3 * dim // 2) for dim in shape.dims)


def _cheaper(shape: ModelConfig) -> str:
    """The remedy that belongs to the mixer."""
    if "ssm" in shape.mixer:
        return f", or a smaller state (--ssm-state {max(1, shape.ssm_state // 2)})"
    if "attention" in shape.mixer:
        return ", smaller images (--image-size), or the mixer in later stages (--mixer-stages 3,4)"
    return ""
