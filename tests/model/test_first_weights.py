"""The weights that a training starts from: how they are drawn, and what width does to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mambaout.model.first_weights import Role, new_model, role_of
from mambaout.model.network import MambaOut, build
from mambaout.recipe import BASELINE, Recipe, tuned
from mambaout.train.backend import Cpu
from mambaout.train.optim import optimizer, take_step
from mambaout.variants import ModelConfig, widen

NUM_CLASSES, BASE, WIDTHS = 10, 16, (16, 32, 64, 128)
SHAPE = ModelConfig(depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), stem_stride=2)


def recipe_of(width: int, **fields) -> Recipe:
    shape = replace(SHAPE, dims=tuple(width * stage for stage in (1, 2, 3, 4)))
    return tuned(replace(BASELINE, model=shape), **{"peak_lr": 3e-3, **fields})


def drawn(recipe: Recipe) -> MambaOut:
    torch.manual_seed(0)
    return new_model(recipe, NUM_CLASSES)


def test_a_parameter_s_role_is_which_of_its_sides_grow():
    with torch.device("meta"):
        thin = dict(build(SHAPE, NUM_CLASSES).named_parameters())
        wide = dict(build(widen(SHAPE, 2), NUM_CLASSES).named_parameters())
    for name, parameter in thin.items():
        grown = [a != b for a, b in zip(parameter.shape, wide[name].shape, strict=True)]
        wanted = Role.INPUT
        if grown[1:2] == [True]:  # the fan-in
            wanted = Role.HIDDEN if grown[0] else Role.OUTPUT
        assert role_of(name, parameter) is wanted, name
    assert {role_of(name, parameter) for name, parameter in thin.items()} == set(Role)


def test_without_a_base_width_the_default_draws_what_it_always_drew():
    torch.manual_seed(0)
    plain = build(SHAPE, NUM_CLASSES).state_dict()
    for name, weight in drawn(recipe_of(16)).state_dict().items():
        assert torch.equal(weight, plain[name])


def test_by_mup_s_rule_hidden_weights_shrink_with_the_root_of_the_width_and_the_last_with_all():
    plain, ruled = drawn(recipe_of(64)), drawn(recipe_of(64, mup_base_dim=16))
    factors = {Role.INPUT: 1.0, Role.HIDDEN: 0.5, Role.OUTPUT: 0.25}
    for name, parameter in ruled.named_parameters():
        wanted = factors[role_of(name, parameter)] * plain.get_parameter(name)
        assert torch.allclose(parameter, wanted), name


def test_drawn_by_fan_in_every_layer_keeps_the_size_of_what_it_gets():
    model = drawn(recipe_of(64, weight_init="fan_in"))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            wanted = (3 * parameter[0].numel()) ** -0.5
            assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.1), name
        elif name.endswith("bias"):
            assert not parameter.any()
    ruled = drawn(recipe_of(64, weight_init="fan_in", mup_base_dim=16))
    assert torch.allclose(ruled.head.fc.weight, model.head.fc.weight / 2)


@pytest.mark.parametrize("weight_init", ["trunc_normal", "fan_in"])
def test_at_the_base_width_the_rule_changes_nothing(weight_init):
    plain = drawn(recipe_of(16, weight_init=weight_init)).state_dict()
    ruled = drawn(recipe_of(16, weight_init=weight_init, mup_base_dim=16)).state_dict()
    assert all(torch.equal(plain[name], ruled[name]) for name in plain)


# -- the coordinate check (arXiv 2203.03466, appendix D.1) ----------------------------------------


def sizes_after_four_steps(recipe: Recipe) -> tuple[float, float]:
    """The mean size of the logits and of the last map, after four steps on one batch of noise."""
    model = drawn(recipe)
    steps = optimizer(model, recipe, Cpu())
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    labels = torch.randint(NUM_CLASSES, (8,), generator=generator)
    for _ in range(4):
        F.cross_entropy(model(images), labels).backward()
        take_step(steps, recipe.optim.peak_lr, recipe.optim.weight_decay, Cpu())
    with torch.no_grad():
        features = model.forward_features(images)
        return float(model.head(features).abs().mean()), float(features.abs().mean())


def growth(**fields) -> list[float]:
    """The largest size over the smallest among the widths: of the logits, then of the features."""
    found = [sizes_after_four_steps(recipe_of(width, **fields)) for width in WIDTHS]
    return [max(sizes) / min(sizes) for sizes in zip(*found, strict=True)]


@pytest.mark.parametrize("weight_init", ["trunc_normal", "fan_in"])
def test_with_mup_s_rule_logits_and_features_keep_their_size_at_every_width(weight_init):
    logits, features = growth(weight_init=weight_init, mup_base_dim=BASE)
    assert logits < 1.5
    assert features < 1.5


def test_with_one_rate_for_all_widths_the_logits_grow_with_the_width():
    assert growth()[0] > 3
