"""GSPO and GSPO-token: the geometric-mean ratio, slopes, their equality, and where they part."""

from __future__ import annotations

import math

import pytest

from tests.loss_kit import run_rows

LOG_RATIOS = [0.1, -0.2, 0.3]
S = math.exp(0.2 / 3)  # 1.068939
WIDE = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}


def rows(shift: float = 0.0) -> tuple[list[list[float]], list[list[float]]]:
    old = [[-1.0, -2.0, -3.0]]
    return [[o + d + shift for o, d in zip(old[0], LOG_RATIOS, strict=True)]], old


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_golden_ratio_and_slopes(name: str, advantage: float) -> None:
    logprobs, old = rows()
    value, slopes = run_rows(name, logprobs, old=old, advantages=[[advantage] * 3], **WIDE)
    assert value == pytest.approx(-1.068939 * advantage, rel=1e-6)
    assert slopes == pytest.approx([-S * advantage / 3] * 3, rel=1e-5)


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_clipped_by_the_papers_bounds(name: str) -> None:
    logprobs, old = rows()
    value, slopes = run_rows(name, logprobs, old=old, advantages=[[1.0] * 3])
    assert value == pytest.approx(-(1 + 4e-4), rel=1e-6) and slopes == [0.0] * 3
    value, slopes = run_rows(name, logprobs, old=old, advantages=[[-1.0] * 3])  # the minimum is the unclipped term
    assert value == pytest.approx(S, rel=1e-6) and slopes == pytest.approx([S / 3] * 3, rel=1e-5)


def test_each_completion_weighs_the_same() -> None:
    # On policy: slope -A/n_i; the sums of slopes over completions of 1 and 4 tokens are equal.
    logprobs = [[-1.0], [-1.0] * 4]
    _, slopes = run_rows("gspo", logprobs, old=logprobs, advantages=[[1.0], [1.0] * 4])
    assert slopes == pytest.approx([-1.0] + [-0.25] * 4)


def test_advantages_by_token_are_for_gspo_token() -> None:
    logprobs, old = rows()
    _, slopes = run_rows("gspo_token", logprobs, old=old, advantages=[[1.0, 0.0, -1.0]], **WIDE)
    assert slopes == pytest.approx([-S / 3, 0.0, S / 3], rel=1e-5)
    _, slopes = run_rows("gspo", logprobs, old=old, advantages=[[1.0, 0.0, -1.0]], **WIDE)
    assert slopes == pytest.approx([0.0] * 3, abs=1e-7)  # its A is the mean, 0


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_beyond_the_clamp_a_value_and_no_slope(name: str) -> None:
    value, slopes = run_rows(name, [[-1.0] * 2], old=[[-51.0] * 2], advantages=[[-1.0] * 2])
    assert value == pytest.approx(math.exp(20), rel=1e-5) and slopes == [0.0, 0.0]


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_the_kl_keeps_the_tokens_own_ratio(name: str) -> None:
    # A = 0: mean of r_t k3_t alone, r_t = e^0.1, e^-0.2, e^0.3 and p - f = 1 throughout.
    logprobs, old = rows()
    reference = [[p - 1 for p in logprobs[0]]]
    value, _ = run_rows(name, logprobs, old=old, reference=reference, advantages=[[0.0] * 3], kl_k3_ratio=1.0)
    assert value == pytest.approx(math.exp(-1) * (1.105171 + 0.818731 + 1.349859) / 3, rel=1e-5)
