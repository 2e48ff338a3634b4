"""Networks with different token mixers, made equal in MACs or in parameters by their expansion.

    expansion = matched_expansion(ssm, beside=convolution, image_size=64, num_classes=10)
    tuned(recipe, mixer="conv_ssm", expansion=expansion)

A mixer that costs more leaves less for the hidden channels of its block. Both costs grow with the
expansion in steps, because a block has a whole number of hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mambaout.accounting import cost
from mambaout.errors import WrongRequest
from mambaout.fields import MOST_CHANNELS
from mambaout.layers import ImageSize, size_text
from mambaout.numbers import count_text
from mambaout.variants import ModelConfig

Matched = Literal["macs", "params"]
TOLERANCE = 0.005  # of the wanted cost; the hidden sizes may allow no better match
MOST_EXPANSION = 32.0
NARROW = 1e-9  # a range of expansions below it is a rounding error
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
    near = _around(shape, lambda step: costs_with(step.expansion) >= wanted)
    found = min(near, key=lambda step: abs(costs_with(step.expansion) - wanted)).expansion
    if len(near) == 1 and abs(costs_with(found) - wanted) > TOLERANCE * wanted:
        where = f"at {size_text(image_size)}"
        raise WrongRequest(_cannot(shape, beside, found, costs, by, where))
    return found


def _around(shape: ModelConfig, is_enough: Callable[[_Plateau], bool]) -> list[_Plateau]:
    """The last range that is not enough and the first that is; one range if all are alike."""
    low, high = _plateau(shape, shape.conv_ratio), _plateau(shape, MOST_EXPANSION)
    if is_enough(low):
        return [low]
    if not is_enough(high):
        return [high]
    while high.low - low.high > NARROW:
        middle = _plateau(shape, (low.high + high.low) / 2)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return [low, high]


def _plateau(shape: ModelConfig, expansion: float) -> _Plateau:
    """The range that `expansion` is in, between conv_ratio and MOST_EXPANSION."""
    least, multiple = shape.conv_ratio, shape.hidden_multiple
    edges = [least, MOST_EXPANSION]
    for dim in set(shape.dims):  # a block gets more hidden channels at (multiple x count + 1) / dim
        count = int(expansion * dim) // multiple
        starts = ((multiple * near + 1) / dim for near in range(count - 2, count + 3))
        edges += [start for start in starts if least < start < MOST_EXPANSION]
    low = max(edge for edge in edges if edge <= expansion and edge < MOST_EXPANSION)
    high = min(edge for edge in edges if edge > low)
    return _Plateau(low, high) if high - low > NARROW else _plateau(shape, high)


def _cannot(
    shape: ModelConfig,
    beside: ModelConfig,
    expansion: float,
    costs: Callable[[ModelConfig], int],
    by: Matched,
    where: str,
) -> str:
    """The reason, and the changes that help."""
    got, wanted = costs(replace(shape, expansion=expansion)), costs(beside)
    sides = f"{count_text(got)} {WAYS[by]}, and mixer={beside.mixer} has {count_text(wanted)}"
    text = f"mixer={shape.mixer}: even with expansion={expansion:g} it has {sides} {where}"

    def ratio(**changed: Any) -> float:
        """The cost beside the reference's, if both networks are changed so."""
        changed_one = replace(shape, **changed, expansion=expansion)
        return costs(changed_one) / costs(replace(beside, **changed))

    if got < wanted:
        kernels = (size for size in (127, 63, 31, 15, 7, 3) if size < shape.kernel_size)
        smaller = (size for size in kernels if ratio(kernel_size=size) >= 1 - TOLERANCE)
        return f"{text}; give --kernel-size {next(smaller, 1)}"
    text += f"; the expansion cannot be below conv_ratio={shape.conv_ratio:g}"

    def fits(**changed: Any) -> bool:
        return ratio(**changed) <= 1 + TOLERANCE

    factors = [*range(3, 13), 16, 32, 64]  # of half the width
    widths = (tuple(factor * dim // 4 * 2 for dim in shape.dims) for factor in factors)
    widths = (dims for dims in widths if max(dims) <= MOST_CHANNELS)
    states = (shape.ssm_state >> halvings for halvings in range(1, shape.ssm_state.bit_length()))
    found = [
        *(f"--dims {','.join(map(str, dims))}" for dims in widths if fits(dims=dims)),
        *(f"--ssm-state {state}" for state in states if fits(ssm_state=state)),
        *(["--mixer-stages 3,4"] if fits(mixer_stages=(3, 4)) else []),
    ]
    first = {remedy.partition(" ")[0]: remedy for remedy in reversed(found)}  # the least change
    remedies = list(reversed(first.values()))
    if not remedies:
        return f"{text}; leave the mixer out"
    return f"{text}; give {'one of ' * (len(remedies) > 1)}{', '.join(remedies)}"
