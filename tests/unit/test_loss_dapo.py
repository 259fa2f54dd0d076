"""DAPO: the clip-higher table, every token alike, and the paper's mean over prompt groups by weights.

The step that sets it beside GRPO and Dr. GRPO is in test_loss_grpo.
"""

from __future__ import annotations

import math

import pytest

from tests.loss_kit import run_rows


@pytest.mark.parametrize(
    ("advantage", "values", "slopes"),
    [(1.0, [-0.5, -1, -1.28, -1.28], [-0.5, -1, 0, 0]), (-1.0, [0.8, 1, 1.5, 4], [0, 1, 1.5, 4])],
)
def test_golden_clip_higher(advantage: float, values: list[float], slopes: list[float]) -> None:
    logprobs = [[math.log(ratio) - 2 for ratio in (0.5, 1.0, 1.5, 4.0)]]
    value, found = run_rows("dapo", logprobs, old=[[-2.0] * 4], advantages=[[advantage] * 4])
    assert value == pytest.approx(sum(values), abs=1e-5) and found == pytest.approx(slopes, abs=1e-5)


def test_group_means_of_dapos_paper_by_weights() -> None:
    # Two groups, lengths (1, 3) and (2, 2), A = 1: each group's token mean is -1, so the mean over groups is -1.
    lengths = [1, 3, 2, 2]
    rows = [[-1.0] * n for n in lengths]
    ones = [[1.0] * n for n in lengths]
    weights = [[1 / 4] * n for n in lengths]
    value, _ = run_rows("dapo", rows, old=rows, advantages=ones, weights=weights)
    assert value / 2 == pytest.approx(-1.0)
