"""What xla_operations.py records, in XLA's instructions: functions that build a computation.

Each takes and gives torch_xla.core.xla_builder.Op. Arithmetic on an Op adds an instruction, and so
do its methods, which are named as in XLA's documentation ("operation semantics"). Sizes and types
are known when a function runs, so it can use Python's `if`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

Instruction = Any  # torch_xla.core.xla_builder.Op; torch_xla is not imported here
Settings = tuple[tuple[int, int], tuple[int, int], int]  # of a convolution: stride, padding, groups


def norm(x: Instruction, weight: Instruction, bias: Instruction, *, epsilon: float) -> Instruction:
    """LayerNorm over the last dimension: normed, mean, and one over the deviation, all fp32."""
    x = _as(x, "f32")
    sizes, share = x.shape().sizes, 1 / x.shape().sizes[-1]
    mean = _sum(x, [len(sizes) - 1]) * _number(x, share)
    centred = x - _spread(mean, sizes)
    variance = _sum(centred * centred, [len(sizes) - 1]) * _number(x, share)
    deviation = (variance + _number(x, epsilon)).rsqrt()
    normed = centred * _spread(deviation, sizes)
    normed = normed * _last(weight, sizes) + _last(bias, sizes)
    return _outputs(normed, mean, deviation)


def norm_backward(
    grad: Instruction,
    x: Instruction,
    weight: Instruction,
    mean: Instruction,
    deviation: Instruction,
) -> Instruction:
    """The gradients of x, weight and bias."""
    kind, x, grad = x.shape().dtype, _as(x, "f32"), _as(grad, "f32")
    sizes, share = x.shape().sizes, 1 / x.shape().sizes[-1]
    last, others = [len(sizes) - 1], list(range(len(sizes) - 1))
    spread_deviation = _spread(deviation, sizes)
    normed = (x - _spread(mean, sizes)) * spread_deviation
    product = grad * normed
    weighted = grad * _last(weight, sizes)
    level = _sum(weighted, last) * _number(x, share)
    slope = _sum(weighted * normed, last) * _number(x, share)
    of_x = weighted - _spread(level, sizes) - normed * _spread(slope, sizes)
    return _outputs(_as(of_x * spread_deviation, kind), _sum(product, others), _sum(grad, others))


def conv(
    x: Instruction, weight: Instruction, bias: Instruction, *, settings: Settings
) -> Instruction:
    """A map (B, H, W, C), weights (D, C / groups, k, k) and bias (D,) to a map (B, H', W', D)."""
    out = _convolution(x, weight, settings)
    return out + _last(_as(bias, x.shape().dtype), out.shape().sizes)


def conv_backward(
    grad: Instruction, x: Instruction, weight: Instruction, *, settings: Settings, of_x: bool
) -> Instruction:
    """The gradients of x (if `of_x`), weight and bias."""
    return _outputs(*_convolution_gradients(grad, x, weight, settings)[0 if of_x else 1 :])


def _convolution(x: Instruction, weight: Instruction, settings: Settings) -> Instruction:
    stride, padding, groups = settings
    return x.conv_general_dilated(
        _as(weight, x.shape().dtype),
        stride,
        [(each, each) for each in padding],
        (1, 1),
        (1, 1),
        **_dimensions(input="b01f", kernel="oi01", output="b01f"),
        feature_group_count=groups,
        precision_config=_precision(x),
    )


def _convolution_gradients(
    grad: Instruction, x: Instruction, weight: Instruction, settings: Settings
) -> tuple[Instruction, Instruction, Instruction]:
    """The gradients of x, weight and bias; the last two are fp32."""
    stride, padding, groups = settings
    inner, outer, kernel = x.shape().sizes[1:3], grad.shape().sizes[1:3], weight.shape().sizes[2:]
    # A convolution of the gradient, whose places are `stride` apart, with the turned kernel.
    before = [k - 1 - pad for k, pad in zip(kernel, padding, strict=True)]
    after = [
        size - ((out - 1) * step + 1) - first + k - 1
        for size, out, step, first, k in zip(inner, outer, stride, before, kernel, strict=True)
    ]
    of_x = grad.conv_general_dilated(
        _as(weight, x.shape().dtype).rev([2, 3]),
        (1, 1),
        list(zip(before, after, strict=True)),
        stride,
        (1, 1),
        **_dimensions(input="b01f", kernel="io01" if groups == 1 else "oi01", output="b01f"),
        feature_group_count=groups,
        precision_config=_precision(x),
    )
    # A convolution of x with the gradient, in which images are summed like channels.
    after = [
        k + (out - 1) * step - size - pad
        for size, out, step, pad, k in zip(inner, outer, stride, padding, kernel, strict=True)
    ]
    of_weight = x.conv_general_dilated(
        grad,
        (1, 1),
        list(zip(padding, after, strict=True)),
        (1, 1),
        stride,
        **_dimensions(input="f01b", kernel="i01o", output="fb01"),
        batch_group_count=groups,
        precision_config=_precision(x),
    )
    return of_x, _as(of_weight, "f32"), _sum(_as(grad, "f32"), [0, 1, 2])


def gelu(x: Instruction) -> Instruction:
    kind, x = x.shape().dtype, _as(x, "f32")
    return _as(_gelu(x, _one_plus_erf(x)), kind)


def gelu_backward(grad: Instruction, x: Instruction) -> Instruction:
    kind, x = x.shape().dtype, _as(x, "f32")
    return _as(_as(grad, "f32") * _gelu_slope(x, _one_plus_erf(x)), kind)


def _gelu(x: Instruction, one_plus_erf: Instruction) -> Instruction:
    return x * _number(x, 0.5) * one_plus_erf


def _gelu_slope(x: Instruction, one_plus_erf: Instruction) -> Instruction:
    density = (x * x * _number(x, -0.5)).exp() * _number(x, 1 / math.sqrt(2 * math.pi))
    return one_plus_erf * _number(x, 0.5) + x * density


def gate(
    h: Instruction, bias: Instruction, weight: Instruction, conv_bias: Instruction
) -> Instruction:
    """GELU(gate) * [rest, v] (B, H, W, hidden), and v, the depthwise convolution of mixed; gate,
    rest and mixed are the parts of h + bias."""
    kind, gate, rest, mixed, settings = _gate_parts(h, bias, weight)
    v = _convolution(mixed, weight, settings)
    v = v + _last(_as(conv_bias, kind), v.shape().sizes)
    return _outputs(_as(_gelu(gate, _one_plus_erf(gate)) * _value(rest, v), kind), v)


def gate_backward(
    grad: Instruction, h: Instruction, bias: Instruction, weight: Instruction, v: Instruction
) -> Instruction:
    """The gradients of h, bias, weight and conv_bias."""
    kind, gate, rest, mixed, settings = _gate_parts(h, bias, weight)
    grad = _as(grad, "f32")
    erf = _one_plus_erf(gate)
    of_value = grad * _gelu(gate, erf)
    sizes = of_value.shape().sizes
    num_rest, hidden = sizes[-1] - weight.shape().sizes[0], sizes[-1]
    of_v = of_value.slice_in_dim(num_rest, hidden, 3)
    of_mixed, of_weight, of_conv_bias = _convolution_gradients(
        _as(of_v, kind), mixed, weight, settings
    )
    parts = [grad * _value(rest, v) * _gelu_slope(gate, erf)]
    if num_rest:
        parts.append(of_value.slice_in_dim(0, num_rest, 3))
    of_h = _concatenated(*parts, _as(of_mixed, "f32"))
    return _outputs(_as(of_h, kind), _sum(of_h, [0, 1, 2]), of_weight, of_conv_bias)


def _gate_parts(h: Instruction, bias: Instruction, weight: Instruction) -> Any:
    """The type of the products, gate and rest in fp32 (rest is None if it has no channels), mixed
    in that type, and the settings of the convolution."""
    kind, sizes = h.shape().dtype, h.shape().sizes
    hidden, (channels, _, *kernel) = sizes[-1] // 2, weight.shape().sizes
    h = _as(h, "f32") + _last(bias, sizes)
    first = 2 * hidden - channels
    rest = h.slice_in_dim(hidden, first, 3) if first > hidden else None
    settings = ((1, 1), (kernel[0] // 2, kernel[1] // 2), channels)
    mixed = _as(h.slice_in_dim(first, 2 * hidden, 3), kind)
    return kind, h.slice_in_dim(0, hidden, 3), rest, mixed, settings


def _value(rest: Instruction | None, v: Instruction) -> Instruction:
    return _as(v, "f32") if rest is None else _concatenated(rest, _as(v, "f32"))


def join(
    x: Instruction, branch: Instruction, bias: Instruction, scale: Instruction | None = None
) -> Instruction:
    """x + scale * (branch + bias), in fp32; `scale` (B,) is each image's."""
    sizes = x.shape().sizes
    branch = _as(branch, "f32") + _last(bias, sizes)
    if scale is not None:
        branch = branch * scale.broadcast_in_dim(sizes, [0])
    return _as(x, "f32") + branch


def join_backward(grad: Instruction, scale: Instruction | None = None, *, kind: str) -> Instruction:
    """The gradients of branch and bias."""
    if scale is not None:
        grad = grad * scale.broadcast_in_dim(grad.shape().sizes, [0])
    return _outputs(_as(grad, kind), _sum(grad, [0, 1, 2]))


ADAMW_NUMBERS = ("kept", "beta1", "beta2", "new1", "new2", "epsilon")


def adamw(*tensors: Instruction, decays: bool) -> Instruction:
    """An update of all weights of a group, with the arguments and the results in this order: the
    ADAMW_NUMBERS (6,), the rate (1,) and the number of this step (1,); then weights, both moments
    and gradients. The results are without the first three; the gradients are zeros."""
    given, rate, step = tensors[0], *(each.reshape(()) for each in tensors[1:3])
    count = (len(tensors) - 3) // 4
    weights, firsts, seconds, grads = (
        tensors[3 + part * count : 3 + (part + 1) * count] for part in range(4)
    )
    numbers = {
        name: given.slice_in_dim(index, index + 1, 0).reshape(())
        for index, name in enumerate(ADAMW_NUMBERS)
    }
    # With both moments' bias corrected, r m / (sqrt(v) / c + e) is r c m / (sqrt(v) + c e).
    one = _number(rate, 1.0)
    correction = (one - numbers["beta2"] ** step).sqrt()
    numbers["rate"] = rate * correction / (one - numbers["beta1"] ** step)
    numbers["epsilon"] = numbers["epsilon"] * correction
    numbers["zero"] = _number(rate, 0.0)

    @functools.cache  # one for all weights of a shape
    def of(name: str, sizes: tuple[int, ...]) -> Instruction:
        return numbers[name].broadcast_in_dim(sizes, ())

    results: list[list[Instruction]] = [[], [], [], []]
    for weight, first, second, grad in zip(weights, firsts, seconds, grads, strict=True):
        sizes = tuple(weight.shape().sizes)
        first = first + (grad - first) * of("new1", sizes)
        second = second * of("beta2", sizes) + grad * grad * of("new2", sizes)
        change = first / (second.sqrt() + of("epsilon", sizes)) * of("rate", sizes)
        left = weight * of("kept", sizes) if decays else weight
        updated = (left - change, first, second, of("zero", sizes))
        for part, result in zip(results, updated, strict=True):
            part.append(result)
    return _outputs(*(result for part in results for result in part))


def _one_plus_erf(x: Instruction) -> Instruction:
    return (x * _number(x, math.sqrt(0.5))).erf() + _number(x, 1.0)


def _precision(x: Instruction) -> str | None:
    return "highest" if x.shape().dtype == "f32" else None


def _concatenated(*parts: Instruction) -> Instruction:
    return type(parts[0]).concat_in_dim(parts, 3)


def _dimensions(**letters: str) -> dict[str, Any]:
    """The dimensions' numbers from letters as in XLA's texts: b and f of a map, i and o of a
    kernel, and digits for space."""
    found: dict[str, Any] = {}
    for name, order in letters.items():
        first, second = "io" if name == "kernel" else "bf"
        words = ("kernel_input_feature", "kernel_output_feature")
        if name != "kernel":
            words = (f"{name}_batch", f"{name}_feature")
        found[f"{words[0]}_dimension"] = order.index(first)
        found[f"{words[1]}_dimension"] = order.index(second)
        found[f"{name}_spatial_dimensions"] = (order.index("0"), order.index("1"))
    return found


def _as(x: Instruction, kind: str) -> Instruction:
    return x if x.shape().dtype == kind else x.cast(kind)


def _number(x: Instruction, value: float) -> Instruction:
    return type(x).scalar(x.builder(), value, dtype=x.shape().dtype)


def _sum(x: Instruction, dimensions: list[int]) -> Instruction:
    return x.reduce(_number(x, 0), lambda one, other: one + other, dimensions)


def _spread(x: Instruction, sizes: Sequence[int]) -> Instruction:
    """`x` without a last dimension, repeated along it."""
    return x.broadcast_in_dim(sizes, list(range(len(sizes) - 1)))


def _last(x: Instruction, sizes: Sequence[int]) -> Instruction:
    """`x` (sizes[-1],), repeated along all other dimensions."""
    return x.broadcast_in_dim(sizes, [len(sizes) - 1])


def _outputs(*outputs: Instruction) -> Instruction:
    return type(outputs[0]).tuple(outputs)
