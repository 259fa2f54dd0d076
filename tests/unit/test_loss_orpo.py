"""ORPO: golden numbers, the odds at the edges, what the clamp does."""

from __future__ import annotations

import math

import pytest
import torch

from tests.loss_kit import run_rows
from trainer.losses.orpo import log1mexp


def test_golden() -> None:
    # c = -0.5, r = -1: log-odds 0.974077, -log s = 0.320300; with NLL 0.5 and lambda 0.1: 0.532030.
    value, slopes = run_rows("orpo", [[-0.5], [-1.0]])
    assert value == pytest.approx(0.532030, abs=1e-6)
    assert slopes == pytest.approx([-1 - 0.0696544, 0.0433570], abs=1e-6)


def test_means_not_sums_and_slopes_per_token() -> None:
    # Chosen mean (-0.2 - 0.8) / 2, rejected mean (-0.5 - 1.5 - 1) / 3: the golden pair again, slopes / 2 and / 3.
    value, slopes = run_rows("orpo", [[-0.2, -0.8], [-0.5, -1.5, -1.0]])
    assert value == pytest.approx(0.532030, abs=1e-6)
    assert slopes == pytest.approx([-1.0696544 / 2] * 2 + [0.0433570 / 3] * 3, abs=1e-6)


def test_lambda_weighs_the_odds_only() -> None:
    assert run_rows("orpo", [[-0.5], [-1.0]], orpo_lambda=1.0)[0] == pytest.approx(0.5 + 0.320300, abs=1e-6)
    assert run_rows("orpo", [[-0.5], [-1.0]], orpo_lambda=0.0)[1] == [-1.0, 0.0]


def test_log1mexp_golden() -> None:
    x = torch.tensor([-1e-3, -1e-8, -1e-17, 0.0])
    assert log1mexp(x).tolist() == pytest.approx([-6.908255, -18.420681, -39.143947, -math.inf], rel=1e-6)


@pytest.mark.parametrize("x", [-50.0, -1.0, -math.log(2), -1e-3, -1e-8, -1e-17])
def test_log1mexp_slope(x: float) -> None:
    # d/dx log(1 - e^x) = -e^x / (1 - e^x) = -1 / (e^-x - 1)
    leaf = torch.tensor(x, requires_grad=True)
    log1mexp(leaf).backward()
    assert leaf.grad is not None
    assert float(leaf.grad) == pytest.approx(-1 / math.expm1(-float(torch.tensor(x))), rel=1e-5)


@pytest.mark.parametrize("c", [-50.0, -1.0, -math.log(2), -1e-3, -1e-8, -1e-17, 0.0])
@pytest.mark.parametrize("r", [-50.0, -1.0, -1e-8, 0.0])
def test_finite_at_the_edges(c: float, r: float) -> None:
    value, slopes = run_rows("orpo", [[c], [r]])
    assert math.isfinite(value) and all(math.isfinite(slope) for slope in slopes)


def test_beyond_the_clamp_only_the_likelihood_teaches() -> None:
    assert run_rows("orpo", [[-1e-7], [-1e-7]])[1] == [-1.0, 0.0]
    assert run_rows("orpo", [[-1e-7], [-1.0]])[0] == pytest.approx(run_rows("orpo", [[0.0], [-1.0]])[0], abs=1e-6)
