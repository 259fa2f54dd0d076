"""DRO: golden value, slope, no clamp."""

from __future__ import annotations

import pytest

from tests.loss_kit import run_rows


def test_golden() -> None:
    # A 1, p -1.9, q -2, beta 0.05: -(-1.9 - 0.025 * 0.01) = 1.90025; slope -(1 - 0.05 * 0.1) = -0.995.
    value, slopes = run_rows("dro", [[-1.9]], old=[[-2.0]], advantages=[[1.0]])
    assert value == pytest.approx(1.90025, abs=1e-6) and slopes == pytest.approx([-0.995], abs=1e-6)


def test_far_off_policy_the_penalty_pulls_back() -> None:
    # p - q = 50, A 1, beta 0.1: slope -(1 - 0.1 * 50) = 4.
    _, slopes = run_rows("dro", [[-1.0]], old=[[-51.0]], advantages=[[1.0]], beta=0.1)
    assert slopes == pytest.approx([4.0], rel=1e-6)


def test_without_advantage_the_penalty_stays() -> None:
    assert run_rows("dro", [[-1.0]], old=[[-2.0]], advantages=[[0.0]])[1] == pytest.approx([0.05])
    assert run_rows("dro", [[-1.0]], old=[[-2.0]], advantages=[[0.0]], beta=0.0) == (0.0, [0.0])
