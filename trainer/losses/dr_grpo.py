"""Dr. GRPO's policy loss: GRPO without the division by each completion's own length."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.clipping import clipped_tokens
from trainer.losses.fields import TokenFields


def dr_grpo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_t w_t [-min(r_t A_t, clip(r_t, low, high) A_t) + KL_t] (2503.20783, Sec. 3.2, "done right").

    Sum over trained positions, denominator **sequences x a constant length** (`sequence_tokens`; the constant is the
    completion's token limit, as in TRL's `loss_type="dr_grpo"`, whose B x max_completion_length is the same number
    for micro-batches of one size). The paper's other half is the advantage without std (`trainer.advantages`, std
    "none"). The sum itself is `dapo`'s with other bounds; the denominator makes the difference. KL and dual clip as in
    `grpo`, off by default.

    By hand, r = 1, A 1 with 2 tokens and A -1 with 8, constant 10: (-2 + 8) / (2 * 10) = 0.3. Slope at r = 1: -w A.
    Shapes, errors and metrics as `grpo`.
    """
    terms_N, metrics = clipped_tokens("dr_grpo", logprobs_N, fields, filled("dr_grpo", config))
    return (fields.weights_N * terms_N).sum(), metrics
