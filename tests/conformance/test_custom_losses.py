"""Every loss as a custom one on every engine: `forward`, dL/dlogp of the pure function, cross-entropy with -dL/dlogp.

The gradients that accumulate are those of the built-in loss to 1e-6, and so is the step they make; where an engine does
not know a loss, it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conformance.pairs_kit import make_pairs
from tests.conformance.test_engines import Case, base, case, flat
from tests.conformance.test_losses import ALL_ON
from trainer.data.datum import Datum
from trainer.engine.base import AdamParams, Engine
from trainer.engine.local import LocalEngine
from trainer.engine.toy import ToyEngine
from trainer.loss_specs import LOSS_SPECS
from trainer.losses.fields import TokenFields
from trainer.losses.table import LOSSES, find_loss

__all__ = ["base", "case"]  # fixtures

STEP = AdamParams(0.1, eps=1.0)  # eps far above the gradients: close to a step along them, so that no noise is enlarged
MICRO = 60  # tokens: several micro-batches a call
SPREAD = 0.5  # nats between policies: ratios on both sides of every bound


def rows_for(loss: str, engine: Engine) -> list[Datum]:
    """Datums with all that `loss` reads; old log-probs and reference near the model's own, weights not all 1."""
    generator = np.random.default_rng(3)
    data = make_pairs(4, reference=False)
    if not LOSS_SPECS[loss].pairs:
        data = [*data, _untrained(data[2])]  # counts in a mean over sequences, and has nothing to learn
    near = engine.forward("m", data).logprobs

    def beside(row: np.ndarray) -> np.ndarray:
        return (row + SPREAD * generator.normal(size=len(row))).astype(np.float32)

    def one(datum: Datum, row: np.ndarray) -> Datum:
        advantages = np.full(datum.length, generator.choice([1.5, -1.0, 0.5]), dtype=np.float32)
        weights = datum.weights * generator.uniform(0.5, 1.5, datum.length).astype(np.float32)
        return replace(datum, weights=weights, logprobs=beside(row), reference=beside(row), advantages=advantages)

    return [one(datum, row) for datum, row in zip(data, near, strict=True)]


def _untrained(datum: Datum) -> Datum:
    return replace(datum, weights=np.zeros_like(datum.weights))


def slopes_of(
    loss: str, config: dict[str, float], data: Sequence[Datum], logprobs: Sequence[np.ndarray]
) -> tuple[float, list[np.ndarray]]:
    """The loss sum, and dL/dlogp [T] of each datum, by autograd over the pure function in fp64."""
    trained = [np.flatnonzero(datum.weights) for datum in data]

    def laid_out(values: Sequence[np.ndarray | None]) -> Tensor:
        parts = [row[at] for row, at in zip(values, trained, strict=True) if row is not None]
        return torch.from_numpy(np.concatenate(parts)).double()

    counts = torch.tensor([len(at) for at in trained])
    fields = TokenFields(
        weights_N=laid_out([one.weights for one in data]),
        datum_N=torch.repeat_interleave(torch.arange(len(data)), counts),
        datums=len(data),
        logprobs_N=laid_out([one.logprobs for one in data]),
        advantages_N=laid_out([one.advantages for one in data]),
        reference_N=laid_out([one.reference for one in data]),
    )
    leaf_N = laid_out(logprobs).requires_grad_()
    total, _ = find_loss(loss, config).function(leaf_N, fields, config)
    (slope_N,) = torch.autograd.grad(total, leaf_N)
    rows = [np.zeros(datum.length, dtype=np.float32) for datum in data]
    for row, at, part in zip(rows, trained, slope_N.split(counts.tolist()), strict=True):
        row[at] = part.float().numpy()
    return float(total.detach()), rows


def gradient(engine: Engine) -> np.ndarray:
    """What has accumulated, of every parameter, end to end."""
    if isinstance(engine, ToyEngine):
        found = engine._models["m"].gradient_VV
        assert found is not None
        return found.ravel()
    assert isinstance(engine, LocalEngine)
    optimizer = engine._models["m"].optimizer
    assert optimizer is not None
    grads = [master.grad for master in optimizer._masters.values() if master.grad is not None]
    return torch.cat([grad.flatten() for grad in grads]).numpy()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_custom_loss_has_the_gradient_of_the_built_in_one(case: Case, loss: str) -> None:
    """With every constant on. Gradients are compared as they are applied: divided once, by the number of datums."""
    config = {key: ALL_ON[key] for key in LOSS_SPECS[loss].constants}
    built_in, custom = case.fresh(MICRO), case.fresh(MICRO)
    data = rows_for(loss, built_in)
    if isinstance(built_in, ToyEngine) and not (LOSS_SPECS[loss].pairs or loss == "cross_entropy"):
        with pytest.raises(ValueError, match=f"the toy engine does not know '{loss}'"):
            built_in.forward_backward("m", data, loss=loss, loss_config=config)
        return

    total, slopes = slopes_of(loss, config, data, custom.forward("m", data).logprobs)
    linear = [Datum(one.tokens, one.targets, -slope) for one, slope in zip(data, slopes, strict=True)]
    custom.forward_backward("m", linear)
    told = built_in.forward_backward("m", data, loss=loss, loss_config=config)

    assert told.metrics["loss:sum"] == pytest.approx(total, rel=1e-5, abs=1e-5)
    theirs, ours = gradient(custom) / len(data), gradient(built_in) / len(data)
    assert np.abs(ours).max() > 1e-3  # there is something to compare
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    norms = [engine.optim_step("m", STEP, denominator=len(data))["grad_norm"] for engine in (built_in, custom)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    np.testing.assert_allclose(flat(built_in), flat(custom), rtol=0, atol=2e-5)


def test_a_loss_that_no_engine_has_trains(case: Case) -> None:
    """The squared distance of each datum's sum from a target, minimised by its slopes alone: it falls."""
    engine, data = case.fresh(), make_pairs(2, reference=False)
    values = []
    for _ in range(60):
        rows = engine.forward("m", data).logprobs
        gaps = [float(np.dot(one.weights, row)) + 5.0 for one, row in zip(data, rows, strict=True)]
        values.append(sum(gap * gap for gap in gaps))
        slopes = [np.float32(2 * gap) * one.weights for one, gap in zip(data, gaps, strict=True)]
        engine.forward_backward("m", [replace(one, weights=-row) for one, row in zip(data, slopes, strict=True)])
        engine.optim_step("m", AdamParams(3e-2), denominator=len(data))
    assert values[-1] < 0.2 * values[0]
