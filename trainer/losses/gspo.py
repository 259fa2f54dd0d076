"""GSPO: one ratio for a whole completion, the geometric mean of its tokens'; and its form with advantages per token.

Both: sum over datums, denominator the sequences of the step. s_i = exp(1/n_i sum_t (p_t - q_t)) over the trained
positions of datum i (tool output and prompt are not there; the Fireworks cookbook averages them in), log s_i clamped to
+-20 (verl: at most 10). Weights do not enter s_i, they multiply the terms (>= 0 expected). The bounds are the paper's
1 - 3e-4 and 1 + 4e-4; TRL keeps GRPO's 0.8 and 1.2, about 600 times as wide, unless set. KL_t as in `grpo`, with the
token's ratio in kl_k3_ratio, where TRL 1.16 has the sequence's.

By hand, log-ratios 0.1, -0.2, 0.3: s = exp(0.2 / 3) = 1.068939. Slope: -w s A / n_i inside the bounds (and where the
minimum is the term that is not clipped), else 0; in `gspo` with the mean of w A: alike for all its positions.
Shapes: logprobs_N and fields [N], nats. Errors: `ValueError` for datums without logprobs or advantages, constants
out of range. Metrics: ratios (of sequences, or in `gspo_token` of tokens), clipped_low, clipped_high.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.clipping import clipped
from trainer.losses.fields import TokenFields
from trainer.losses.kl import kl_penalty
from trainer.losses.ratios import ratio_of


def gspo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_i -min(s_i A_i, clip(s_i) A_i) + 1/n_i sum_t w_t KL_t (2507.18071, Eqs. 5, 7), A_i = mean of w_t A_t."""
    values = filled("gspo", config)
    log_ratio_D = fields.means_D(logprobs_N - fields.need("logprobs", "gspo"))
    advantages_D = fields.means_D(fields.weights_N * fields.need("advantages", "gspo"))
    terms_D, metrics = clipped(ratio_of(log_ratio_D), advantages_D, values)
    penalty_N, kl_metrics = kl_penalty("gspo", logprobs_N, fields, values)
    return (terms_D + fields.means_D(fields.weights_N * penalty_N)).sum(), {**metrics, **kl_metrics}


def gspo_token(
    logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_i 1/n_i sum_t w_t [-min(s_t A_t, clip(s_t) A_t) + KL_t], s_t = sg(s_i) exp(p_t - sg(p_t)) (Eqs. 13, 14).

    Value and slopes of `gspo` where w A is one number per completion; here it may vary by token. Every token's own
    surrogate is clipped by the completion's ratio. verl aggregates over tokens unless told; that would weigh by length.
    """
    values = filled("gspo_token", config)
    log_ratio_N = fields.means_D(logprobs_N.detach() - fields.need("logprobs", "gspo_token"))[fields.datum_N]
    ratio_N = ratio_of(log_ratio_N + (logprobs_N - logprobs_N.detach()))
    terms_N, metrics = clipped(ratio_N, fields.need("advantages", "gspo_token"), values)
    penalty_N, kl_metrics = kl_penalty("gspo_token", logprobs_N, fields, values)
    return fields.means_D(fields.weights_N * (terms_N + penalty_N)).sum(), {**metrics, **kl_metrics}
