"""Cross-entropy: golden numbers, its declared slopes against autograd, the table's refusals, the HF loss as oracle."""

from __future__ import annotations

import pytest
import torch

from trainer.losses.cross_entropy import cross_entropy, cross_entropy_slopes
from trainer.losses.fields import TokenFields
from trainer.losses.table import LOSSES, find_loss


def fields_of(weights: list[float]) -> TokenFields:
    return TokenFields(torch.tensor(weights), torch.zeros(len(weights), dtype=torch.int64), datums=1)


def test_sum_over_micro_batches_is_divided_once() -> None:
    # 2 tokens at NLL 2 and 8 tokens at NLL 1: 12 / 10 = 1.2; the mean of means would be 1.5.
    parts = [(torch.full((2,), -2.0), 2), (torch.full((8,), -1.0), 8)]
    total = sum(float(cross_entropy(logprobs, fields_of([1.0] * n), {})[0]) for logprobs, n in parts)
    assert total / 10 == pytest.approx(1.2)


def test_signed_weights_and_metrics() -> None:
    total, metrics = cross_entropy(torch.tensor([-1.0, -2.0, -3.0]), fields_of([1.0, -0.5, 2.0]), {})
    assert float(total) == pytest.approx(1.0 - 1.0 + 6.0)
    assert float(metrics["weight:sum"]) == pytest.approx(2.5)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.slopes])
def test_declared_slopes_are_the_gradient(name: str) -> None:
    loss, fields = LOSSES[name], fields_of([1.0, -0.5, 2.0])
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss.function(logprobs, fields, {})[0].backward()
    assert loss.slopes is not None and logprobs.grad is not None
    torch.testing.assert_close(loss.slopes(fields, {}), logprobs.grad)


def test_equals_torch_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 11), torch.randint(0, 11, (7,))
    logprobs = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(cross_entropy(logprobs, fields_of([1.0] * 7), {})[0], expected)


def test_slopes_are_minus_the_weights() -> None:
    assert cross_entropy_slopes(fields_of([1.0, -2.0]), {}).tolist() == [-1.0, 2.0]


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="'crossentropy' is not one of"):
        find_loss("crossentropy", {})
    with pytest.raises(ValueError, match=r"does not take \['beta'\]"):
        find_loss("cross_entropy", {"beta": 0.1})
