"""RLOO's loss: the product of ratios, clipped once for the whole completion."""

from __future__ import annotations

import math

import pytest

from tests.loss_kit import run_rows

OLD = [[-1.0, -2.0, -3.0]]
LOGPROBS = [[-0.9, -2.2, -2.7]]  # log-ratios 0.1, -0.2, 0.3: product e^0.2 = 1.221403


def test_golden_product_is_clipped_as_one() -> None:
    value, slopes = run_rows("rloo", LOGPROBS, old=OLD, advantages=[[1.0] * 3])
    assert value == pytest.approx(-1.2, rel=1e-6) and slopes == [0.0] * 3
    value, slopes = run_rows("rloo", LOGPROBS, old=OLD, advantages=[[-1.0] * 3])
    assert value == pytest.approx(1.221403, rel=1e-6) and slopes == pytest.approx([1.221403] * 3, rel=1e-5)


def test_on_policy_no_length_in_the_slope() -> None:
    logprobs = [[-1.0], [-1.0] * 4]
    _, slopes = run_rows("rloo", logprobs, old=logprobs, advantages=[[2.0], [2.0] * 4])
    assert slopes == pytest.approx([-2.0] * 5)


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_long_products_stay_finite(advantage: float) -> None:
    # 10 tokens of +50 nats: e^500 would overflow fp32 (and NaN where A = 0).
    value, slopes = run_rows("rloo", [[-1.0] * 10], old=[[-51.0] * 10], advantages=[[advantage] * 10])
    assert math.isfinite(value) and slopes == [0.0] * 10
