"""GRPO, DAPO and Dr. GRPO beside each other: one surrogate, three denominators."""

from __future__ import annotations

import math

import pytest

from tests.loss_kit import run_rows
from trainer.loss_specs import LOSS_SPECS, step_denominator

LENGTHS = [2, 8]
LOGPROBS = [[-1.0] * n for n in LENGTHS]
ADVANTAGES = [[1.0] * 2, [-1.0] * 8]


def on_policy(name: str, **config: float) -> tuple[float, list[float]]:
    """Value and slopes of the step (A +1 with 2 tokens, A -1 with 8, r = 1, limit 10 tokens), divided."""
    value, slopes = run_rows(name, LOGPROBS, old=LOGPROBS, advantages=ADVANTAGES, reference=LOGPROBS, **config)
    divisor = step_denominator(LOSS_SPECS[name].denominator, LENGTHS, max_tokens=10)
    return value / divisor, [slope / divisor for slope in slopes]


@pytest.mark.parametrize(
    ("name", "value", "winner", "loser"),
    [
        ("grpo", (-1 + 1) / 2, -1 / (2 * 2), 1 / (8 * 2)),
        ("dapo", (-2 + 8) / 10, -1 / 10, 1 / 10),
        ("dr_grpo", (-2 + 8) / (2 * 10), -1 / 20, 1 / 20),
    ],
)
def test_golden_aggregation(name: str, value: float, winner: float, loser: float) -> None:
    found, slopes = on_policy(name)
    assert found == pytest.approx(value, abs=1e-7)
    assert slopes == pytest.approx([winner] * 2 + [loser] * 8, abs=1e-7)


@pytest.mark.parametrize(("name", "high"), [("grpo", 1.2), ("dapo", 1.28), ("dr_grpo", 1.2)])
def test_clip_bounds(name: str, high: float) -> None:
    for ratio, expected in zip([0.5, 1.0, 1.5, 4.0], [-0.5, -1, -high, -high], strict=True):
        value, slopes = run_rows(name, [[math.log(ratio) - 2]], old=[[-2.0]], advantages=[[1.0]])
        assert value == pytest.approx(expected, abs=1e-5)
        assert slopes[0] == pytest.approx(-ratio if ratio <= high else 0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("weight", "value", "slope"),
    [
        ("kl_k2", 0.5, 1.0),
        ("kl_k3", math.exp(-1), 1 - math.exp(-1)),
        ("kl_k3_ratio", math.exp(-1), math.exp(-1) + 1 - math.exp(-1)),  # r k3' + r' k3, at r = 1
    ],
)
def test_kl_term(weight: str, value: float, slope: float) -> None:
    # One token, A = 0, d = p - f = 1: only the penalty is left.
    found = run_rows("grpo", [[-1.0]], old=[[-1.0]], reference=[[-2.0]], advantages=[[0.0]], **{weight: 0.5})
    assert found[0] == pytest.approx(0.5 * value, abs=1e-6)
    assert found[1] == pytest.approx([0.5 * slope], abs=1e-6)


def test_kl_needs_a_reference_only_when_weighed() -> None:
    run_rows("grpo", LOGPROBS, old=LOGPROBS, advantages=ADVANTAGES)
    with pytest.raises(ValueError, match="grpo: the datums have no reference"):
        run_rows("grpo", LOGPROBS, old=LOGPROBS, advantages=ADVANTAGES, kl_k3=0.01)
    with pytest.raises(ValueError, match=r"does not take \['kl_k1'\]"):
        run_rows("grpo", LOGPROBS, old=LOGPROBS, advantages=ADVANTAGES, kl_k1=0.01)


def test_means_by_weights_equal_the_built_in_mean() -> None:
    # GRPO's coefficient 1/n_i said in the weights of a loss of coefficient 1, over the same denominator.
    weights = [[1 / 2] * 2, [1 / 8] * 8]
    plain = run_rows("grpo", LOGPROBS, old=LOGPROBS, advantages=ADVANTAGES)
    weighed = run_rows("ppo", LOGPROBS, old=LOGPROBS, advantages=ADVANTAGES, weights=weights)
    assert weighed[0] == pytest.approx(plain[0], abs=1e-7) and weighed[1] == pytest.approx(plain[1], abs=1e-7)


def test_a_correction_multiplies_the_advantages() -> None:
    # Truncated importance sampling min(e^(o-q), cap) as a factor of A equals the factor times the clipped term.
    old, logprobs, factor = [[-1.0, -1.5]], [[-0.7, -2.0]], 0.7
    plain = run_rows("grpo", logprobs, old=old, advantages=[[-2.0, -2.0]], dual_clip=3.0)
    scaled = run_rows("grpo", logprobs, old=old, advantages=[[-2.0 * factor] * 2], dual_clip=3.0)
    assert scaled[0] == pytest.approx(factor * plain[0], rel=1e-6)
    assert scaled[1] == pytest.approx([factor * slope for slope in plain[1]], rel=1e-6)
