"""Evaluation computes in the recipe's precision, and decodes a small split once."""

import pytest
import torch
from needs import needs_c
from small_memory import NO_MEMORY, RoomFor

from mambaout.data.batches import loader
from mambaout.data.batches.loader import EvaluationBatches, evaluation_batches
from mambaout.model.gated_block import modules_alone
from mambaout.model.network import build
from mambaout.recipe import tuned
from mambaout.train.backend import Cpu
from mambaout.train.evaluation import evaluate


@needs_c
def test_bf16_is_evaluated_in_bf16_with_and_without_c(tiny_recipe, digits):
    torch.manual_seed(0)
    model = build(tiny_recipe.model, digits.num_classes)

    def loss(precision: str) -> float:
        recipe = tuned(tiny_recipe, precision=precision)
        return evaluate(model, digits, "minival", recipe, backend=Cpu())["minival/loss"]

    in_c, in_fp32 = loss("bf16"), loss("fp32")
    with modules_alone():
        in_modules = loss("bf16")
    assert len({in_c, in_modules, in_fp32}) == 3  # each rounds in its own way
    assert in_c == pytest.approx(in_fp32, rel=5e-3)
    assert in_c == pytest.approx(in_modules, rel=5e-3)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("image_size", [28, 20])
def test_a_small_split_is_decoded_once(digits, tiny_recipe, image_size, num_workers):
    recipe = tuned(tiny_recipe, image_size=image_size)
    batches = EvaluationBatches(digits, "minival", recipe, batch_size=32, num_workers=num_workers)
    first, again = list(batches), list(batches)
    fresh = list(evaluation_batches(digits, "minival", recipe, batch_size=32))
    assert len(first) == len(again) == len(fresh) > 1
    for one, two, three in zip(first, again, fresh, strict=True):
        assert one is two
        assert torch.equal(two.images, three.images)
        assert torch.equal(two.labels, three.labels)
        assert two.num_valid == three.num_valid


def test_a_large_split_is_decoded_each_time(digits, tiny_recipe, monkeypatch):
    monkeypatch.setattr(loader, "KEPT_BYTES", 1000)
    batches = EvaluationBatches(digits, "minival", tiny_recipe, batch_size=32)
    for one, two in zip(batches, batches, strict=True):
        assert one is not two
        assert torch.equal(one.images, two.images)


@pytest.mark.parametrize("error", NO_MEMORY)
def test_an_evaluation_that_is_out_of_memory_goes_on_with_half_and_scores_the_same(
    digits, tiny_recipe, error, caplog
):
    torch.manual_seed(0)
    model = build(tiny_recipe.model, digits.num_classes)

    def found(where: Cpu) -> dict[str, float]:
        return evaluate(model, digits, "minival", tiny_recipe, backend=where, batch_size=100)

    whole, parts = found(Cpu()), found(RoomFor(13, error))
    assert parts == pytest.approx(whole, rel=1e-5)
    sizes = [record.args for record in caplog.records if "out of memory" in record.message]
    assert sizes == [(100, 50), (50, 25), (25, 12)]


def test_an_evaluation_for_which_no_memory_suffices_raises_the_devices_error(digits, tiny_recipe):
    model = build(tiny_recipe.model, digits.num_classes)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(model, digits, "minival", tiny_recipe, backend=RoomFor(0, NO_MEMORY[0]))


def test_an_evaluation_that_breaks_off_keeps_no_part(digits, tiny_recipe):
    batches = EvaluationBatches(digits, "minival", tiny_recipe, batch_size=32)
    next(iter(batches))
    assert sum(batch.num_valid for batch in batches) == digits.num_images("minival", tiny_recipe)
