"""REINFORCE: golden value and slope; the sampler's log-probs are not read."""

from __future__ import annotations

import pytest

from tests.loss_kit import run_rows


def test_golden() -> None:
    # p -1, -2; A 0.5, -2: 0.5 - 4 = -3.5; slopes -A.
    value, slopes = run_rows("reinforce", [[-1.0, -2.0]], advantages=[[0.5, -2.0]])
    assert value == pytest.approx(-3.5) and slopes == [-0.5, 2.0]


def test_kl_is_added() -> None:
    # d = 1 at one token, k2 with weight 0.1: +0.05, slope +0.1.
    value, slopes = run_rows("reinforce", [[-1.0]], reference=[[-2.0]], advantages=[[1.0]], kl_k2=0.1)
    assert value == pytest.approx(1.05) and slopes == pytest.approx([-0.9])


def test_advantages_are_needed() -> None:
    with pytest.raises(ValueError, match="reinforce: the datums have no advantages"):
        run_rows("reinforce", [[-1.0]])
