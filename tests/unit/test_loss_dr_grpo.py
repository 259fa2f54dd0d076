"""Dr. GRPO: no length in the slopes; `dapo`'s sum with other bounds and another denominator.

The step that sets it beside GRPO and DAPO is in test_loss_grpo.
"""

from __future__ import annotations

import pytest

from tests.loss_kit import run_rows
from trainer.loss_specs import LOSS_SPECS, step_denominator


def test_long_and_short_completions_have_one_slope() -> None:
    # On policy, A -1 with 1 and with 4 tokens: slope 1 each, over 2 sequences x 10 tokens: 0.05. GRPO: 0.5 and 0.125.
    logprobs = [[-1.0], [-1.0] * 4]
    value, slopes = run_rows("dr_grpo", logprobs, old=logprobs, advantages=[[-1.0], [-1.0] * 4])
    divisor = step_denominator(LOSS_SPECS["dr_grpo"].denominator, [1, 4], max_tokens=10)
    assert divisor == 20 and value / divisor == pytest.approx(5 / 20)
    assert [slope / divisor for slope in slopes] == pytest.approx([0.05] * 5)


def test_is_dapos_sum_within_its_own_bounds() -> None:
    logprobs, old, advantages = [[-1.0, -2.0], [-0.5]], [[-1.1, -1.9], [-0.6]], [[1.0, 1.0], [-1.0]]
    bounds = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    ours = run_rows("dr_grpo", logprobs, old=old, advantages=advantages)
    assert ours == run_rows("dapo", logprobs, old=old, advantages=advantages, **bounds)
