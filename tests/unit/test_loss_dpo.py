"""DPO and its neighbours: golden numbers, slopes, the known mistakes, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from tests.loss_kit import fields_of, flat, run_loss, run_rows
from trainer.losses.table import LOSSES

# Chosen 5 tokens summing to -10 against the reference's -12, rejected 10 tokens: -15 against -14.
CHOSEN, CHOSEN_REFERENCE = [-2.0] * 5, [-2.4] * 5
REJECTED, REJECTED_REFERENCE = [-1.5] * 10, [-1.4] * 10
PAIR, REFERENCE = [CHOSEN, REJECTED], [CHOSEN_REFERENCE, REJECTED_REFERENCE]
DPO_LOSSES = ["dpo", "dpo_ipo", "dpo_hinge", "dpo_robust", "dpo_sigmoid_norm"]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_golden_margin_of_sums() -> None:
    # D = (-10 + 12) - (-15 + 14) = 3; -log s(0.3) = 0.554355; slope -0.1 s(-0.3) on chosen, + on rejected.
    value, slopes = run_rows("dpo", PAIR, reference=REFERENCE)
    assert value == pytest.approx(0.554355, abs=1e-6)
    assert slopes == pytest.approx([-0.0425557] * 5 + [0.0425557] * 10, abs=1e-6)


def test_golden_margin_of_means_is_another_loss() -> None:
    # M = 2/5 + 1/10 = 0.5; -log s(0.05) = 0.668460; slopes -0.1 s(-0.05) / 5 and + ... / 10.
    value, slopes = run_rows("dpo_sigmoid_norm", PAIR, reference=REFERENCE)
    assert value == pytest.approx(0.668460, abs=1e-6)
    slope = 0.1 * sigmoid(-0.05)
    assert slopes == pytest.approx([-slope / 5] * 5 + [slope / 10] * 10, abs=1e-6)


def test_at_the_start() -> None:
    # D = M = 0: ln 2; (0 - 1/0.2)^2 = 25; hinge 1; robust ((1-e) ln 2 - e ln 2) / (1-2e) = ln 2.
    expected = {"dpo": math.log(2), "dpo_ipo": 25, "dpo_hinge": 1, "dpo_robust": math.log(2)}
    for name, value in expected.items():
        assert run_rows(name, PAIR, reference=PAIR)[0] == pytest.approx(value, rel=1e-6)


def test_robust_golden() -> None:
    # (0.9 * 0.554355 - 0.1 * 0.854355) / 0.8 = 0.516855; slope -0.1 (0.9 s(-0.3) + 0.1 s(0.3)) / 0.8.
    value, slopes = run_rows("dpo_robust", PAIR, reference=REFERENCE, label_smoothing=0.1)
    assert value == pytest.approx(0.516855, abs=1e-6)
    assert slopes[0] == pytest.approx(-0.1 * (0.9 * sigmoid(-0.3) + 0.1 * sigmoid(0.3)) / 0.8, abs=1e-6)


def test_ipo_and_hinge_golden() -> None:
    # IPO (0.5 - 5)^2 = 20.25, slopes 2 (-4.5) / 5 = -1.8 and +0.9; hinge 1 - 0.3 = 0.7, slopes -0.1 and +0.1.
    value, slopes = run_rows("dpo_ipo", PAIR, reference=REFERENCE)
    assert (value, slopes[0], slopes[-1]) == pytest.approx((20.25, -1.8, 0.9), rel=1e-5)
    value, slopes = run_rows("dpo_hinge", PAIR, reference=REFERENCE)
    assert (value, slopes[0], slopes[-1]) == pytest.approx((0.7, -0.1, 0.1), rel=1e-5)
    assert run_rows("dpo_hinge", PAIR, reference=REFERENCE, beta=1.0) == (0.0, [0.0] * 15)


def test_label_smoothing_mixes_both_labels() -> None:
    # 0.8 * 0.554355 + 0.2 * 0.854355 = 0.614355; slope -0.1 (0.8 s(-0.3) - 0.2 s(0.3)).
    value, slopes = run_rows("dpo", PAIR, reference=REFERENCE, label_smoothing=0.2)
    assert value == pytest.approx(0.614355, abs=1e-6)
    assert slopes[0] == pytest.approx(-0.1 * (0.8 * sigmoid(-0.3) - 0.2 * sigmoid(0.3)), abs=1e-6)


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_added_likelihood_is_of_the_chosen_response_only(name: str) -> None:
    # NLL_c = 10 / 5 = 2; 0.5 of it adds 1, and -0.5/5 to each chosen slope.
    plain, added = (run_rows(name, PAIR, reference=REFERENCE, nll_weight=weight) for weight in (0.0, 0.5))
    assert added[0] - plain[0] == pytest.approx(1.0, abs=1e-5)
    changes = [b - a for a, b in zip(plain[1], added[1], strict=True)]
    assert changes == pytest.approx([-0.1] * 5 + [0.0] * 10, abs=1e-6)


def test_the_first_response_token_counts() -> None:
    # A response of one token: its log-prob alone is the margin. D = 1, -log s(0.1).
    value, _ = run_rows("dpo", [[-1.0], [-1.0]], reference=[[-2.0], [-1.0]])
    assert value == pytest.approx(-math.log(sigmoid(0.1)), abs=1e-6)


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_swapping_chosen_and_rejected_mirrors_the_slopes(name: str) -> None:
    _, slopes = run_rows(name, [[-1.0], [-1.0]], reference=[[-1.0], [-1.0]])
    assert slopes[0] == -slopes[1] < 0


def test_metrics() -> None:
    fields = fields_of([5, 10, 1, 1], reference=[*REFERENCE, [-1.0], [-1.0]])
    _, metrics = LOSSES["dpo"].function(flat([*PAIR, [-2.0], [-1.0]]), fields, {})
    found = {name: float(value) for name, value in metrics.items()}
    assert found == pytest.approx(
        {
            "pairs:sum": 2,
            "margin:sum": 0.3 - 0.1,
            "correct:sum": 1,
            "chosen_reward:sum": 0.2 - 0.1,
            "rejected_reward:sum": -0.1,
            "chosen_logprob:sum": -12,
            "rejected_logprob:sum": -16,
        },
        abs=1e-5,
    )


@pytest.mark.parametrize("name", [*DPO_LOSSES, "orpo"])
def test_half_pairs_and_empty_responses_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="got 3 datums, wanted pairs"):
        run_rows(name, [[-1.0]] * 3, reference=[[-1.0]] * 3)
    with pytest.raises(ValueError, match=r"datums \[1\] have no trained position"):
        run_loss(name, torch.tensor([-1.0]), fields_of([1, 0], reference=[[-1.0]]))


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_a_missing_reference_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no reference; it needs Datum\.reference"):
        run_rows(name, PAIR)
