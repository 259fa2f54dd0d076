"""PPO's clipped surrogate as a plain sum over positions: the service-mode form."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.clipping import clipped_tokens
from trainer.losses.fields import TokenFields


def ppo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = -sum_t w_t min(r_t A_t, clip(r_t, low, high) A_t), r_t = exp(p_t - q_t) (1707.06347, Eq. 7).

    `clip_low_threshold` and `clip_high_threshold` bound the ratio itself (0.8, 1.2), as in Tinker. `dual_clip` c > 0
    caps the loss at -c A where A < 0 (1912.09729): off here, 3 by default in verl. Unlike Tinker weights multiply, and
    the log-ratio is clamped to +-20: beyond it a position with A < 0 has its value but no slope. No value function, no
    entropy bonus. Sum over trained positions; the denominator is the caller's (a token mean: the tokens of the step).

    By hand, A 1, r = 0.5, 1, 1.5, 4: -0.5, -1, -1.2, -1.2 (high 1.28: -1.28 at the end). A -1: 0.8, 1, 1.5, 4; with
    c = 3 the last is 3. Slope: -w r A where that is not clipped, at the bounds included, else 0. Shapes: all [N].
    Errors: `ValueError` for datums without logprobs or advantages, constants out of range or order. Metrics: the
    ratio's, clipped_low, clipped_high, clipped_dual.
    """
    terms_N, metrics = clipped_tokens("ppo", logprobs_N, fields, filled("ppo", config))
    return (fields.weights_N * terms_N).sum(), metrics
