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
from typing import Any, Literal

from mambaout.accounting import cost
from mambaout.errors import WrongRequest
from mambaout.layers import ImageSize
from mambaout.numbers import count_text
from mambaout.variants import ModelConfig

Matched = Literal["macs", "params"]
TOLERANCE = 0.005  # of the wanted cost; the hidden sizes may allow no better match
MOST_EXPANSION = 32.0
WAYS: dict[Matched, str] = {"macs": "MACs", "params": "parameters"}


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
    image_size: ImageSize,
    num_classes: int,
    by: Matched = "macs",
) -> float:
    """The expansion with which `shape` has the MACs (or parameters) of `beside`, or the nearest.

    It is at least the conv_ratio, because a mixer gets its channels from the hidden ones. Raises
    WrongRequest if the shape is too expensive even then, or too cheap at any expansion.
    """

    def costs(config: ModelConfig) -> int:
        return getattr(cost(config, image_size, num_classes), by)

    def costs_with(expansion: float) -> int:
        return costs(replace(shape, expansion=expansion))

    wanted = costs(beside)
    steps = _plateaus(shape)
    place = _first(lambda i: costs_with(steps[i].expansion) >= wanted, len(steps))
    near = [steps[i] for i in (place - 1, place) if 0 <= i < len(steps)]
    found = min(near, key=lambda step: abs(costs_with(step.expansion) - wanted)).expansion
    if place in (0, len(steps)) and abs(costs_with(found) - wanted) > TOLERANCE * wanted:
        raise WrongRequest(_cannot(shape, beside, found, costs, by))
    return found


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
    costs: Callable[[ModelConfig], int],
    by: Matched,
) -> str:
    """The reason, and the changes that help."""
    got, wanted = costs(replace(shape, expansion=expansion)), costs(beside)
    sides = f"{count_text(got)} {WAYS[by]}, and mixer={beside.mixer} has {count_text(wanted)}"
    text = f"mixer={shape.mixer}: even with expansion={expansion:g} it has {sides}"
    if got < wanted:
        return f"{text}; compare it with a cheaper network"
    text += f"; the expansion cannot be below conv_ratio={shape.conv_ratio:g}"

    def fits(**changed: Any) -> bool:
        """Whether the change, in both networks, lets the costs be equal."""
        least = replace(shape, **changed, expansion=expansion)
        return costs(least) <= (1 + TOLERANCE) * costs(replace(beside, **changed))

    widths = (tuple(factor * dim // 4 * 2 for dim in shape.dims) for factor in range(3, 13))
    states = (shape.ssm_state >> halvings for halvings in range(1, shape.ssm_state.bit_length()))
    found = [
        *(f"--dims {','.join(map(str, dims))}" for dims in widths if fits(dims=dims)),
        *(f"--ssm-state {state}" for state in states if fits(ssm_state=state)),
        *(["--mixer-stages 3,4"] if fits(mixer_stages=(3, 4)) else []),
    ]
    first = {remedy.partition(" ")[0]: remedy for remedy in reversed(found)}  # the least change
    return f"{text}; give one of {', '.join(reversed(first.values()))}" if first else text
