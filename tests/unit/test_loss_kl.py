"""KL estimators: golden values and slopes, edges, and what each does as a loss, by enumeration of a softmax."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.losses.kl import k1, k2, k3, k3_ratio

Estimator = Callable[[Tensor, Tensor], Tensor]
ESTIMATORS: dict[str, Estimator] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_ratio": lambda p, f: k3_ratio(p, f, p.detach()),  # on policy: r = 1, with its slope
}


def value_and_slope(name: str, d: float) -> tuple[float, float]:
    p = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    value = ESTIMATORS[name](p, p.detach() - d)
    (slope,) = torch.autograd.grad(value.sum(), p)
    return float(value.detach()), float(slope)


@pytest.mark.parametrize(
    ("name", "d", "value", "slope"),
    [
        ("k1", 1.0, 1.0, 1.0),
        ("k2", 1.0, 0.5, 1.0),
        ("k3", 1.0, 0.367879, 0.632121),
        ("k3_ratio", 1.0, 0.367879, 1.0),
        ("k1", -1.0, -1.0, 1.0),
        ("k2", -1.0, 0.5, -1.0),
        ("k3", -1.0, 0.718282, -1.718282),
        ("k3_ratio", -1.0, 0.718282, -1.0),
        ("k1", 0.1, 0.1, 1.0),
        ("k2", 0.1, 0.005, 0.1),
        ("k3", 0.1, 0.00483742, 0.0951626),
        ("k3_ratio", 0.1, 0.00483742, 0.1),
    ],
)
def test_golden(name: str, d: float, value: float, slope: float) -> None:
    assert value_and_slope(name, d) == pytest.approx((value, slope), abs=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("d", [-200.0, -50.0, -20.0, 0.0, 20.0, 50.0, 200.0])
def test_finite_in_fp32_and_never_pulling_the_wrong_way(name: str, d: float) -> None:
    p = torch.tensor([-201.0], requires_grad=True)
    value = ESTIMATORS[name](p, p.detach() - d)
    (slope,) = torch.autograd.grad(value.sum(), p)
    assert torch.isfinite(value).all() and torch.isfinite(slope).all()
    assert name == "k1" or float(slope) * d >= 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_expected_gradient_by_enumeration(name: str) -> None:
    """Sum over all tokens of pi(a) k(a), pi not differentiated, against the analytic gradients of both KLs."""
    theta = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([-0.2, 0.4, 0.1], dtype=torch.float64), 0)
    p = torch.log_softmax(theta, 0)
    (found,) = torch.autograd.grad((p.detach().exp() * ESTIMATORS[name](p, reference)).sum(), theta)
    pi, d = p.detach().exp(), (p - reference).detach()
    reverse = pi * (d - (pi * d).sum())  # of KL(pi || f)
    forward = pi - reference.exp()  # of KL(f || pi)
    expected = {"k1": torch.zeros(3, dtype=torch.float64), "k2": reverse, "k3": forward, "k3_ratio": reverse}
    torch.testing.assert_close(found, expected[name])
