"""SoViT's shape exponents: how depth and width should grow with training compute.

Alabdulmohsin et al. (arXiv:2305.13035, equations 2 to 5) describe the error over one dimension x of
the shape and the compute t of the training as

    f(x, t) = alpha x^-a + (beta x^b + xi) t^-c + eps

so the best x grows as t^s with s = c / (a + b). To determine s, t and x must vary independently. A
star needs several lengths of training for each shape. In a grid, the other dimension changes t.
With one length of training and a star, x determines t, and s stays unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mambaout.study.law.fit import Size, TooFew, interval_of
from mambaout.study.law.noise import Interval, SeedNoise
from mambaout.study.law.power_law import Array
from mambaout.study.law.scatter import scatter_factors

MIN_VALUES = 3  # different values of a dimension that a fit needs
_NUM_PARAMETERS = 7
_BOUNDS = (math.log(0.05), math.log(3.0))  # of ln a, ln b, ln c
_STARTS = tuple(
    (math.log(a), math.log(b), math.log(c))
    for a in (0.2, 0.6, 1.5)
    for b in (0.2, 0.6, 1.5)
    for c in (0.2, 0.6, 1.5)
)


@dataclass(frozen=True, kw_only=True)
class ShapeFit:
    """The exponents s of x ~ t^s; nan if the sizes do not determine them."""

    depth: Interval
    width: Interval
    num_depth: int  # sizes from which each is computed
    num_width: int
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        def part(name: str, s: Interval) -> str:
            if not math.isfinite(s.value):
                return f"{name}: not determined"
            return f"{name} ~ compute^{s.value:.2f} ({s.low:.2f} to {s.high:.2f})"

        return f"{part('depth', self.depth)}; {part('width', self.width)}"


def fit_shape(
    sizes: Sequence[Size], noise: SeedNoise, *, num_resamples: int = 100, seed: int = 0
) -> ShapeFit:
    """Fit s for depth and for width. The sizes' `cost` is the compute of the training.

    Raises TooFew if a dimension has under three values. With one length of training, the cost may
    be the MACs of one image.
    """
    notes: list[str] = []
    found: dict[str, tuple[Interval, int]] = {}
    dimensions: dict[str, tuple[Callable[[Size], float], Callable[[Size], float]]] = {
        "depth": (lambda size: size.depth, lambda size: size.width),
        "width": (lambda size: size.width, lambda size: size.depth),
    }
    for name, (own, other) in dimensions.items():
        used = _told_apart(sizes, own, other)
        values = len({own(size) for size in sizes if math.isfinite(own(size))})
        if values < MIN_VALUES:
            raise TooFew(
                f"{values} values of {name}, and its exponent needs at least {MIN_VALUES}; "
                f"add sizes that differ in {name}"
            )
        if len(used) <= _NUM_PARAMETERS:
            unknown = Interval(math.nan, math.nan, math.nan)
            found[name] = (unknown, len(used))
            notes.append(
                f"{name}: {len(used)} sizes in which it and compute vary apart, and the form has "
                f"{_NUM_PARAMETERS} parameters; train the sizes for several lengths or fill a grid"
            )
            continue
        draws = _exponents(used, own, noise, num_resamples, seed)
        s = interval_of(draws)
        found[name] = (s, len(used))
        if not math.isfinite(s.low):
            notes.append(f"{name}: no size has two seeds, so its exponent has no interval")
        elif s.high > 3 * s.low or s.high - s.low > 0.5:
            notes.append(
                f"{name}: the exponent is not determined by these sizes "
                f"({s.low:.2f} to {s.high:.2f})"
            )
    return ShapeFit(
        depth=found["depth"][0],
        width=found["width"][0],
        num_depth=found["depth"][1],
        num_width=found["width"][1],
        notes=tuple(notes),
    )


def _told_apart(
    sizes: Sequence[Size], own: Callable[[Size], float], other: Callable[[Size], float]
) -> list[Size]:
    """The sizes where x and t vary independently: a star's line at several lengths, or a grid."""
    shaped = [size for size in sizes if math.isfinite(own(size)) and math.isfinite(other(size))]
    lines: dict[float, list[Size]] = {}
    for size in shaped:
        lines.setdefault(other(size), []).append(size)
    line = max(lines.values(), key=lambda line: len({own(size) for size in line}), default=[])
    lengths = Counter(own(size) for size in line)
    if sum(count > 1 for count in lengths.values()) >= MIN_VALUES:
        return line
    full = [line for line in lines.values() if len({own(size) for size in line}) >= MIN_VALUES]
    return [size for line in full for size in line] if len(full) > 1 else []


def _exponents(
    sizes: Sequence[Size],
    own: Callable[[Size], float],
    noise: SeedNoise,
    num_resamples: int,
    seed: int,
) -> Array:
    """s of the fit and of each resample. The misfit is relative, as in SoViT."""
    from scipy.optimize import least_squares, nnls

    rng = np.random.default_rng(seed)
    num_resamples = min(num_resamples, max(20, 5_000 // len(sizes)))  # many sizes are slow
    x = np.array([own(size) for size in sizes])
    t = np.array([size.cost for size in sizes])
    x, t = x / np.exp(np.log(x).mean()), t / np.exp(np.log(t).mean())
    means = [size.seeds for size in sizes]
    errors = np.array([mean.value for mean in means])

    def misfit(logs: Array, y: Array) -> Array:
        a, b, c = np.exp(logs)
        basis = np.stack([x**-a, x**b * t**-c, t**-c, np.ones_like(x)], axis=1) / y[:, None]
        return basis @ nnls(basis, np.ones_like(y))[0] - 1

    def fit(y: Array, start: Sequence[float] | Array) -> Array:
        return least_squares(misfit, start, args=(y,), bounds=_BOUNDS, xtol=1e-7, ftol=1e-10).x

    def exponent(logs: Array) -> float:
        a, b, c = np.exp(logs)
        return float(c / (a + b))

    by_start = sorted(
        _STARTS, key=lambda start: float((misfit(np.array(start), errors) ** 2).sum())
    )
    best = min(
        (fit(errors, start) for start in by_start[:3]),
        key=lambda logs: float((misfit(logs, errors) ** 2).sum()),
    )
    residuals = misfit(best, errors) * errors
    degrees = len(sizes) - _NUM_PARAMETERS
    variances = noise.variances(means)
    scatter = float((residuals**2 / variances).sum())
    factors = scatter_factors(noise.degrees(means), rng, num_resamples, scatter, degrees)
    draws = [exponent(best)]
    for factor in factors:
        moved = errors + factor * np.sqrt(variances) * rng.standard_normal(len(errors))
        draws.append(exponent(fit(moved, best)))
    return np.array(draws)
