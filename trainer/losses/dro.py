"""DRO: policy gradient with a squared log-ratio to the policy that sampled instead of a ratio and its clip."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.fields import TokenFields


def dro(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = -sum_t w_t (A_t p_t - beta/2 (p_t - q_t)^2) (2405.19107, Eq. 4; Tinker's `dro`).

    The paper squares (r - V) - tau log(pi/pi_ref) of whole responses, with a learnt V: expanded, divided by 2 tau, and
    per token this is what depends on the policy, with A for r - V. We learn no V: the advantage is the caller's, and
    not a group-standardised one if the fixed point is to be the paper's. The reference is the policy that sampled.
    Weights multiply both terms, so a position with A = 0 still has the penalty; the Fireworks cookbook drops it there
    (prompt positions that a client sends with advantage and log-prob 0 must have weight 0 here). Nothing is clamped.
    Sum over trained positions, denominator the caller's (a token mean: the tokens of the step).

    By hand, A 1, p -1.9, q -2, beta 0.05: -(-1.9 - 0.025 * 0.01) = 1.90025. Slope: -w (A - beta (p - q)).
    Shapes: all [N], nats. Errors as `ppo`. Metrics: tokens, squared_log_ratio.
    """
    values = filled("dro", config)
    squared_N = (logprobs_N - fields.need("logprobs", "dro")).square()
    terms_N = fields.need("advantages", "dro") * logprobs_N - values["beta"] / 2 * squared_N
    metrics = {"tokens:sum": torch.ones_like(squared_N).sum(), "squared_log_ratio:sum": squared_N.detach().sum()}
    return -(fields.weights_N * terms_N).sum(), metrics
