"""The list of layers is the network: its modules by name, their outputs, what they cost and keep.

A mixer that is invented here is a row in each of two tables, and every closed form follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from measured_networks import measured, measured_products, weighed, weighed_maps
from needs import needs_c
from torch import Tensor, nn

from mambaout import build
from mambaout.accounting import cost, matrix_unit_use
from mambaout.layer_kinds import (
    FP32,
    ActivationLayer,
    ConvLayer,
    Layer,
    LinearLayer,
    MatrixProduct,
    NormLayer,
    Size,
    Storage,
)
from mambaout.layers import ImageSize, layers
from mambaout.memory import train_memory
from mambaout.mixer_layers import MIXER_LAYERS, MixerConfig
from mambaout.model.mixers import MIXERS, nchw, nhwc
from mambaout.recipe import BASELINE, tuned
from mambaout.variants import ModelConfig

ODD = ModelConfig(
    depths=(1, 2, 3, 1),
    dims=(12, 24, 56, 40),
    kernel_size=5,
    conv_ratio=0.5,
    stem_stride=2,
    hidden_multiple=8,
)
PLAIN = ModelConfig(depths=(1, 1, 2, 1), dims=(8, 12, 20, 28))  # conv_ratio 1, stride 4


# -- the modules ----------------------------------------------------------------------------------


def named_layers(
    config: ModelConfig, image_size: ImageSize, num_classes: int
) -> Iterator[tuple[str, Layer]]:
    """Every layer, those of each block too, by its module's name in the network."""
    for part in layers(config, image_size, num_classes):
        blocks = [""] if part.num_blocks is None else [f"{i}." for i in range(part.num_blocks)]
        for block in blocks:
            for name, layer in part.layers.items():
                yield f"{part.name}.{block}{name}", layer


def module_outputs(model: nn.Module, image_size: ImageSize) -> dict[str, tuple[int, ...]]:
    """What each module puts out that has no parts, (height, width, channels) or (channels,) of a
    vector, in the order in which they run. An Identity does nothing and is left out."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if next(module.children(), None) is None and not isinstance(module, nn.Identity):

            def note(module: nn.Module, _: object, output: Tensor, name: str = name) -> None:
                assert name not in found
                channels_last = nhwc(output) if type(module) is nn.Conv2d else output
                found[name] = tuple(channels_last.shape[1:])

            module.register_forward_hook(note)
    model.eval()(torch.zeros(1, 3, height, width))
    return found


def check_modules(config: ModelConfig, image_size: ImageSize) -> None:
    model, listed = build(config, 7), dict(named_layers(config, image_size, 7))
    outputs = module_outputs(model, image_size)
    assert list(listed) == list(outputs)
    for name, layer in listed.items():
        own = model.get_submodule(name).parameters()
        assert layer.shape_out == outputs[name], name
        assert layer.params == sum(parameter.numel() for parameter in own), name


@pytest.mark.parametrize("image_size", [32, 45, (32, 64), (37, 50)])
@pytest.mark.parametrize("config", [ODD, PLAIN])
def test_the_layers_are_the_modules_in_the_order_in_which_they_run(config, image_size):
    check_modules(config, image_size)


@pytest.mark.parametrize("size", [(32, 64), (37, 50)])
def test_images_that_are_not_square_have_their_own_cost(size):
    assert cost(ODD, size, 7) == measured(ODD, size, 7)
    assert cost(ODD, size[::-1], 7) == cost(ODD, size, 7)
    assert cost(ODD, (32, 32), 7) == cost(ODD, 32, 7)
    with pytest.raises(ValueError, match=r"image_size=\(0, 32\)"):
        cost(ODD, (0, 32))


# -- what the backward pass keeps -----------------------------------------------------------------


def kept_in_maps(config: ModelConfig, size: Size, fused: bool = False) -> int:
    """In fp32, of the stem and the stages; the few bytes of the head's vectors are estimated."""
    return sum(
        part.times * layer.kept_bytes(Storage(FP32, fused=fused))
        for part in layers(config, size)
        for layer in part.layers.values()
        if layer.size is not None
    )


@pytest.mark.parametrize("size", [(32, 64), (37, 50)])
@pytest.mark.parametrize("config", [ODD, PLAIN])
def test_what_maps_keep_is_what_autograd_keeps_to_the_byte(config, size):
    assert kept_in_maps(config, size) == weighed_maps(config, size)


@needs_c
@pytest.mark.parametrize("config", [ODD, PLAIN, replace(PLAIN, mixer="identity")])
def test_what_fused_blocks_keep_is_what_autograd_keeps_to_the_byte(config):
    assert kept_in_maps(config, (37, 50), fused=True) == weighed_maps(config, (37, 50), fused=True)


# -- mixers ---------------------------------------------------------------------------------------


class Pointwise(nn.Module):
    """A 1 x 1 convolution, then a norm."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nhwc(self.proj(nchw(x)))).to(x.dtype)


def pointwise_layers(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
    return {
        "proj": ConvLayer(channels, size, channels, kernel=1, input_kept=True),
        "norm": NormLayer(channels, size),
    }


class Bottleneck(nn.Sequential):
    """A norm first, then two linears with a GELU between."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        narrow = channels // 2
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, narrow),
            nn.GELU(),
            nn.Linear(narrow, channels),
        )


def bottleneck_layers(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
    narrow = channels // 2
    return {
        "0": NormLayer(channels, size, input_kept=True),
        "1": LinearLayer(channels, size, narrow),
        "2": ActivationLayer(narrow, size),
        "3": LinearLayer(narrow, size, channels),
    }


class AttentionCore(nn.Module):
    """Queries, keys and values to what they attend to: one head, no learned scale."""

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = x.flatten(1, 2).chunk(3, dim=-1)  # (B, H * W, channels)
        weights = (queries @ keys.transpose(1, 2)).softmax(-1)  # (B, H * W, H * W)
        return (weights @ values).unflatten(1, x.shape[1:3])


class Attention(nn.Module):
    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.core = AttentionCore()
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.core(self.qkv(x)))


@dataclass(frozen=True, slots=True)
class AttentionLayer(Layer):
    """A kind of its own: its MACs and what it keeps grow with the square of the positions."""

    size: Size

    @property
    def channels_out(self) -> int:
        return self.channels // 3

    @property
    def macs(self) -> int:
        return sum(math.prod(product) for product in self.products)

    @property
    def products(self) -> tuple[MatrixProduct, ...]:
        positions, channels = math.prod(self.size), self.channels_out
        return (
            MatrixProduct(positions, channels, positions),
            MatrixProduct(positions, positions, channels),
        )

    def kept_bytes(self, storage: Storage) -> int:
        positions = math.prod(self.size)
        return positions * (storage.wide(self.channels) + storage.wide(positions)) * storage.low


def attention_layers(channels: int, size: Size, config: MixerConfig) -> dict[str, Layer]:
    return {
        "qkv": LinearLayer(channels, size, 3 * channels, input_kept=True),
        "core": AttentionLayer(3 * channels, size),
        "proj": LinearLayer(channels, size, channels),
    }


INVENTED = {
    "invented_identity": (
        lambda channels, config: nn.Identity(),
        lambda channels, size, config: {},
    ),
    "invented_pointwise": (Pointwise, pointwise_layers),
    "invented_bottleneck": (Bottleneck, bottleneck_layers),
    "invented_attention": (Attention, attention_layers),
}


@pytest.fixture(params=INVENTED)
def invented(request, monkeypatch) -> str:
    """The name of a mixer that is a row in two tables, and nothing else."""
    module, its_layers = INVENTED[request.param]
    monkeypatch.setitem(MIXERS, request.param, module)
    monkeypatch.setitem(MIXER_LAYERS, request.param, its_layers)
    return request.param


def check_mixer(name: str) -> None:
    """Networks of the mixer have the modules, costs, matrix products and kept bytes of the list."""
    assert name in MIXER_LAYERS, f"{name} is in model/mixers.py, but not in mixer_layers.py"
    assert name in MIXERS, f"{name} is in mixer_layers.py, but not in model/mixers.py"
    for config, size in ((ODD, (18, 32)), (PLAIN, (37, 50))):
        config = replace(config, mixer=name)
        check_modules(config, size)
        assert cost(config, size, 7) == measured(config, size, 7)
        assert kept_in_maps(config, size) == weighed_maps(config, size)
        products = measured_products(config, size, 7)
        used = sum(math.prod(product) for product in products)
        slots = sum(n * math.ceil(i / 16) * math.ceil(o / 16) for n, i, o in products)
        assert matrix_unit_use(config, size, 7, unit=16) == used / (16**2 * slots)


@needs_c  # a scan keeps more states in C
@pytest.mark.parametrize("name", sorted(MIXERS.keys() | MIXER_LAYERS.keys()))
def test_every_mixer_has_its_layers(name):
    check_mixer(name)


def test_a_new_mixer_is_two_rows_and_all_numbers_follow(invented):
    check_mixer(invented)


def test_a_new_mixers_memory_is_in_the_estimate(invented):
    config = replace(ODD, mixer=invented)
    exact = train_memory(config, 60, 10, "fp32").kept_bytes
    assert exact == pytest.approx(weighed(config, 60, 10, "fp32"), rel=0.01)
    # As in test_memory.py: the CPU's autocast leaves norms in bf16, the estimate has them in fp32.
    mixed = train_memory(config, 60, 10, "bf16").kept_bytes
    assert 1 <= mixed / weighed(config, 60, 10, "bf16") <= 1.4


def test_a_new_mixer_is_a_value_that_a_recipe_can_have(invented):
    assert tuned(BASELINE, mixer=invented).model.mixer == invented
    with pytest.raises(ValueError, match=f"mixer='else' must be one of .*{invented}"):
        tuned(BASELINE, mixer="else")


@pytest.mark.parametrize("table", [MIXERS, MIXER_LAYERS])
def test_a_mixer_that_is_in_one_table_alone_fails_by_its_name(table, invented, monkeypatch):
    monkeypatch.delitem(table, invented)
    with pytest.raises(AssertionError, match=f"{invented} is in .*, but not in"):
        check_mixer(invented)
