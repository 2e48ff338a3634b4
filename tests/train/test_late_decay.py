"""The late decay: the rate of every step is the published formula, and no length shows before."""

from __future__ import annotations

import math

import pytest

from mambaout.fields import flat_fields
from mambaout.recipe import BASELINE, WrongValues, following, tuned
from mambaout.train.optim import learning_rate

PER_EPOCH = 93
LATE = tuned(
    BASELINE,
    epochs=12,
    warmup_epochs=0.5,
    peak_lr=1e-3,
    warmup_lr=1e-6,
    final_lr=1e-5,
    lr_decay_share=0.2,
)


def rates(recipe, num_steps: int | None = None) -> list[float]:
    num_steps = recipe.schedule.total_epochs * PER_EPOCH if num_steps is None else num_steps
    return [learning_rate(recipe, step, PER_EPOCH) for step in range(num_steps)]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_after_the_warm_up_the_rate_is_constant_and_then_falls_by_the_formula(share):
    found = rates(tuned(LATE, lr_decay_share=share))
    num_steps = 12 * PER_EPOCH
    first = round((1 - share) * num_steps)
    warm_up = math.ceil(0.5 * PER_EPOCH)
    assert found[:warm_up] == rates(tuned(LATE, lr_decay_share=None))[:warm_up]
    assert set(found[warm_up : first + 1]) == {1e-3}
    # The form "1-sqrt" of Hägele et al., 1 - sqrt((n - (N - N_decay)) / N_decay), down to final_lr.
    for step in range(first, num_steps):
        factor = 1 - math.sqrt((step - first) / (num_steps - first))
        assert found[step] == pytest.approx(1e-5 + (1e-3 - 1e-5) * factor, rel=1e-12)


def test_a_late_decay_may_move_once_an_epoch_and_end_in_a_cool_down():
    found = rates(tuned(LATE, lr_steps="epoch", cooldown_epochs=2, warmup_epochs=1))
    by_epoch = [set(found[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH]) for epoch in range(14)]
    assert all(len(one) == 1 for one in by_epoch)
    (values,) = zip(*by_epoch, strict=True)
    assert set(values[1:10]) == {1e-3}
    assert 1e-3 > values[10] > values[11] > 1e-5
    assert values[12:] == (1e-5, 1e-5)


@pytest.mark.parametrize("lr_steps", ["step", "epoch"])
def test_the_steps_before_the_decay_do_not_know_the_length(lr_steps):
    long = tuned(LATE, epochs=36, lr_steps=lr_steps)
    for epochs in (2, 4, 5, 12, 35):
        short = tuned(long, epochs=epochs)
        decay_step = short.schedule.decay_step(PER_EPOCH)
        assert decay_step is not None
        assert rates(short, decay_step) == rates(long, decay_step)
    assert BASELINE.schedule.decay_step(PER_EPOCH) is None


def test_a_warm_up_that_reaches_into_the_decay_is_refused_with_a_remedy():
    with pytest.raises(WrongValues, match=r"before the last lr_decay_share=0\.5") as caught:
        tuned(LATE, epochs=4, warmup_epochs=3, lr_decay_share=0.5)
    assert "warmup_epochs like 1" in str(caught.value)
    tuned(LATE, epochs=4, warmup_epochs=1, lr_decay_share=0.5)


def test_the_warm_up_keeps_its_length_at_every_length_of_a_late_decay():
    assert following(flat_fields(LATE), {"epochs": 36}) == {}
    assert following(flat_fields(BASELINE), {"epochs": 30, "lr_decay_share": 0.2}) == {}
