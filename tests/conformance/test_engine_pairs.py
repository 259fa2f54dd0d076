"""Preference losses on every engine: the numbers of their definition, whatever the packing, the split and the order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.pairs_kit import make_pairs, swapped
from tests.conformance.test_engines import Case, base, case, flat
from trainer.data.datum import Datum
from trainer.engine.base import AdamParams, Engine
from trainer.engine.toy_losses import toy_loss
from trainer.loss_specs import LOSS_SPECS

__all__ = ["base", "case"]  # fixtures

PREFERENCE = [name for name, spec in LOSS_SPECS.items() if spec.pairs]
CONSTANTS: dict[str, dict[str, float]] = {
    name: {"orpo_lambda": 0.7} if name == "orpo" else {"beta": 0.3, "nll_weight": 0.5} for name in PREFERENCE
}
every_loss = pytest.mark.parametrize("loss", PREFERENCE)


def step(engine: Engine, parts: list[list[Datum]], loss: str) -> tuple[float, float, np.ndarray]:
    """Loss sum, gradient norm, and the model's log-probs after one step on all parts."""
    total = 0.0
    for part in parts:
        result = engine.forward_backward("m", part, loss=loss, loss_config=CONSTANTS[loss])
        total += result.metrics["loss:sum"]
    pairs = sum(map(len, parts)) / 2
    norm = engine.optim_step("m", AdamParams(1e-2), denominator=pairs)["grad_norm"]
    return total, norm, flat(engine)


@every_loss
def test_the_loss_is_that_of_the_definition(case: Case, loss: str) -> None:
    """Rows are packed shortest first, and each pair's shorter side may be either: sides must not be swapped."""
    engine, data = case.fresh(60), make_pairs(5)
    result = engine.forward("m", data, loss=loss, loss_config=CONSTANTS[loss])
    expected, _, metrics = toy_loss(loss, data, [row.astype(np.float64) for row in result.logprobs], CONSTANTS[loss])
    assert result.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    for name, value in metrics.items():
        assert result.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    turned = engine.forward("m", swapped(data), loss=loss, loss_config=CONSTANTS[loss]).metrics
    assert turned["correct:sum"] == 5 - metrics["correct:sum"]
    assert abs(turned["loss:sum"] - expected) > 1e-3


@every_loss
def test_it_equals_cross_entropy_with_the_slopes_as_weights(case: Case, loss: str) -> None:
    data = make_pairs(4)
    engine, other = case.fresh(), case.fresh()
    logprobs = [row.astype(np.float64) for row in engine.forward("m", data).logprobs]
    _, slopes, _ = toy_loss(loss, data, logprobs, CONSTANTS[loss])
    engine.forward_backward("m", data, loss=loss, loss_config=CONSTANTS[loss])
    other.forward_backward(
        "m", [replace(d, weights=-s.astype(np.float32), reference=None) for d, s in zip(data, slopes, strict=True)]
    )
    norms = [one.optim_step("m", AdamParams(1e-2), denominator=4)["grad_norm"] for one in (engine, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    np.testing.assert_allclose(flat(engine), flat(other), atol=2e-4)


@pytest.mark.parametrize("loss", ["dpo", "dpo_ipo", "orpo"])
@pytest.mark.parametrize("split", ["micro-batches", "one pair each", "calls", "order"])
def test_no_split_changes_the_step(case: Case, loss: str, split: str) -> None:
    data = make_pairs(6)
    whole = step(case.fresh(), [data], loss)
    order = [index for pair in (3, 0, 5, 1, 4, 2) for index in (2 * pair, 2 * pair + 1)]
    parts = {"calls": [data[:2], data[2:8], data[8:]], "order": [[data[index] for index in order]]}.get(split, [data])
    other = step(case.fresh({"micro-batches": 50, "one pair each": 1}.get(split, 4096)), parts, loss)
    assert whole[:2] == pytest.approx(other[:2], rel=1e-5)
    np.testing.assert_allclose(whole[2], other[2], atol=1e-4)


def test_at_the_start_the_loss_is_ln_2(case: Case) -> None:
    engine, data = case.fresh(), make_pairs(3, reference=False)
    reference = engine.forward("m", data).logprobs
    known = [replace(datum, reference=row) for datum, row in zip(data, reference, strict=True)]
    result = engine.forward_backward("m", known, loss="dpo").metrics
    assert result["loss:sum"] == pytest.approx(3 * np.log(2), abs=1e-5)
    assert result["margin:sum"] == pytest.approx(0, abs=1e-5)


def test_bad_pairs_are_refused_before_anything_is_computed(case: Case) -> None:
    engine, data = case.fresh(), make_pairs(3)
    silent = replace(data[3], weights=np.zeros_like(data[3].weights))
    some = [data[0], replace(data[1], reference=None)]
    for call in (engine.forward, engine.forward_backward):
        with pytest.raises(ValueError, match="got 5 datums, wanted pairs in the order chosen, rejected"):
            call("m", data[:5], loss="dpo")
        with pytest.raises(ValueError, match="the datums have no reference; it needs"):
            call("m", make_pairs(2, reference=False), loss="dpo")
        with pytest.raises(ValueError, match="1 of 2 datums have no reference"):
            call("m", some, loss="dpo")
        with pytest.raises(ValueError, match=r"datums \[3\] have no trained position"):
            call("m", [*data[:3], silent], loss="orpo")
        with pytest.raises(ValueError, match="dpo does not take"):
            call("m", data, loss="dpo", loss_config={"gamma": 1.0})
    with pytest.raises(ValueError, match="no gradient since"):
        engine.optim_step("m", AdamParams(1e-2), denominator=1.0)


def test_pairs_stay_together_in_every_micro_batch(base: Path) -> None:
    from trainer.engine.batching import micro_batches
    from trainer.engine.local import _device

    data = make_pairs(6)
    for budget in (1, 40, 1000):
        batches = list(micro_batches(data, budget, every_position=False, device=_device("cpu"), together=2))
        firsts = [min(batch.order) for batch in batches]
        assert all(first % 2 == 0 for first in firsts) and firsts == sorted(firsts)
        assert [index for batch in batches for index in sorted(batch.order)] == list(range(12))
        assert len(batches) == (6 if budget == 1 else len(batches)) and (budget < 1000 or len(batches) == 1)
